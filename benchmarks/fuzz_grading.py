"""Random and changed texts through the grader. Does anything crash, hang or take long, and
is anything executed?

    python benchmarks/fuzz_grading.py           # 100,000 pairs; half an hour on one core
    python benchmarks/fuzz_grading.py --n 2000 --seed 1
    python benchmarks/fuzz_grading.py --golds tests/benchmark_golds.txt    # real golds
    python benchmarks/fuzz_grading.py --cases tests/other_grading.jsonl  # responses with verdicts

A pair is a response and a gold. A third of the texts is random characters. A third is
random pieces of LaTeX. A third is real answers (those of tests/test_grading.py) with
characters that are deleted, doubled, swapped or replaced by pieces of other answers. Among
the pieces are Python code that would create a file if anything ran it, control characters,
towers of exponents, and hundreds of unbalanced braces.

--golds takes a file with a gold in each line, or a .jsonl file with a gold in the field "answer" of
each line. Each gold is typeset anew by the rules of tests/golds.py, and changed into near misses.
Printed is how many of both are accepted, here and by math-verify alone with the same extracted
answers.

--cases takes a file with a "response", a "gold" and the verdict "right" in each line. It prints how
often `grade` and math-verify agree with the verdict. math-verify finds the answer itself here.
"""

import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from golds import boxed, near_misses, nearest, typesettings  # noqa: E402
from test_golds import SAME  # noqa: E402
from test_grading import GRADED, HOSTILE, against_math_verify  # noqa: E402

from common import judge  # noqa: E402
from common.arguments import Parser, require, run_script, shorten  # noqa: E402
from common.files import read_jsonl  # noqa: E402
from common.flags import at_least  # noqa: E402
from common.grading import extract, grade  # noqa: E402
from common.show import progress  # noqa: E402

PIECES = [
    *r"0123456789{}()[]|\^_,.;:=+-*/% $!&~<>'#xyzabn",
    *(
        r"\boxed{ \frac{ \sqrt{ \sqrt[ \text{ \pi \infty \cup \pm \mp \{ \} \left( \right) \le "
        r"\in \log \sin \binom{ ^{ _{ \overline{ \cdot \begin{pmatrix} \end{pmatrix} \\ #### "
        r"<think> </think> 1e9 10^{ 9^{9^{ ! \int_0^ \sum_{ \lim_{ \emptyset \mathbb{R}"
    ).split(),
    *("\x00", "\x1b[2J", "\u202e", "−", "٣", "\n", "\t", "𝟙"),
]


def random_text(rng, canary):
    kind = rng.randrange(3)
    if kind == 0:
        return "".join(
            chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x2FF), rng.randrange(0xD7FF))))
            for _ in range(rng.randrange(60))
        )
    if kind == 1:
        code = f"__import__('pathlib').Path('{canary}').touch()"
        return "".join(
            rng.choice([code, f"eval({code!r})"]) if rng.random() < 0.01 else rng.choice(PIECES)
            for _ in range(rng.randrange(40))
        )
    real = rng.random() < 0.95
    text = list(rng.choice(rng.choice(GRADED)[:2])[:300] if real else rng.choice(HOSTILE)[:2000])
    for _ in range(rng.randrange(6)):
        i = rng.randrange(len(text) + 1)
        change = rng.randrange(5)
        if change == 0:
            del text[i : i + rng.randrange(1, 4)]
        elif change == 1:
            text[i:i] = text[max(0, i - 5) : i] * rng.choice((1, 1, 1, 50))
        elif change == 2:
            text.insert(i, rng.choice(PIECES))
        elif change == 3 and i + 1 < len(text):
            text[i], text[i + 1] = text[i + 1], text[i]
        else:
            text[i:i] = rng.choice(GRADED)[1][:20]
    return "".join(text)


def compare_on_golds(file, count, show):
    """The property of tests/test_golds.py on the golds of a file, at most `count` pairs."""
    if Path(file).suffix == ".jsonl":
        golds = [str(row["answer"]).rpartition("####")[2] for row in read_jsonl(file, ["answer"])]
    else:  # one gold per line, as in tests/benchmark_golds.txt
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        golds = [line for line in lines if not line.startswith("#")]
    golds = list(dict.fromkeys(gold.strip() for gold in golds if gold.strip()))
    # Numbers are easy: at most a third of the golds that are tried are plain integers.
    random.Random(0).shuffle(golds)
    others = [gold for gold in golds if not gold.lstrip("-").isdigit()]
    golds = others + [gold for gold in golds if gold.lstrip("-").isdigit()][: len(others) // 2]
    right = [(gold, *made) for gold in golds for made in typesettings(gold)]
    wrong = [(gold, *made) for gold in golds for made in near_misses(gold)]
    nearest_golds = [(gold, nearest(gold, golds)) for gold in golds]
    # Some problems have the same answer, typed in two ways.
    nearest_golds = [(a, b) for a, b in nearest_golds if (a, b) not in SAME and (b, a) not in SAME]
    wrong += [(gold, "nearest", boxed(other)) for gold, other in nearest_golds]
    for what, pairs in (("typesettings", right), ("near misses", wrong)):
        random.Random(0).shuffle(pairs)
        pairs = pairs[:count]
        accepted = {"grade": [], "math-verify alone": []}
        for gold, _, response in progress_of(pairs, what):
            accepted["grade"].append(grade(response, gold))
            said, bare = extract(response) or "", extract(boxed(gold.strip("$"))) or gold
            verdict = judge.math_verify(said, bare, judge.Budget())
            accepted["math-verify alone"].append(verdict)
        for name, verdicts in accepted.items():
            share = sum(verdicts) / len(pairs)
            print(f"{what} accepted by {name}: {sum(verdicts):,} of {len(pairs):,} ({share:.4f})")
        unexpected = [p for p, v in zip(pairs, accepted["grade"]) if v != (what == "typesettings")]
        for gold, rule, response in unexpected[:show]:
            print(f"  {rule}: {shorten(response, 110)!r}  against  {shorten(gold, 60)!r}")


def compare_on_cases(path):
    """How often both graders say what somebody else has said."""
    from math_verify import parse
    from math_verify import verify as same

    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    graders = {
        "grade": lambda r: grade(r["response"], r["gold"]),
        "math-verify alone": lambda r: same(parse(f"\\boxed{{{r['gold']}}}"), parse(r["response"])),
    }
    for name, grader in graders.items():
        wrong = [r for r in rows if bool(grader(r)) != r["right"]]
        refused = sum(r["right"] for r in wrong)
        print(
            f"{name}: {len(rows) - len(wrong)} of {len(rows)}; {refused} right ones refused, "
            f"{len(wrong) - refused} wrong ones accepted"
        )
        for r in wrong:
            print(f"  {shorten(r['response'][-90:], 90)!r}  against  {shorten(r['gold'], 60)!r}")


def progress_of(pairs, what):
    with progress(len(pairs), what, "pair") as bar:
        for pair in pairs:
            yield pair
            bar.update()


def main():
    p = Parser(__doc__)
    p.add_argument("--n", type=int, default=100_000, help="number of pairs (default 100000)")
    p.add_argument("--seed", type=int, default=0, help="seed of the pairs (default 0)")
    p.add_argument("--golds", help='file with a gold in each line, or in "answer" of each line')
    p.add_argument("--cases", help="file with response, gold and verdict in each line")
    p.add_argument("--show", type=int, default=20, help="surprises to print (default 20)")
    args = p.parse_args()
    require(args.n >= 100, f"--n is {args.n}; percentiles need at least 100.")
    judge.warm_up(wait=True)
    at_least(args, 1, "n")
    if args.golds:
        return compare_on_golds(args.golds, args.n, args.show)
    if args.cases:
        return compare_on_cases(args.cases)
    compared, differing = against_math_verify()
    print(
        f"{len(GRADED)} pairs in tests/test_grading.py, {len(compared)} with an answer; "
        f"math-verify alone differs on {len(differing)}"
    )
    rng, seconds, verdicts, asked = random.Random(args.seed), [], Counter(), 0
    real = judge.math_verify

    def counted(*arguments):
        nonlocal asked
        asked += 1
        return real(*arguments)

    judge.math_verify = counted
    with tempfile.TemporaryDirectory() as folder, progress(args.n, "grading", "pair") as bar:
        canary = Path(folder) / "executed"  # this file exists only if code was executed
        for _ in range(args.n):
            response, gold = random_text(rng, canary), random_text(rng, canary)
            if rng.random() < 0.7:
                response = f"so \\boxed{{{response}}}"
            if rng.random() < 0.1:
                gold = extract(response) or gold
            begun = time.perf_counter()
            verdict = grade(response, gold)
            seconds.append((time.perf_counter() - begun, response, gold))
            verdicts[verdict] += 1
            if canary.exists() or verdict not in (True, False):
                what = "executed" if canary.exists() else repr(verdict)
                raise SystemExit(f"FAILED: {what}: {response!r} {gold!r}")
            bar.update()
    seconds.sort(key=lambda s: s[0])

    def at(share):
        return f"{1000 * seconds[min(len(seconds) - 1, int(share * len(seconds)))][0]:.2f} ms"

    print(
        f"{args.n:,} pairs: no exception, nothing executed; {verdicts[True]:,} right, "
        f"{verdicts[False]:,} wrong; math-verify was asked {asked:,} times"
    )
    print(
        f"time per pair: p50 {at(0.5)}, p90 {at(0.9)}, p99 {at(0.99)}, p99.9 {at(0.999)}, "
        f"max {at(1)}; sum {sum(s[0] for s in seconds):.0f} s"
    )
    for s, response, gold in seconds[-3:]:
        pair = f"{shorten(response, 80)!r}  against  {shorten(gold, 60)!r}"
        print(f"slowest: {1000 * s:.0f} ms  {pair}")


if __name__ == "__main__":
    run_script(main)
