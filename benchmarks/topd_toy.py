"""The paper's claims about TOPD on the toy, with intervals over seeds, and the controls that the paper lacks.

    python benchmarks/topd_toy.py claims                      T1, T2, T3, the detector against the true forks, and T8; minutes
    python benchmarks/topd_toy.py overhead                    T8 alone, on a machine that does nothing else
    python benchmarks/topd_toy.py local                       T6: does D fall after a few updates on one point? minutes
    python benchmarks/topd_toy.py arms --jobs 2               OPD, suppress low, suppress high, TOPD: table and picture; an hour
    python benchmarks/topd_toy.py controls --jobs 2           what in TOPD does it? hours
    python benchmarks/topd_toy.py control shuffled --seed 0 --out runs/x       one run of one control

A control replaces one function of topd.py, nothing else: it is also an example of how to fork the method.
"""

import argparse
import copy
import statistics as st
import sys
import time
from pathlib import Path

import torch
from arms import ROOT, picture, run_all, table

import opd
import plumbing
import topd
from diagnostics import auc
from evaluate import eos_ids, load_benchmark, mean_interval, prompt_ids, uniforms
from toy import world

CPU = torch.device("cpu")

# ============================================================================================ arms and controls

ARMS = {
    "OPD": ["opd.py"],
    "suppress low": ["topd.py", "--guidance", "off", "--suppress", "low"],
    "suppress high": ["topd.py", "--guidance", "off", "--suppress", "high"],
    "TOPD": ["topd.py"],
}
HERE = "benchmarks/topd_toy.py"
CONTROLS = {
    "TOPD": ["topd.py"],
    "random positions": [HERE, "control", "random"],
    "every candidate": ["topd.py", "--drop_share", "0"],
    "positional plan": [HERE, "control", "positional"],
    "shuffled plan": [HERE, "control", "shuffled"],
    "self target": [HERE, "control", "self"],
    "teacher forcing": [HERE, "control", "forcing"],
    "TOPD and suppress low": ["topd.py", "--suppress", "low"],
}


def random_positions(losses, args):
    """As many positions as there would be candidates, anywhere."""
    count = len(original["candidates"](losses, args))
    key = ("random positions", args.seed, round(losses.sum().item(), 4))
    return topd.comparison(losses, count, args, key)[0]


def positional_plan(costs, args):
    """I/K: position i follows the teacher's position i, whatever stands there; unequal lengths by overlap of the intervals."""
    found = []
    for c in costs:
        n, m = c.shape
        low = torch.maximum(torch.arange(n)[:, None] / n, torch.arange(m)[None] / m)
        high = torch.minimum((torch.arange(n)[:, None] + 1) / n, (torch.arange(m)[None] + 1) / m)
        found.append((high - low).clamp(min=0))
    return found


def shuffled_plan(costs, args):
    """The true plan with the teacher's positions in random order: the same weights on the same tokens, at wrong places."""
    generator = torch.Generator().manual_seed(round(sum(c.sum().item() for c in costs) * 1e4))
    return [g[torch.randperm(len(g), generator=generator)] for g in original["plans"](costs, args)]


def self_targets(points, args):
    """The student's own tokens as its target: sharpening, no teacher."""
    for p in points:
        p.teacher, p.weights, p.context = p.student, torch.eye(len(p.student)), None


def forced_targets(points, args):
    """Plain cross-entropy on the teacher's window, in the TEACHER's context: ordinary distillation on a few windows."""
    for p in points:
        p.weights, p.context = torch.eye(len(p.teacher)), p.teacher


SWAPS = {
    "random": {"candidates": random_positions},
    "positional": {"plans": positional_plan},
    "shuffled": {"plans": shuffled_plan},
    "self": {"soft_targets": self_targets},
    "forcing": {"soft_targets": forced_targets},
}
original = {name: getattr(topd, name) for swap in SWAPS.values() for name in swap}


# ============================================================================================ claims


def load():
    return (
        plumbing.load_model("toy/student", CPU, torch.float32),
        plumbing.load_model("toy/teacher", CPU, torch.float32).requires_grad_(False),
        plumbing.load_tokenizer("toy/student"),
    )


def forks(row, ids, tokenizer):
    """Index of the token at which a rollout leaves the truth, or None if it never does: the checker knows."""
    pieces = [tokenizer.decode([i]) for i in ids]  # exact on the toy: lengths add up
    wrong = world.check(row["problem"], "".join(pieces)).first_wrong
    if wrong is None:
        return None
    at = 0
    for i, piece in enumerate(pieces):
        at += len(piece)
        if at > wrong.wrong_at:
            return i
    return None


def looked(student, teacher, tokenizer, rows, args, seed, everywhere=False):
    """Rollouts on `rows` and their points; with `everywhere` a point at every position that has half a window left."""
    args = copy.copy(args)
    args.seed = seed
    batch = topd.rollouts(student, tokenizer, rows, args, 1)
    clock = plumbing.Clock(CPU)
    clock.start()
    if everywhere:
        topd.candidates = lambda losses, a: list(range(max(0, int(len(losses) - a.window_size / 2) + 1)))
    try:
        points, losses, _ = topd.look_ahead(
            student,
            teacher,
            batch,
            args,
            1,
            clock,
            plumbing.no_autocast,
            len(tokenizer),
            set(eos_ids(teacher, tokenizer)),
            probe=not everywhere,
        )
    finally:
        topd.candidates = original["candidates"]
    return batch, points, losses


def claims(seeds, count, student_path):
    student, teacher, tokenizer = load()
    if student_path:
        student = plumbing.load_model(student_path, CPU, torch.float32)
    args = topd.settle(plumbing.parse_arguments(topd.Args, "", ["--data", "toy", "--micro_tokens", "8000"]))
    rows = load_benchmark("toy", "test")
    for r in rows:
        r["ids"] = prompt_ids(tokenizer, r["prompt"])
    per = []
    for seed in seeds:
        chosen = [rows[i] for i in plumbing.prompts_of_step(1, count // args.samples, len(rows), seed)]
        batch, points, losses = looked(student, teacher, tokenizer, chosen, args, seed)
        found = topd.statistics(points)
        row = {f"median D, {k}": found[f"distance_{k}"][1] for k in ("high", "random", "low")}
        row |= {f"quartiles D, {k}": found[f"distance_{k}"] for k in ("high", "random", "low")}
        for k in ("pearson_high", "spearman_high", "pearson_pooled", "spearman_pooled", "high_below_low"):
            row[k] = found[k]
        # The detector against the truth. A fork is the one token at which a rollout leaves the truth.
        truth = [forks(chosen[i // args.samples], r, tokenizer) for i, r in enumerate(batch[1])]
        high = [p for p in points if p.kind == "high"]
        kept, _ = topd.divergent(high, args)
        by_loss = sorted(high, key=lambda p: -p.loss)[: len(kept)]
        total = sum(t is not None for t in truth)
        row["forks"] = total
        for name, of in (("candidates", high), ("divergent points", kept), ("as many by loss", by_loss)):
            hits = sum(truth[p.row] == p.t for p in of)
            row[f"precision, {name}"], row[f"recall, {name}"] = hits / len(of), hits / total
        row["AUC in candidates, D"] = auc([p.distance for p in high], [truth[p.row] == p.t for p in high])
        row["AUC in candidates, loss"] = auc([p.loss for p in high], [truth[p.row] == p.t for p in high])
        for K in (4, 8, 12, 16):
            wide = copy.copy(args)
            wide.window_size = K
            wide.micro_tokens = 4000
            part = chosen[: len(chosen) // 2]
            _, everywhere, _ = looked(student, teacher, tokenizer, part, wide, seed, everywhere=True)
            labels = [truth[p.row] == p.t for p in everywhere]
            row[f"AUC over all tokens, D, K = {K}"] = auc([p.distance for p in everywhere], labels)
            if K == 12:
                row["AUC over all tokens, loss"] = auc([p.loss for p in everywhere], labels)
                row["AUC over all tokens, loss x D"] = auc([p.loss * p.distance for p in everywhere], labels)
        per.append(row)
        print(f"seed {seed} done", file=sys.stderr)
    show(per, f"{count} rollouts a seed, {len(seeds)} seeds, K = {args.window_size}, student {student_path or 'toy/student'}")


def show(per, title):
    print(f"{title}; mean over seeds [95 % interval]")
    for key in per[0]:
        if isinstance(per[0][key], list):
            means = [sum(r[key][i] for r in per) / len(per) for i in range(3)]
            print(f"  {key:<38} {means[0]:.3f} / {means[1]:.3f} / {means[2]:.3f}")
        else:
            m, low, high = mean_interval([r[key] for r in per])
            print(f"  {key:<38} {m:.3f} [{low:.3f}, {high:.3f}]")


def overhead(seeds, runs, updates=20):
    """T8: whole updates of opd.py and of every way to run topd.py, in turn and in changing order, each on its own copy of the student,
    the default probes included. Ratios within one run: seconds alone would measure what else the machine did. Writes them
    into the folder of the runs, where they become the time axis of the arms."""
    _, teacher, tokenizer = load()
    rows = load_benchmark("toy", "train")
    for r in rows:
        r["ids"] = prompt_ids(tokenizer, r["prompt"])
    ends, vocabulary, per = set(eos_ids(teacher, tokenizer)), len(tokenizer), []
    for seed in seeds:
        models = {a: plumbing.load_model("toy/student", CPU, torch.float32) for a in ARMS}
        optimisers = {a: torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.0) for a, m in models.items()}
        clock, took, phases = plumbing.Clock(CPU), {a: [] for a in ARMS}, {}
        for step in range(1, updates + 4):
            order = list(ARMS)[step % len(ARMS) :] + list(ARMS)[: step % len(ARMS)]
            for arm in order:
                module = opd if ARMS[arm][0] == "opd.py" else topd
                flags = ["--data", "toy", "--seed", str(seed), *ARMS[arm][1:]]
                args = module.settle(plumbing.parse_arguments(module.Args, "", flags))
                model, optimiser, begun = models[arm], optimisers[arm], time.perf_counter()
                chosen = [rows[i] for i in plumbing.prompts_of_step(step, args.prompts, len(rows), seed)]
                clock.start()
                if module is opd:
                    with clock.phase("sample"):
                        batch = opd.rollouts(model, teacher, tokenizer, chosen, args, step)
                    opd.update(model, teacher, optimiser, batch, args, clock, plumbing.no_autocast, vocabulary)
                else:
                    with clock.phase("sample"):
                        batch = topd.rollouts(model, tokenizer, chosen, args, step)
                    topd.update(model, teacher, optimiser, batch, args, step, clock, plumbing.no_autocast, vocabulary, ends)
                if step > 3:  # the first ones warm caches
                    took[arm].append(time.perf_counter() - begun)
                    for k, v in clock.seconds.items():
                        phases.setdefault((arm, k), []).append(v)
        row = {f"{a}, seconds an update (median)": st.median(took[a]) for a in ARMS}
        row |= {f"{a} / OPD, medians": st.median(took[a]) / st.median(took["OPD"]) for a in ARMS if a != "OPD"}
        row["TOPD / OPD, sums, probes included"] = sum(took["TOPD"]) / sum(took["OPD"])
        row |= {f"{a}, {k} (median)": st.median(v) for (a, k), v in sorted(phases.items()) if a in ("OPD", "TOPD")}
        per.append(row)
        print(f"seed {seed} done", file=sys.stderr)
    show(per, f"T8, {updates} updates a seed in turn, {torch.get_num_threads()} thread(s)")
    costs = {a: sum(r.get(f"{a} / OPD, medians", 1.0) for r in per) / len(per) for a in ARMS}
    plumbing.write_json(plumbing.make_folder(runs) / "costs.json", costs)


def regenerate(model, teacher, prefix, theirs, K, ends, vocabulary, key, count):
    """`count` windows that the model samples after a prefix, as points beside the teacher's window, distances filled in."""
    hidden, cache = topd.read(model, torch.tensor([prefix]), count * K)
    draws = torch.stack([uniforms((*key, i), K) for i in range(count)])
    ours, _ = topd.continuations(model, hidden, cache, [(0, len(prefix))] * count, K, ends, vocabulary, vocabulary, draws)
    points = [topd.Point(0, 0, 0.0, teacher=theirs, student=w) for w in ours]
    topd.measure(points, teacher)
    return points


def local(seeds, count, updates=5, regenerations=8):
    """T6, the paper's second experiment: at one divergent point the student is updated a few times on that very prefix, each time on a
    window sampled anew; D of its windows to the teacher's before and after. "no update" only samples anew: a point was
    chosen for its high D, so D falls by itself."""
    student, teacher, tokenizer = load()
    vocabulary, ends = len(tokenizer), set(eos_ids(teacher, tokenizer))
    args = topd.settle(plumbing.parse_arguments(topd.Args, "", ["--data", "toy"]))
    rows = load_benchmark("toy", "test")
    for r in rows:
        r["ids"] = prompt_ids(tokenizer, r["prompt"])
    weights, per = {"OPD": 0.0, "OPD + 0.1 L_traj": 0.1, "OPD + 1.0 L_traj": 1.0}, []
    for seed in seeds:
        chosen = [rows[i] for i in plumbing.prompts_of_step(1, 32, len(rows), seed)]
        (prompts, responses, _), points, _ = looked(student, teacher, tokenizer, chosen, args, seed)
        kept, _ = topd.divergent([p for p in points if p.kind == "high"], args)
        order = uniforms(("local", seed), len(kept)).argsort()[:count].tolist()
        found = {"at selection": [kept[i].distance for i in order]}
        for n, p in enumerate(kept[i] for i in order):
            prefix, theirs = prompts[p.row] + responses[p.row][: p.t], p.teacher

            def mean_distance(model, name, prefix=prefix, theirs=theirs, n=n, seed=seed):
                with torch.no_grad():
                    after = regenerate(
                        model, teacher, prefix, theirs, args.window_size, ends, vocabulary, (name, seed, n), regenerations
                    )
                return sum(x.distance for x in after) / len(after)

            found.setdefault("no update", []).append(mean_distance(student, "before"))
            for arm, weight in weights.items():
                model = copy.deepcopy(student)
                optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
                for m in range(updates):
                    with torch.no_grad():
                        windows = regenerate(
                            model, teacher, prefix, theirs, args.window_size, ends, vocabulary, ("train", seed, n, m), 1
                        )
                        topd.soft_targets(windows, args)
                    ids, predicts, _ = plumbing.pack([prefix], [windows[0].student], CPU)
                    entries = topd.sparse_targets(windows, [0], CPU)
                    with torch.no_grad():
                        teacher_hidden = plumbing.states(teacher, ids, predicts)
                    hidden = plumbing.states(model, ids, predicts)
                    ones = torch.ones(len(hidden))
                    opd_sum, guided, _ = topd.chunked_loss(
                        model, teacher, hidden, teacher_hidden, ones, entries, vocabulary, len(hidden)
                    )
                    (opd_sum / len(hidden) + weight * guided).backward()
                    plumbing.clip_and_step(model, optimiser, clip=1.0)
                found.setdefault(arm, []).append(mean_distance(model, "after"))
        means = {f"mean D, {k}": sum(v) / len(v) for k, v in found.items()}
        for arm in weights:
            means[f"{arm} - OPD"] = (sum(found[arm]) - sum(found["OPD"])) / len(found["OPD"])
        means.pop("OPD - OPD")
        per.append(means)
        print(f"seed {seed} done", file=sys.stderr)
    show(
        per,
        f"T6, {count} divergent points a seed, {updates} updates each, {regenerations} windows before and after, {len(seeds)} seeds",
    )


# ============================================================================================ main


def main():
    if sys.argv[1:2] == ["control"]:
        for name, function in SWAPS[sys.argv[2]].items():
            setattr(topd, name, function)
        plumbing.run(lambda: topd.main(sys.argv[3:]))
        return
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["claims", "overhead", "local", "arms", "controls", "control"])
    p.add_argument("--seeds", type=int, default=5, help="seeds 0 .. n-1 (default 5)")
    p.add_argument("--rollouts", type=int, default=512, help="of claims, a seed (default 512)")
    p.add_argument("--points", type=int, default=60, help="of local, a seed (default 60)")
    p.add_argument("--student", help="of claims: another student than toy/student")
    p.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each (default 1)")
    p.add_argument("--only", help='of arms: some of them, as in --only "OPD,TOPD" (default: all)')
    p.add_argument("--limit", type=int, default=1000, help="problems of the final evaluations (default 1000 each)")
    p.add_argument("--runs", default="runs/topd-toy", help="folder of the runs (default runs/topd-toy)")
    args = p.parse_args()
    torch.set_num_threads(1)
    seeds = list(range(args.seeds))
    if args.what == "claims":
        claims(seeds, args.rollouts, args.student)
    if args.what in ("claims", "overhead") and not args.student:
        overhead(seeds[:3], args.runs)
    if args.what == "local":
        local(seeds, args.points)
    if args.what in ("arms", "controls"):
        arms = ARMS if args.what == "arms" else {"OPD": ARMS["OPD"], **CONTROLS}
        if args.only:
            plumbing.require(set(args.only.split(",")) <= set(arms), f"--only {args.only}: the arms are {', '.join(arms)}.")
            arms = {a: c for a, c in arms.items() if a in args.only.split(",")}
        run_all(arms, seeds, args.runs, args.jobs, args.limit)
        costs = Path(args.runs) / "costs.json"
        if not costs.exists():
            overhead(seeds[:3], args.runs)
        costs = plumbing.read_json(costs, "")
        print(table(args.runs, arms, seeds, "OPD", costs))
        name = "topd-toy.png" if args.what == "arms" else "topd-controls-toy.png"
        name = name.replace("toy", "toy-some") if args.only else name
        title = "TOPD on the toy" if args.what == "arms" else "TOPD's controls on the toy"
        picture(args.runs, arms, seeds, "OPD", ROOT / "benchmarks" / name, f"{title}, {len(seeds)} seeds", costs)
        print(f"picture: benchmarks/{name}")


if __name__ == "__main__":
    plumbing.run(main)
