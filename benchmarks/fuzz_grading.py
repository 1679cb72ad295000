"""Random and mutated text through the grader: does anything crash, hang, get executed, or take long?

    python benchmarks/fuzz_grading.py                   # 100,000 pairs of response and gold; about half an hour on one core
    python benchmarks/fuzz_grading.py --n 2000 --seed 1

A third of the pairs is random characters, a third random pieces of LaTeX, a third real answers (those of tests/test_grading.py) with
characters deleted, doubled, swapped or exchanged for pieces of each other. Among the pieces are Python that would create a file if
anything evaluated it, control characters, towers of exponents and unbalanced braces by the hundred.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from test_grading import GRADED, HOSTILE, against_math_verify  # noqa: E402

import evaluate  # noqa: E402
import plumbing  # noqa: E402

PIECES = [
    *r"0123456789{}()[]|\^_,.;:=+-*/% $!&~<>'#xyzabn",
    *r"\boxed{ \frac{ \sqrt{ \sqrt[ \text{ \pi \infty \cup \pm \mp \{ \} \left( \right) \le \in \log \sin \binom{ ^{ _{ \overline{ \cdot".split(),
    *(
        r"\begin{pmatrix} \end{pmatrix} \\ #### <think> </think> 1e9 10^{ 9^{9^{ ! \int_0^ \sum_{ \lim_{ \emptyset \mathbb{R}"
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
    text = list(rng.choice(rng.choice(GRADED)[:2])[:300] if rng.random() < 0.95 else rng.choice(HOSTILE)[:2000])
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


def main():
    p = plumbing.Parser(__doc__)
    p.add_argument("--n", type=int, default=100_000, help="pairs of response and gold (default 100000)")
    p.add_argument("--seed", type=int, default=0, help="of the pairs (default 0)")
    args = p.parse_args()
    plumbing.require(args.n >= 100, f"--n is {args.n}; for percentiles it takes at least 100.")
    evaluate.warm_up(wait=True)
    compared, differing = against_math_verify()
    print(
        f"{len(GRADED)} pairs in tests/test_grading.py, {len(compared)} with an answer; math-verify alone differs on {len(differing)}"
    )
    rng, seconds, verdicts, asked = random.Random(args.seed), [], Counter(), 0
    real = evaluate._math_verify

    def counted(*arguments):
        nonlocal asked
        asked += 1
        return real(*arguments)

    evaluate._math_verify = counted
    with tempfile.TemporaryDirectory() as folder, plumbing.progress(args.n, "grading", "pair") as bar:
        canary = Path(folder) / "executed"
        for _ in range(args.n):
            response, gold = random_text(rng, canary), random_text(rng, canary)
            if rng.random() < 0.7:
                response = f"so \\boxed{{{response}}}"
            if rng.random() < 0.1:
                gold = evaluate.extract(response) or gold
            begun = time.perf_counter()
            verdict = evaluate.grade(response, gold)
            seconds.append((time.perf_counter() - begun, response, gold))
            verdicts[verdict] += 1
            if canary.exists() or verdict not in (True, False):
                raise SystemExit(f"FAILED: {'executed' if canary.exists() else verdict!r}: {response!r} {gold!r}")
            bar.update()
    seconds.sort(key=lambda s: s[0])

    def at(share):
        return f"{1000 * seconds[min(len(seconds) - 1, int(share * len(seconds)))][0]:.2f} ms"

    print(
        f"{args.n:,} pairs: no exception, nothing executed; {verdicts[True]:,} right, {verdicts[False]:,} wrong; math-verify asked {asked:,} times"
    )
    print(
        f"time a pair: p50 {at(0.5)}, p90 {at(0.9)}, p99 {at(0.99)}, p99.9 {at(0.999)}, max {at(1)}; sum {sum(s[0] for s in seconds):.0f} s"
    )
    for s, response, gold in seconds[-3:]:
        print(f"slowest: {1000 * s:.0f} ms  {plumbing.shorten(response, 80)!r}  against  {plumbing.shorten(gold, 60)!r}")


if __name__ == "__main__":
    plumbing.run(main)
