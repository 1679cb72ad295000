"""The paper's claims about credit on the toy, before any training, with intervals over seeds. H1,
H2 and H3: where credit falls, and whether that place is to blame; and a picture. What HSD does to
learning: lab.py.

    python benchmarks/hindsight_toy.py      minutes
"""

import statistics as st
import sys
from dataclasses import replace
from pathlib import Path

import torch
from lab import ROOT

import hindsight_sd
from common import credit
from common.arguments import Parser, run_script
from common.batches import prompts_of_step
from common.data import load_benchmark, prompt_ids
from common.diagnostics import auc, coverage
from common.evaluation import mean_interval
from common.flags import at_least, parse
from common.gate import token_at
from common.models import load_model, load_tokenizer
from toy import world

CPU = torch.device("cpu")
SEEDS, QUESTIONS = 5, 100  # of the published numbers

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
    # The picture of benchmarks/README.md is made with the default numbers only.
    published = (len(seeds), questions) == (SEEDS, QUESTIONS)
    picture = Path("benchmarks" if published else "runs") / "hindsight-credit-toy.png"
    (ROOT / picture).parent.mkdir(exist_ok=True)
    draw_profiles(all_found, all_mistaken, ROOT / picture)
    print(f"picture: {picture}")


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
        predicted.append(coverage(sum(of_question) / 64, G))
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


def main():
    p = Parser(__doc__)
    p.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds 0 .. n-1 (default {SEEDS})")
    p.add_argument(
        "--questions", type=int, default=QUESTIONS, help=f"per seed (default {QUESTIONS})"
    )
    args = p.parse_args()
    at_least(args, 1, "seeds")
    at_least(args, 10, "questions")
    torch.set_num_threads(1)
    credits(list(range(args.seeds)), args.questions)


if __name__ == "__main__":
    run_script(main)
