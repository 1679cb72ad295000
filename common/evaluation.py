"""Evaluation: sample responses to problems, grade them, and count, with intervals.

A record is one graded sample, as a dict: index (which problem), sample (which of its n
samples), asked (a hash of the problem), prompt, response, gold, extracted, correct, tokens,
truncated. `evaluate` returns all records and a summary of them.

`extracted` is the answer that was graded. For a gold that is a number it can be the last number
of the response. It is None if there was nothing to grade.
"""

import math
import re
import time
from collections import Counter

from scipy.special import stdtrit

from common.answers import equal
from common.data import opened_thinking, prompt_ids
from common.grading import graded_answer, opened, verify
from common.judge import Budget, warm_up
from common.models import no_autocast
from common.notation import tidy
from common.origin import hash_of
from common.processes import dealt
from common.sampler import sample
from common.show import progress

# ======================================================================== statistics


Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations


def wilson(successes, total):
    """95 % interval of a proportion: Wilson's score interval.

    The interval p +- 1.96 standard errors is too narrow near 0 and 1 and for small counts.
    Wilson's is right there, too.

    >>> [round(x, 3) for x in wilson(5, 10)]
    [0.237, 0.763]
    """
    if total == 0:
        return [0.0, 1.0]
    z, p = Z, successes / total
    centre = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return [max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)]


def mean_interval(values):
    """(mean, low, high): the mean and its 95 % interval by Student's t.

    The values must be independent: runs with different seeds, or different problems. A
    single value has no interval; then low and high are -inf and inf.
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    free = len(values) - 1  # degrees of freedom
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / free / len(values))
    half = float(stdtrit(free, 0.975)) * error  # the quantile of t: 12.7 for two values
    return mean, mean - half, mean + half


def bounded_interval(values, least=0.0, most=1.0):
    """(mean, low, high) of numbers that lie in [least, most]: one per problem, for example the
    share of right samples.

    Student's interval has no width if all values are equal, as if no other problem could turn out
    otherwise. So this one is at least as wide as if Z^2 (nearly 4) further values lay at the end
    of the range. For 0 or n right answers of n that is Wilson's interval. For n differences that
    are all 0 it is the score interval of Tango (1998).

    >>> [round(x, 3) for x in bounded_interval([1.0] * 10)]
    [1.0, 0.722, 1.0]
    """
    n, (mean, low, high) = len(values), mean_interval(values)
    low = min(low, (n * mean + Z**2 * least) / (n + Z**2))
    high = max(high, (n * mean + Z**2 * most) / (n + Z**2))
    return mean, max(least, low), min(most, high)


def newcombe(share, total, other, other_total):
    """95 % interval of the difference share - other of two proportions: Newcombe's method 10,
    from the two intervals of Wilson. It is too wide, never too narrow, if both are proportions
    of the same problems."""
    low, high = wilson(share * total, total)
    other_low, other_high = wilson(other * other_total, other_total)
    return (
        share - other - math.hypot(share - low, other_high - other),
        share - other + math.hypot(high - share, other - other_low),
    )


def pass_at_k(n, correct, k):
    """Probability that at least one of k samples is right, when `correct` of n samples are:
    1 - C(n - correct, k) / C(n, k).

    This estimate is unbiased. "Is any of the first k samples right?" has the same mean and
    much more noise. 1 - (1 - correct/n)^k is biased.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def majority(answers, verdicts):
    """Is the most frequent answer right? 1 or 0, or with a tie the share of right answers
    among the most frequent ones. A sample without an answer has no vote.

    Two ways to write one number (72 and 72.0) are one answer. Right answers all equal the gold, so
    they share their votes. Wrong ones share them if `equal` says so. It has no time for
    math-verify here.
    """
    candidates = []  # [answer, right, votes]
    counted = Counter((a, right) for a, right in zip(answers, verdicts) if a is not None)
    for (answer, right), votes in counted.items():
        for other in candidates:
            if right == other[1] and (right or equal(tidy(answer), other[0], Budget(seconds=0))):
                other[2] += votes
                break
        else:
            candidates.append([tidy(answer), right, votes])
    most = max((votes for *_, votes in candidates), default=None)
    winners = [right for _, right, votes in candidates if votes == most]
    return sum(winners) / len(winners) if winners else 0.0


# ======================================================================== the summary


def summarise(records, k=1):
    """The numbers of an evaluation, from its records. Their order does not matter."""
    by_problem = {}
    for r in records:
        by_problem.setdefault(r["index"], []).append(r)
    problems = list(by_problem.values())
    n = max(map(len, problems))  # samples per problem
    rights = [sum(r["correct"] for r in group) for group in problems]

    if n == 1:
        accuracy, interval = sum(rights) / len(rights), wilson(sum(rights), len(rights))
    else:
        # Samples of one problem are not independent, but problems are. An interval over all
        # samples would be too narrow.
        accuracy, *interval = bounded_interval([right / n for right in rights])

    def chance(j):
        return sum(pass_at_k(n, right, j) for right in rights) / len(rights)

    votes = [
        majority([r["extracted"] for r in group], [r["correct"] for r in group])
        for group in problems
    ]
    lengths = sorted(r["tokens"] for r in records)
    result = {
        "accuracy": accuracy,
        "interval": interval,
        "n": len(problems),
        "samples": n,
        f"avg@{n}": accuracy,
        **{f"pass@{j}": chance(j) for j in sorted({1, k}) if j <= n},
        "majority": sum(votes) / len(problems),
        "truncated": sum(r["truncated"] for r in records) / len(records),
        "no_answer": sum(r["extracted"] is None for r in records) / len(records),
        "mean_tokens": sum(lengths) / len(lengths),
        "median_tokens": lengths[len(lengths) // 2],
        "max_tokens": lengths[-1],
    }
    return result if n == 1 else {**result, **variety(problems, n)}


def variety(problems, n):
    """Does the model still try different ways to solve a problem?

    A way is the sequence of numbers and operators of a response; the words do not count.
    distinct: different ways as a share of the n samples. distinct_right: the number of
    different ways that are right. Both are means over the problems.
    """
    ways = [
        [(tuple(re.findall(r"\d+|[-+*/#^]", r["response"])), r["correct"]) for r in group]
        for group in problems
    ]
    different = sum(len({way for way, _ in group}) / n for group in ways)
    right = sum(len({way for way, correct in group if correct}) for group in ways)
    return {"distinct": different / len(problems), "distinct_right": right / len(problems)}


# ======================================================================== evaluate


def evaluate(
    model,
    tokenizer,
    rows,
    *,
    n=1,
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    max_new_tokens,
    seed=0,
    k=1,
    batch=256,
    thinking=False,
    done=(),
    each=None,
    bar=None,
    autocast=None,
):
    """(summary, records) of n samples for every row.

    done: records of an earlier evaluation that was interrupted. Its samples are not drawn
    again. A sample depends on (seed, problem, sample) only, so the result is the same as
    without the interruption.
    each: a function that gets the new records after every batch.
    bar: show a progress bar; None shows it on a terminal only.
    autocast: the context in which the model computes, see `common.models.autocaster`.
    """
    # Starting math-verify takes a second or two. We sample in the meantime.
    warm_up()
    began, records = time.time(), list(done)
    have = {(r["index"], r["sample"]) for r in done}
    missing = [i for i in range(len(rows)) if any((i, j) not in have for j in range(n))]
    prompts = {i: prompt_ids(tokenizer, rows[i]["prompt"], thinking) for i in missing}
    missing.sort(key=lambda i: len(prompts[i]))  # prompts of similar length need little padding
    asked = {i: hash_of([rows[i]], ["problem"]) for i in missing if "problem" in rows[i]}
    per_batch = max(1, batch // n)

    with progress(len(missing), "evaluating", "problem", show=bar) as shown:
        for first in range(0, len(missing), per_batch):
            chosen = missing[first : first + per_batch]
            pairs = [(i, j) for i in chosen for j in range(n)]
            with autocast or no_autocast():
                completions = sample(
                    model,
                    [prompts[i] for i in chosen],
                    n=n,
                    max_new_tokens=max_new_tokens,
                    keys=[("evaluate", seed, i, j) for i, j in pairs],
                    temperature=temperature,
                    top_p=top_p,
                    top_k=top_k,
                    rows=batch,
                )
            new = [(i, j, c) for (i, j), c in zip(pairs, completions) if (i, j) not in have]
            graded = dealt(
                graded_record,
                [(tokenizer, prompts[i], c, rows[i]["answer"]) for i, _, c in new],
            )
            fresh = [
                {"index": i, "sample": j, "asked": asked.get(i), **g}
                for (i, j, _), g in zip(new, graded)
            ]
            records += fresh
            if each:
                each(fresh)
            shown.update(len(chosen))
    records.sort(key=lambda r: (r["index"], r["sample"]))
    return {**summarise(records, k), "seconds": round(time.time() - began, 2)}, records


def graded_record(tokenizer, prompt, completion, gold):
    """What a record says about one sample, apart from its numbers (index, sample)."""
    # Only the new tokens are decoded. A prompt can hold a box, or even the gold answer.
    response = tokenizer.decode(completion.ids, skip_special_tokens=True).strip()
    asked = tokenizer.decode(prompt)
    return {
        "prompt": asked,
        "response": response,
        "gold": gold,
        **verdict_on(asked, response, gold, completion.truncated),
        "tokens": len(completion.ids),
        "truncated": completion.truncated,
    }


def verdict_on(prompt, response, gold, truncated):
    whole = opened(prompt) + response
    return {
        "extracted": graded_answer(whole, gold, truncated),
        "correct": verify(whole, gold, truncated),
    }


def graded_again(records):
    """The same samples with the verdicts of the grading code as it is now."""
    return [
        {**r, **verdict_on(r.get("prompt", ""), r["response"], r["gold"], r["truncated"])}
        for r in records
    ]


def verdicts(tokenizer, rows, drawn, G):
    """The texts of the rollouts without their end-of-turn token, and R_i of each: is it right? One
    that was cut without an answer has failed. drawn: G Completions for every row."""
    texts = [tokenizer.decode(c.ids, skip_special_tokens=True).strip() for c in drawn]
    # Some templates open the thinking in the prompt. It is put back here, so a box in thinking that
    # was never finished is no answer.
    begun = opened_thinking(tokenizer)
    cases = [(begun + t, rows[i // G]["answer"], drawn[i].truncated) for i, t in enumerate(texts)]
    return texts, dealt(verify, cases)
