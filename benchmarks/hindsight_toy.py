"""The paper's claims about HSD on the toy, with intervals over seeds, and the controls that
the paper lacks. H1, H2 and so on are the claims, see benchmarks/README.md.

    python benchmarks/hindsight_toy.py credit
        H1, H2, H3: where credit falls, and whether that place is to blame; minutes, and a
        picture
    python benchmarks/hindsight_toy.py overhead
        H10: the time of an update of every arm over GRPO's, on a quiet machine; minutes
    python benchmarks/hindsight_toy.py arms --jobs 2
        GRPO, DAPO, answer only, SDPO's choices, GRPO + answer, HSD: tables, picture; hours
    python benchmarks/hindsight_toy.py controls --jobs 2
        which part of HSD has the effect? hours
    python benchmarks/hindsight_toy.py control wrong --seed 0 --out runs/x
        one run of one control

A control replaces one function of hindsight_sd.py and nothing else. So it also shows how to
change the method without copying it.
"""

import statistics as st
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from arms import (
    ROOT,
    as_percent,
    courses,
    differences,
    entropy,
    final,
    folder,
    line,
    picture,
    run_all,
    table,
)

import grpo
import hindsight_sd
from common import credit
from common.arguments import Parser, require, run_script
from common.batches import Compute, prompts_of_step
from common.data import load_benchmark, privileged_prompt, prompt_ids
from common.diagnostics import auc, token_at
from common.evaluation import mean_interval
from common.files import make_folder, read_json, read_jsonl, write_json
from common.flags import parse
from common.models import load_model, load_tokenizer
from common.sampler import uniforms
from common.weights import adamw, copy_of
from toy import world

CPU = torch.device("cpu")

# ======================================================================== arms and controls

# The learning rates: of 3e-5, 1e-4 and 3e-4 the largest one with which an arm does not lose
# accuracy within 60 updates on seed 99, which is not among the seeds below
# (benchmarks/README.md has these pilots). The arms that have the current model as their
# teacher need the smallest.
ARMS = {
    "GRPO": ["grpo.py"],
    "DAPO": ["grpo.py", "--variant", "dapo"],
    "answer only": ["hindsight_sd.py", "--context", "answer"],
    "SDPO's choices": [
        *("hindsight_sd.py", "--divergence", "jsd", "--teacher", "ema"),
        *("--fallback", "mask", "--lr", "3e-4"),
    ],
    "GRPO + answer": ["hindsight_sd.py", "--context", "answer", "--rl_weight", "0.5"],
    "HSD": ["hindsight_sd.py"],
}
HERE = "benchmarks/hindsight_toy.py"
CONTROLS = {
    "HSD": ["hindsight_sd.py"],
    "failures only": ["hindsight_sd.py", "--train", "failures"],
    "wrong peer": [HERE, "control", "wrong"],
    "other question's peer": [HERE, "control", "other"],
    "peer without answer": [HERE, "control", "no_answer"],
    "no fallback": ["hindsight_sd.py", "--fallback", "mask"],
    "shortest peer": ["hindsight_sd.py", "--peer", "shortest"],
    "lowest perplexity": ["hindsight_sd.py", "--peer", "low_ppl"],
    "highest perplexity": ["hindsight_sd.py", "--peer", "high_ppl"],
    "worked solution": ["hindsight_sd.py", "--context", "reference"],
    "EMA teacher": ["hindsight_sd.py", "--teacher", "ema"],
    "frozen teacher": ["hindsight_sd.py", "--teacher", "frozen"],
    "reverse KL": ["hindsight_sd.py", "--divergence", "reverse"],
    "beta 0": ["hindsight_sd.py", "--beta", "0"],
    "beta 0.1": ["hindsight_sd.py", "--beta", "0.1"],
}
EVALUATIONS = {
    "test": "toy",
    "heldout": "toy-heldout",
    "sampled": "toy --n 8 --temperature 1 --k 8 --limit 250",
}


def wrong_peer(i, right, scores, rule, key):
    """A FAILED other rollout as the peer, with the right answer beside it."""
    others = [j for j, ok in enumerate(right) if not ok and j != i]
    return others[int(uniforms(("peer", *key), 1).item() * len(others))] if others else None


def other_contexts(rows, drawn, tokenizer, args, step):
    """Where a rollout would see a peer, it sees a successful rollout of ANOTHER question of
    the batch, beside the right answer to its own question."""
    contexts = ORIGINAL["build_contexts"](rows, drawn, tokenizer, args, step)
    G = args.samples
    texts, _ = hindsight_sd.verdicts(tokenizer, rows, drawn, G)
    prompts = list(contexts.prompts)
    for i, peer in enumerate(contexts.peers):
        strangers = [j for j, ok in enumerate(contexts.right) if ok and j // G != i // G]
        if peer is not None and strangers:
            draw = uniforms(("stranger", args.seed, step, i), 1).item()
            text = texts[strangers[int(draw * len(strangers))]]
            user = privileged_prompt(rows[i // G]["prompt"], text, rows[i // G]["answer"])
            prompts[i] = prompt_ids(tokenizer, user)
    return replace(contexts, prompts=prompts)


def context_without_answer(row, peer, args):
    if peer is None:
        return ORIGINAL["context"](row, peer, args)
    return privileged_prompt(row["prompt"], peer)


SWAPS = {
    "wrong": {"choose_peer": wrong_peer},
    "other": {"build_contexts": other_contexts},
    "no_answer": {"context": context_without_answer},
}
ORIGINAL = {name: getattr(hindsight_sd, name) for swap in SWAPS.values() for name in swap}

# ======================================================================== what all share


def load():
    tokenizer = load_tokenizer("toy/reader")
    return load_model("toy/reader", CPU, torch.float32, tokenizer), tokenizer


def rows_with_ids(split, tokenizer):
    rows = load_benchmark("toy", split)
    for row in rows:
        row["ids"] = prompt_ids(tokenizer, row["prompt"])
    return rows


def settings(module, *flags):
    """The flags of a method, as its command line would give them."""
    return module.check(parse(module.Args, "", ["--data", "toy", *flags], module.__name__))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def show(per_seed, title):
    print(f"\n{title}; mean over {len(per_seed)} seeds [95 % interval]")
    for key in per_seed[0]:
        known = [numbers[key] for numbers in per_seed if numbers[key] == numbers[key]]  # not NaN
        m, low, high = mean_interval(known)
        print(f"  {key:<66} {m:.3f} [{low:.3f}, {high:.3f}]")


# ======================================================================== where credit falls


def credits(seeds, questions):
    """H1, H2 and H3 before any training, and the picture of the profiles."""
    student, tokenizer = load()
    args, tests = settings(hindsight_sd), rows_with_ids("test", tokenizer)
    per_seed, all_found, all_mistaken = [], [], []
    for seed in seeds:
        args.seed = seed
        rows = [tests[i] for i in prompts_of_step(1, questions, len(tests), seed)]
        drawn = hindsight_sd.rollouts(student, rows, args, 1)
        contexts = hindsight_sd.build_contexts(rows, drawn, tokenizer, args, 1)
        failed = credit.failures(drawn, contexts.right, contexts.peers, args.samples)
        found = credit.credits(student, student, tokenizer, rows, failed)
        mistaken = at_first_mistakes(found, failed, rows, tokenizer)
        all_found += found
        all_mistaken += mistaken
        numbers = {"failing rollouts with a peer": float(len(failed))}
        numbers |= at_divergence(found)
        numbers |= is_it_to_blame(student, tokenizer, rows, failed, found, seed)
        numbers |= at_mistake(mistaken)
        numbers |= coverages(student, tokenizer, rows[:40], args)
        per_seed.append(numbers)
        print(f"seed {seed} done", file=sys.stderr)
    size = f"{questions} questions x {args.samples} rollouts per seed"
    show(per_seed, f"toy/reader before any training, {size}")
    draw_profiles(all_found, all_mistaken, ROOT / "benchmarks" / "hindsight-credit-toy.png")
    print("picture: benchmarks/hindsight-credit-toy.png")


def at_divergence(found):
    """H1 and H2: the size of the credit, and how much of it lies near the divergence."""
    numbers, contexts = {}, ("peer", "answer", "copying")
    for name in ("peer", "answer"):
        sizes = torch.cat([f["credit"][name].abs() for f in found])
        numbers[f"H1: mean |A|, {name}"] = sizes.mean().item()
    for name in contexts:
        for width in (2, 4, 8, 16, 32):
            key = f"H2: share of |A| within {width} tokens of the divergence, {name}"
            numbers[key] = credit.share_within(found, name, width)
    for name in contexts:
        at = [f["credit"][name][f["tau"]].item() for f in found]
        numbers[f"at the divergence: mean |A|, {name}"] = mean(map(abs, at))
        numbers[f"at the divergence: share of A below 0, {name}"] = mean(a < 0 for a in at)
    for name in ("student", "answer", "peer"):
        key = f"at the divergence: mass on the peer's token, {name}"
        numbers[key] = mean(f["there"][name] for f in found)
    return numbers


def is_it_to_blame(student, tokenizer, rows, failed, found, seed):
    """Is the token at the divergence the cause of the failure? The student goes on from its
    own token and from the peer's token there."""
    own, peers = credit.continuations(student, tokenizer, rows, failed, n=8, seed=seed)
    blame = [b - a >= 0.25 for a, b in zip(own, peers)]
    sizes = [f["credit"]["peer"][f["tau"]].abs().item() for f in found]
    return {
        "causal? success going on with its own token": mean(own),
        "causal? success going on with the peer's token": mean(peers),
        "causal? the peer's token is better by a quarter and more": mean(blame),
        "causal? AUC of |A| at the divergence for that": auc(sizes, blame),
    }


def at_first_mistakes(found, failed, rows, tokenizer):
    """The same credit with tau at the first mistake, which the toy's checker knows.
    `divergence` keeps the old tau."""
    moved = []
    for f, (q, ids, *_) in zip(found, failed):
        wrong = world.check(rows[q]["problem"], tokenizer.decode(ids)).first_wrong
        if wrong is not None and wrong.wrong_at >= 0:
            at = token_at(tokenizer, ids, wrong.wrong_at)
            moved.append({**f, "tau": at, "divergence": f["tau"]})
    return moved


def at_mistake(mistaken):
    """Where the first mistakes are, and how much credit falls there."""
    gaps = [m["tau"] - m["divergence"] for m in mistaken]
    numbers = {
        "the first mistake stands at the divergence": mean(gap == 0 for gap in gaps),
        "... after it": mean(gap > 0 for gap in gaps),
        "tokens from divergence to first mistake, median": float(st.median(gaps)),
    }
    for name in ("peer", "answer"):
        sizes = [m["credit"][name][m["tau"]].abs().item() for m in mistaken]
        numbers[f"at the first mistake: mean |A|, {name}"] = mean(sizes)
        key = f"share of |A| within 8 tokens of the first mistake, {name}"
        numbers[key] = credit.share_within(mistaken, name, 8)
    return numbers


def coverages(student, tokenizer, rows, args):
    """H3 on real groups. p of a question comes from 64 rollouts, its coverage from the
    eight groups of eight among them."""
    G, many = args.samples, replace(args, samples=64)
    drawn = hindsight_sd.rollouts(student, rows, many, 2)
    _, verdicts = hindsight_sd.verdicts(tokenizer, rows, drawn, 64)
    predicted, observed = [], []
    for q in range(len(rows)):
        of_question = verdicts[64 * q : 64 * q + 64]
        predicted.append(hindsight_sd.coverage(sum(of_question) / 64, G))
        groups = [of_question[first : first + G] for first in range(0, 64, G)]
        observed.append(sum(G - sum(group) for group in groups if any(group)) / 64)
    distances = [abs(a - b) for a, b in zip(observed, predicted)]
    return {
        "H3: coverage observed": mean(observed),
        "H3: coverage by f(p, G)": mean(predicted),
        "H3: mean distance of a question's coverage to f(p, G)": mean(distances),
    }


def draw_profiles(found, mistaken, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    sides = [
        (axes[0], found, "the divergence from the peer"),
        (axes[1], mistaken, "the first mistake (the checker's)"),
    ]
    lines = [
        ("peer", "answer and peer", "#c0392b", "-"),
        ("answer", "answer alone", "#1f6fb4", "-"),
        ("copying", "a simulated copier", "#888", "--"),
    ]
    for axis, rollouts, place in sides:
        for name, label, colour, style in lines:
            d, sizes, _ = credit.profile(rollouts, name)
            axis.plot(d, sizes, style, color=colour, label=label)
        axis.axvline(0, color="#bbb", linewidth=0.8)
        axis.set(xlabel=f"tokens from {place}", title=f"{len(rollouts)} failing rollouts")
    axes[0].set(ylabel="mean |A|, nats")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ======================================================================== H10: time of an update


def updater(flags, seed):
    """A function of the step that makes one update of an arm, without evaluation,
    checkpoint or anything else around it."""
    module = grpo if flags[0] == "grpo.py" else hindsight_sd
    args = settings(module, "--seed", str(seed), *flags[1:])
    student, tokenizer = load()
    start, rows = load()[0].requires_grad_(False), rows_with_ids("train", tokenizer)
    optimizer = adamw(student, args.lr, betas=(0.9, 0.95))
    compute = Compute(args, CPU, torch.float32, len(tokenizer))

    if module is grpo:

        def one(step):
            chosen, drawn, right, _ = grpo.collect(student, tokenizer, rows, args, step)
            if chosen:
                grpo.update(student, start, optimizer, chosen, drawn, right, args, compute)

        return one
    teacher = student if args.teacher == "current" else copy_of(student)

    def one(step):
        chosen = [rows[i] for i in prompts_of_step(step, args.prompts, len(rows), args.seed)]
        drawn = hindsight_sd.rollouts(student, chosen, args, step)
        contexts = hindsight_sd.build_contexts(chosen, drawn, tokenizer, args, step)
        hindsight_sd.update(
            student, teacher, start, optimizer, chosen, drawn, contexts, args, compute
        )

    return one


def overhead(seeds, runs, updates=12):
    """H10: every arm makes an update in turn. So whatever else the machine does slows all
    of them alike. The ratios are those of the medians."""
    per_seed = []
    for seed in seeds:
        update_of = {arm: updater(flags, seed) for arm, flags in ARMS.items()}
        times = {arm: [] for arm in ARMS}
        for step in range(1, updates + 1):
            for arm, one in update_of.items():
                began = time.perf_counter()
                one(step)
                if step > 2:  # the first ones only warm up
                    times[arm].append(time.perf_counter() - began)
        base = st.median(times["GRPO"])
        per_seed.append({arm: st.median(t) / base for arm, t in times.items()})
        print(f"seed {seed} done", file=sys.stderr)
    show(per_seed, f"H10: time of an update over GRPO's, {updates - 2} updates per seed")
    costs = {arm: mean(numbers[arm] for numbers in per_seed) for arm in ARMS}
    write_json(make_folder(runs) / "costs.json", costs)


# ======================================================================== the comparison


def by_style(runs, style):
    """A function (arm, seed) -> accuracy on the test problems that ask for this style."""
    rows = load_benchmark("toy", "test")

    def metric(arm, seed):
        records = read_jsonl(folder(runs, arm, seed) / "test" / "responses.jsonl")
        return mean(r["correct"] for r in records if rows[r["index"]]["style"] == style)

    return metric


def table_of_variety(runs, arms, seeds, base):
    """The second table: styles, pass@k, diversity, length and entropy."""
    heads = [f"{len(seeds)} seeds", "terse", "verbose", "pass@1", "pass@8", f"pass@8 - {base}"]
    heads += ["distinct", "tokens", "entropy"]
    lines = [line(heads), "|---" * len(heads) + "|"]
    pass_8, distinct = final(runs, "sampled", "pass@8"), final(runs, "sampled", "distinct")
    metrics = [by_style(runs, "terse"), by_style(runs, "verbose")]
    metrics += [final(runs, "sampled", "pass@1"), pass_8]
    tokens, nats = final(runs, "test", "mean_tokens"), entropy(runs)
    for arm in arms:
        cells = [arm, *(as_percent([metric(arm, s) for s in seeds]) for metric in metrics)]
        gaps = differences(runs, [arm], seeds, base, pass_8)
        cells.append("" if arm == base else as_percent(gaps[arm], True))
        cells.append(as_percent([distinct(arm, s) for s in seeds]))
        cells.append(f"{mean(tokens(arm, s) for s in seeds):.0f}")
        cells.append(f"{mean(nats(arm, s) for s in seeds):.3f}")
        lines.append(line(cells))
    return "\n".join(lines)


def compare(args, seeds):
    """The arms or the controls: runs, tables and picture."""
    controls = args.what == "controls"
    arms, base = (CONTROLS, "HSD") if controls else (ARMS, "GRPO")
    run_all(arms, seeds, args.runs, args.jobs, args.limit, EVALUATIONS, start="toy/reader")
    costs = None
    if not controls:
        path = Path(args.runs) / "costs.json"
        if not path.exists():
            overhead(seeds[:3], args.runs)
        costs = read_json(path)
    print(table(args.runs, arms, seeds, base, costs))
    print(table_of_variety(args.runs, arms, seeds, base))
    courses(args.runs, arms, seeds)
    name = f"hindsight-{'controls-' if controls else ''}toy.png"
    what = "The controls of HSD" if controls else "Hindsight and its baselines"
    title = f"{what} on the toy, {len(seeds)} seeds"
    picture(args.runs, arms, seeds, base, ROOT / "benchmarks" / name, title, costs)
    print(f"picture: benchmarks/{name}")


def main():
    if sys.argv[1:2] == ["control"]:
        require(
            len(sys.argv) > 2 and sys.argv[2] in SWAPS,
            f"A control needs its name: {', '.join(SWAPS)}.",
        )
        for name, function in SWAPS[sys.argv[2]].items():
            setattr(hindsight_sd, name, function)
        hindsight_sd.main(sys.argv[3:])
        return
    p = Parser(__doc__)
    p.add_argument("what", choices=["credit", "overhead", "arms", "controls", "control"])
    p.add_argument("--seeds", type=int, default=5, help="seeds 0 .. n-1 (default 5)")
    p.add_argument("--questions", type=int, default=100, help="of credit, per seed (default 100)")
    p.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, one thread each (default 1)"
    )
    p.add_argument(
        "--limit",
        type=int,
        default=1000,
        help="problems of the final evaluations (default 1000 each)",
    )
    p.add_argument(
        "--runs",
        default="runs/hindsight-toy",
        help="folder of the runs (default runs/hindsight-toy)",
    )
    args = p.parse_args()
    torch.set_num_threads(1)
    seeds = list(range(args.seeds))
    if args.what == "credit":
        credits(seeds, args.questions)
    if args.what == "overhead":
        overhead(seeds[:3], args.runs)
    if args.what in ("arms", "controls"):
        compare(args, seeds)


if __name__ == "__main__":
    run_script(main)
