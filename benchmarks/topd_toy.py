"""The paper's claims about the distance D on the toy, with intervals over seeds. T1, T2 and so on
are the claims, see benchmarks/README.md. What TOPD does to learning: lab.py.

    python benchmarks/topd_toy.py claims
        T1, T2, T3, and D as a detector of the true forks; minutes
    python benchmarks/topd_toy.py local
        T6: does D fall after a few updates at one point? minutes
"""

import copy
import sys
from dataclasses import dataclass

import torch
from lab_swaps import ORIGINAL, comparison, swapped
from scipy.stats import pearsonr, spearmanr

import topd
from common.arguments import Parser, run_script
from common.batches import Compute, prompts_of_step
from common.data import load_benchmark, prompt_ids
from common.diagnostics import auc, quartiles
from common.evaluation import mean_interval
from common.flags import at_least, parse
from common.gate import token_at
from common.models import load_model, load_tokenizer
from common.sampler import sample, uniforms
from common.weights import adamw
from toy import world

CPU = torch.device("cpu")

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
    with swapped(topd, {"candidates": lambda losses, _: positions(next(numbers), losses)}):
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
            with swapped(topd, {"candidates": lambda *_: [0]}):
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


def main():
    p = Parser(__doc__)
    p.add_argument("what", choices=["claims", "local"])
    p.add_argument("--seeds", type=int, default=5, help="seeds 0 .. n-1 (default 5)")
    p.add_argument("--rollouts", type=int, default=512, help="of claims, per seed (default 512)")
    p.add_argument("--points", type=int, default=60, help="of local, per seed (default 60)")
    p.add_argument("--student", help="of claims: another student than toy/student")
    args = p.parse_args()
    at_least(args, 1, "seeds")
    at_least(args, 20, "rollouts points")
    torch.set_num_threads(1)
    seeds = list(range(args.seeds))
    if args.what == "claims":
        claims(seeds, args.rollouts, args.student)
    else:
        local(seeds, args.points)


if __name__ == "__main__":
    run_script(main)
