"""The paper's claims about TOPD on the toy, with intervals over seeds, and the controls
that the paper lacks. T1, T2 and so on are the claims, see benchmarks/README.md.

    python benchmarks/topd_toy.py claims
        T1, T2, T3, D as a detector of the true forks, and T8; minutes
    python benchmarks/topd_toy.py overhead
        T8 alone, on a machine that does nothing else
    python benchmarks/topd_toy.py local
        T6: does D fall after a few updates at one point? minutes
    python benchmarks/topd_toy.py arms --jobs 2
        OPD, suppress low, suppress high, TOPD: table and picture; an hour
    python benchmarks/topd_toy.py controls --jobs 2
        which part of TOPD has the effect? hours
    python benchmarks/topd_toy.py control shuffled --seed 0 --out runs/x
        one run of one control

A control replaces one function of topd.py and nothing else. So it also shows how to change
the method without copying it.
"""

import contextlib
import copy
import statistics as st
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from arms import ROOT, picture, run_all, table
from scipy.stats import pearsonr, spearmanr

import opd
import topd
from common.arguments import Parser, require, run_script
from common.batches import Collected, Compute, log_probabilities, prompts_of_step, states
from common.data import load_benchmark, prompt_ids
from common.diagnostics import auc, quartiles, token_at
from common.evaluation import mean_interval
from common.files import make_folder, read_json, write_json
from common.flags import parse
from common.models import load_model, load_tokenizer
from common.sampler import sample, uniforms
from common.weights import adamw
from toy import world

CPU = torch.device("cpu")

# ======================================================================== arms and controls

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


def comparison(losses, count, args, key):
    """As many positions at random, and as many of the lowest loss, for a comparison."""
    room = max(0, int(len(losses) - args.window_size / 2) + 1)  # half a window must be left
    random = uniforms(key, room).argsort()[:count].tolist()
    lowest = losses[:room].topk(min(count, room), largest=False).indices.tolist()
    return sorted(random), sorted(lowest)


def random_positions(losses, args):
    """As many positions as there would be candidates, anywhere in the rollout."""
    count = len(ORIGINAL["candidates"](losses, args))
    key = ("random positions", args.seed, round(losses.sum().item(), 4))
    return comparison(losses, count, args, key)[0]


def positional_plan(costs, epsilon):
    """The identity: position i learns the teacher's token i, whatever stands there."""
    return [torch.eye(len(c)) / len(c) for c in costs]


def shuffled_plan(costs, epsilon):
    """The true plan with the teacher's positions in random order: the same weights, on the
    wrong tokens."""
    generator = torch.Generator().manual_seed(round(sum(c.sum().item() for c in costs) * 1e4))
    plans = ORIGINAL["sinkhorn"](costs, epsilon)
    return [plan[torch.randperm(len(plan), generator=generator)] for plan in plans]


def self_targets(points, args):
    """The student's own tokens as its target. This sharpens it, without a teacher."""
    for p in points:
        p.teacher, p.weights = p.student, torch.eye(len(p.student))


def forcing_update(student, teacher, optimizer, batch, args, step, compute):
    """Cross-entropy on the teacher's window in the TEACHER's context: ordinary distillation
    on a few windows. topd.py has (8) only in the student's context, so this is an update of
    its own.

    It computes the gradient of its own L_traj. Then `topd.update` without guidance adds the
    gradient of L_OPD to it, clips the sum and makes the step.
    """
    prompts, responses = batch
    points, losses, _ = topd.look_ahead(student, teacher, batch, args, compute)
    kept, _ = topd.divergent(points, args)
    before = [prompts[p.row] + responses[p.row][: p.t] for p in kept]  # x, y_<t
    windows = [p.teacher for p in kept]
    lengths, collected = torch.tensor([len(w) for w in windows]), Collected(windows)

    def loss_of_positions(hidden, targets, length):
        logp = log_probabilities(student, hidden)  # [n, V]
        loss = -logp.gather(1, targets[:, None]).squeeze(1)  # [n]
        return (loss / length).sum(), loss.detach()  # the mean over the tokens of a window

    student.train()
    for chosen in compute.micro_batches(before, windows):
        ids, predicts, targets = compute.pack(before, windows, chosen)
        length = compute.per_token(lengths, windows, chosen)  # [N]
        with compute.phase("student"):
            with compute.autocast():
                hidden = states(student, ids, predicts)  # [N, width]
                traj, stats = compute.in_chunks(loss_of_positions, hidden, targets, length)
            compute.backward(args.lam / len(kept) * traj)  # (9): lambda and the mean over d
        collected.add(chosen, stats, traj.item())
    _, *traj = collected.everyone()
    traj = sum(traj) / max(1, len(kept))
    unguided = changed(args, guidance="off")
    metrics, *_ = ORIGINAL["update"](student, teacher, optimizer, batch, unguided, step, compute)
    for p in kept:
        p.weights = torch.eye(len(p.teacher))  # a point with weights is shown as a divergent one
    metrics |= {"traj": traj, "loss": metrics["opd"] + args.lam * traj}
    return metrics, losses, points


SWAPS = {
    "random": {"candidates": random_positions},
    "positional": {"sinkhorn": positional_plan},
    "shuffled": {"sinkhorn": shuffled_plan},
    "self": {"soft_targets": self_targets},
    "forcing": {"update": forcing_update},
}
ORIGINAL = {name: getattr(topd, name) for swap in SWAPS.values() for name in swap}


@contextlib.contextmanager
def swapped(**functions):
    """Inside of the block, functions of topd.py are replaced."""
    before = {name: getattr(topd, name) for name in functions}
    for name, function in functions.items():
        setattr(topd, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(topd, name, function)


# ======================================================================== what all share


def load(student="toy/student"):
    tokenizer = load_tokenizer("toy/student")
    student = load_model(student, CPU, torch.float32, tokenizer)
    teacher = load_model("toy/teacher", CPU, torch.float32, tokenizer).requires_grad_(False)
    return student, teacher, tokenizer


def rows_with_ids(split, tokenizer):
    rows = load_benchmark("toy", split)
    for row in rows:
        row["ids"] = prompt_ids(tokenizer, row["prompt"])
    return rows


def settings(module, *flags):
    """The flags of a method, as its command line would give them."""
    return module.check(parse(module.Args, "", ["--data", "toy", *flags], module.__name__))


def changed(args, **values):
    """A copy of the flags with other values."""
    args = copy.copy(args)
    for name, value in values.items():
        setattr(args, name, value)
    return args


def show(per_seed, title):
    print(f"{title}; mean over seeds [95 % interval]")
    for key in per_seed[0]:
        values = [numbers[key] for numbers in per_seed]
        if isinstance(values[0], list):  # three quartiles
            means = [sum(v[i] for v in values) / len(values) for i in range(3)]
            print(f"  {key:<38} {' / '.join(f'{m:.3f}' for m in means)}")
        else:
            m, low, high = mean_interval(values)
            print(f"  {key:<38} {m:.3f} [{low:.3f}, {high:.3f}]")


# ======================================================================== claims


def look_at(student, teacher, batch, args, positions):
    """The points of a batch at other positions than topd.py's candidates.

    positions(i, losses): those of rollout i.
    """
    compute = Compute(args, CPU, torch.float32, student.vocabulary)
    # look_ahead asks for the candidates of one rollout after the other, in this order.
    numbers = iter([i for chosen in compute.micro_batches(*batch) for i in chosen])
    with swapped(candidates=lambda losses, _: positions(next(numbers), losses)):
        points, _, _ = topd.look_ahead(student, teacher, batch, args, compute)
    return points


def look_at_classes(student, teacher, batch, args):
    """{class: points} for three classes of positions: high (the candidates), random and low
    loss. A position of two classes has one point in both."""
    positions = {}

    def of_all_classes(i, losses):
        high = ORIGINAL["candidates"](losses, args)
        key = ("probe", args.seed, 1, i, args.window_size)
        positions[i] = high, *comparison(losses, len(high), args, key)
        return sorted(set().union(*positions[i]))

    points = look_at(student, teacher, batch, args, of_all_classes)
    at = {(p.row, p.t): p for p in points}
    return {
        name: [at[i, t] for i in sorted(positions) for t in positions[i][k]]
        for k, name in enumerate(("high", "random", "low"))
    }


def look_everywhere(student, teacher, batch, args):
    """Points at all positions that have half a window left."""

    def all_positions(i, losses):
        return list(range(max(0, int(len(losses) - args.window_size / 2) + 1)))

    return look_at(student, teacher, batch, args, all_positions)


def statistics_of_distances(classes):
    """T1, T2 and T3: D in each class of positions, D against the loss, and the share of
    high-loss positions that D calls false alarms."""
    found = {name: quartiles([p.distance for p in points]) for name, points in classes.items()}
    numbers = {f"median D, {name}": three[1] for name, three in found.items()}
    numbers |= {f"quartiles D, {name}": three for name, three in found.items()}
    pooled = sum(classes.values(), [])
    for name, points in (("high", classes["high"]), ("pooled", pooled)):
        pairs = [p.loss for p in points], [p.distance for p in points]
        numbers[f"pearson_{name}"] = float(pearsonr(*pairs).statistic)
        numbers[f"spearman_{name}"] = float(spearmanr(*pairs).statistic)
    upper = found["low"][2]
    below = [p.distance < upper for p in classes["high"]]
    return numbers | {"high_below_low": sum(below) / len(below)}


def fork(row, ids, tokenizer):
    """The number of the token at which a rollout leaves the truth, or None if it never
    does. The toy's checker knows it."""
    wrong = world.check(row["problem"], tokenizer.decode(ids)).first_wrong
    return None if wrong is None else token_at(tokenizer, ids, wrong.wrong_at)


def statistics_of_forks(candidates, forks, args):
    """D as a detector: how many candidates and divergent points are forks, and how many
    forks are among them. forks: the position in each rollout, or None."""
    kept, _ = topd.divergent(candidates, args)
    by_loss = sorted(candidates, key=lambda p: -p.loss)[: len(kept)]
    total = sum(t is not None for t in forks)
    numbers = {"forks": total}
    groups = {"candidates": candidates, "divergent points": kept, "as many by loss": by_loss}
    for name, points in groups.items():
        hits = sum(forks[p.row] == p.t for p in points)
        numbers[f"precision, {name}"] = hits / len(points)
        numbers[f"recall, {name}"] = hits / total
    labels = [forks[p.row] == p.t for p in candidates]
    numbers["AUC in candidates, D"] = auc([p.distance for p in candidates], labels)
    numbers["AUC in candidates, loss"] = auc([p.loss for p in candidates], labels)
    return numbers


def claims(seeds, count, student_path):
    student, teacher, tokenizer = load(student_path or "toy/student")
    args = settings(topd, "--micro_tokens", "8000")
    rows, per_seed = rows_with_ids("test", tokenizer), []
    for seed in seeds:
        args.seed, questions = seed, count // args.samples
        chosen = [rows[i] for i in prompts_of_step(1, questions, len(rows), seed)]
        batch = topd.rollouts(student, chosen, args, 1)
        classes = look_at_classes(student, teacher, batch, args)
        forks = [fork(chosen[i // args.samples], r, tokenizer) for i, r in enumerate(batch[1])]
        numbers = statistics_of_distances(classes)
        numbers |= statistics_of_forks(classes["high"], forks, args)
        # D at all tokens takes long, so half of the rollouts are enough.
        part = [x[: len(chosen) // 2 * args.samples] for x in batch]
        for K in (4, 8, 12, 16):
            wide = changed(args, window_size=K, micro_tokens=4000)
            points = look_everywhere(student, teacher, part, wide)
            labels = [forks[p.row] == p.t for p in points]
            distances, name = [p.distance for p in points], "AUC over all tokens"
            numbers[f"{name}, D, K = {K}"] = auc(distances, labels)
            if K == 12:
                numbers[f"{name}, loss"] = auc([p.loss for p in points], labels)
                numbers[f"{name}, loss x D"] = auc([p.loss * p.distance for p in points], labels)
        per_seed.append(numbers)
        print(f"seed {seed} done", file=sys.stderr)
    show(
        per_seed,
        f"{count} rollouts per seed, {len(seeds)} seeds, K = {args.window_size}, "
        f"student {student_path or 'toy/student'}",
    )


# ======================================================================== T8: time of an update


def updater(arm, seed, teacher, tokenizer, rows):
    """A function of the step that makes one update of an arm, on a student of its own. It
    returns the seconds of the update and of its phases."""
    module = opd if ARMS[arm][0] == "opd.py" else topd
    args = settings(module, "--seed", str(seed), *ARMS[arm][1:])
    student = load_model("toy/student", CPU, torch.float32, tokenizer)
    optimizer = adamw(student, args.lr)
    compute = Compute(args, CPU, torch.float32, len(tokenizer))

    def one(step):
        began = time.perf_counter()
        chosen = [rows[i] for i in prompts_of_step(step, args.prompts, len(rows), seed)]
        compute.clock.start()
        with compute.phase("sample"):
            if module is opd:
                batch = opd.rollouts(student, tokenizer, chosen, args, step)
            else:
                batch = topd.rollouts(student, chosen, args, step)
        if module is opd:
            opd.update(student, teacher, optimizer, batch, args, compute)
        else:
            topd.update(student, teacher, optimizer, batch, args, step, compute)
        return time.perf_counter() - began, compute.clock.seconds

    return one


def overhead(seeds, runs, updates=20):
    """T8: the arms make whole updates in turn, in changing order, on their own students.

    The ratios are taken within one run: seconds alone would also measure what else the
    machine does. They are written into the folder of the runs, and become the time axis of
    the arms.
    """
    _, teacher, tokenizer = load()
    rows, names, per_seed = rows_with_ids("train", tokenizer), list(ARMS), []
    for seed in seeds:
        update_of = {arm: updater(arm, seed, teacher, tokenizer, rows) for arm in names}
        took, phases = {arm: [] for arm in names}, {}
        for step in range(1, updates + 4):
            first = step % len(names)
            for arm in names[first:] + names[:first]:
                seconds, seconds_of_phases = update_of[arm](step)
                if step <= 3:  # these only warm up
                    continue
                took[arm].append(seconds)
                for phase, s in seconds_of_phases.items():
                    phases.setdefault((arm, phase), []).append(s)
        medians = {arm: st.median(t) for arm, t in took.items()}
        numbers = {f"{arm}, seconds per update (median)": m for arm, m in medians.items()}
        for arm in names[1:]:
            numbers[f"{arm} / OPD, medians"] = medians[arm] / medians["OPD"]
        numbers["TOPD / OPD, sums"] = sum(took["TOPD"]) / sum(took["OPD"])
        for (arm, phase), seconds in sorted(phases.items()):
            if arm in ("OPD", "TOPD"):
                numbers[f"{arm}, {phase} (median)"] = st.median(seconds)
        per_seed.append(numbers)
        print(f"seed {seed} done", file=sys.stderr)
    threads = torch.get_num_threads()
    show(per_seed, f"T8, {updates} updates per seed in turn, {threads} thread(s)")
    costs = {"OPD": 1.0}
    for arm in names[1:]:
        costs[arm] = sum(n[f"{arm} / OPD, medians"] for n in per_seed) / len(per_seed)
    write_json(make_folder(runs) / "costs.json", costs)


# ======================================================================== T6: one point


@dataclass
class OnePrefix:
    """One divergent point: the student writes windows after its prefix, and learns there.

    The windows are rollouts of their own, and their only candidate is position 0. So
    topd.py's `look_ahead` and `update` do the rest.
    """

    prefix: list  # token ids of the prompt and y_<t
    teacher: torch.nn.Module
    args: topd.Args

    def write(self, model, key, count):
        """(prompts, responses): `count` windows that the model samples after the prefix."""
        keys = [(*key, i) for i in range(count)]
        drawn = sample(
            model, [self.prefix], n=count, max_new_tokens=self.args.window_size, keys=keys
        )
        return [self.prefix] * count, [c.ids for c in drawn]

    def mean_distance(self, model, key, count):
        """Mean D of `count` windows to the teacher's window."""
        batch = self.write(model, key, count)
        points = look_at(model, self.teacher, batch, self.args, lambda *_: [0])
        return sum(p.distance for p in points) / len(points)

    def train(self, student, lam, key, updates):
        """A copy of the student after so many updates, each on one new window."""
        model, args = copy.deepcopy(student), changed(self.args, lam=lam, drop_share=0.0)
        optimizer = adamw(model, args.lr)
        compute = Compute(args, CPU, torch.float32, model.vocabulary)
        for m in range(updates):
            batch = self.write(model, (*key, m), 1)
            with swapped(candidates=lambda *_: [0]):
                topd.update(model, self.teacher, optimizer, batch, args, m, compute)
        return model


def local(seeds, count, updates=5, windows=8):
    """T6, the paper's second experiment. At one divergent point the student makes a few
    updates on that prefix, each on a window that it samples anew. D of its windows to the
    teacher's window is measured before and after.

    "no update" only samples anew. A point was chosen for its high D, so D falls by itself.
    """
    student, teacher, tokenizer = load()
    args, rows = settings(topd), rows_with_ids("test", tokenizer)
    weights, per_seed = {"OPD": 0.0, "OPD + 0.1 L_traj": 0.1, "OPD + 1.0 L_traj": 1.0}, []
    for seed in seeds:
        args.seed = seed
        chosen = [rows[i] for i in prompts_of_step(1, 32, len(rows), seed)]
        prompts, responses = topd.rollouts(student, chosen, args, 1)
        compute = Compute(args, CPU, torch.float32, student.vocabulary)
        batch = prompts, responses
        candidates, _, _ = topd.look_ahead(student, teacher, batch, args, compute)
        kept, _ = topd.divergent(candidates, args)
        order = uniforms(("local", seed), len(kept)).argsort()[:count].tolist()
        found = {"at selection": [kept[i].distance for i in order], "no update": []}
        for n, p in enumerate(kept[i] for i in order):
            point = OnePrefix(prompts[p.row] + responses[p.row][: p.t], teacher, args)
            unchanged = point.mean_distance(student, ("before", seed, n), windows)
            found["no update"].append(unchanged)
            for arm, lam in weights.items():
                model = point.train(student, lam, ("train", seed, n), updates)
                distance = point.mean_distance(model, ("after", seed, n), windows)
                found.setdefault(arm, []).append(distance)
        numbers = {f"mean D, {name}": sum(v) / len(v) for name, v in found.items()}
        for arm in list(weights)[1:]:
            numbers[f"{arm} - OPD"] = numbers[f"mean D, {arm}"] - numbers["mean D, OPD"]
        per_seed.append(numbers)
        print(f"seed {seed} done", file=sys.stderr)
    show(
        per_seed,
        f"T6, {count} divergent points per seed, {updates} updates each, {windows} windows before "
        f"and after, {len(seeds)} seeds",
    )


# ======================================================================== main


def compare(args, seeds):
    """The arms or the controls: runs, table and picture."""
    controls = args.what == "controls"
    arms = {"OPD": ARMS["OPD"], **CONTROLS} if controls else ARMS
    if args.only:
        names = args.only.split(",")
        require(set(names) <= set(arms), f"--only {args.only}: the arms are {', '.join(arms)}.")
        arms = {name: arms[name] for name in arms if name in names}
    run_all(arms, seeds, args.runs, args.jobs, args.limit)
    costs = Path(args.runs) / "costs.json"
    if not costs.exists():
        overhead(seeds[:3], args.runs)
    costs = read_json(costs)
    print(table(args.runs, arms, seeds, "OPD", costs))
    name = f"topd-{'controls-' if controls else ''}toy{'-some' if args.only else ''}.png"
    title = f"{'The controls of TOPD' if controls else 'TOPD'} on the toy, {len(seeds)} seeds"
    picture(args.runs, arms, seeds, "OPD", ROOT / "benchmarks" / name, title, costs)
    print(f"picture: benchmarks/{name}")


def main():
    if sys.argv[1:2] == ["control"]:
        require(
            len(sys.argv) > 2 and sys.argv[2] in SWAPS,
            f"A control needs its name: {', '.join(SWAPS)}.",
        )
        with swapped(**SWAPS[sys.argv[2]]):
            topd.main(sys.argv[3:])
        return
    p = Parser(__doc__)
    kinds = ["claims", "overhead", "local", "arms", "controls", "control"]
    p.add_argument("what", choices=kinds)
    p.add_argument("--seeds", type=int, default=5, help="seeds 0 .. n-1 (default 5)")
    p.add_argument("--rollouts", type=int, default=512, help="of claims, per seed (default 512)")
    p.add_argument("--points", type=int, default=60, help="of local, per seed (default 60)")
    p.add_argument("--student", help="of claims: another student than toy/student")
    p.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, one thread each (default 1)"
    )
    p.add_argument("--only", help='of arms: some of them, as in --only "OPD,TOPD" (default: all)')
    p.add_argument(
        "--limit",
        type=int,
        default=1000,
        help="problems of the final evaluations (default 1000 each)",
    )
    p.add_argument(
        "--runs", default="runs/topd-toy", help="folder of the runs (default runs/topd-toy)"
    )
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
        compare(args, seeds)


if __name__ == "__main__":
    run_script(main)
