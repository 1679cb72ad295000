r"""What counts as the answer of a response, and whether a response is right.

An answer is
* the content of the last \boxed{...} or \fbox{...};
* if there is no box, the rest of the line after the last "####" (the marker of GSM8K);
* if there is neither, the formula in Minerva's "The final answer is $...$.";
* if there is none of these, and the gold is a number, the last number of the response.

Nothing else counts. A box in the thinking is not an answer. If the last box was cut off,
there is no answer, whatever stands before it. A grader that searched the text for the gold
would reward a list of guesses.

The file follows the data: response -> extract -> graded_answer -> grade. Whether two answers
are equal is decided in `common/answers.py`. The text of a model is never executed.
"""

import re

from common.answers import equal
from common.judge import Budget
from common.notation import LONGEST_ANSWER, SCALES, number, tidy

BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
# "Final Answer: The final answer is $X$. I hope it is correct." is Minerva's last line. What
# stands there without dollars counts only if the line ends as Minerva's does.
MINERVA = r"(?:is|be):? *(?:\$((?:\\.|[^$\\])+)\$|(.+?)\.? I hope it is correct)"


def extract(response):
    """The answer of a response, exactly as it stands there, or None.

    >>> extract(r"First \\boxed{3}, no: \\boxed{\\frac{1}{2}}.")
    '\\\\frac{1}{2}'
    """
    # The <think> may stand in the prompt, so only the last </think> tells where the answer
    # begins. A <think> after it is unfinished thinking.
    text = _after_thinking(response)
    if "<think>" in text:
        return None

    # The last box wins: a model that corrects itself writes a second one.
    boxes = list(BOX.finditer(text))
    if boxes:
        end = boxes[-1].end()
        return _in_braces(text[end : end + LONGEST_ANSWER])
    if "####" in text:
        line = text.rpartition("####")[2][:LONGEST_ANSWER].strip().split("\n")[0].strip()
        return line.rstrip(".") or None
    _, found, rest = text.rpartition("inal answer ")
    if found and (match := re.match(MINERVA, rest[:LONGEST_ANSWER])):
        return (match[1] or match[2]).strip() or None
    return None


def _after_thinking(response):
    return response.rpartition("</think>")[2]


def _in_braces(text):
    r"""What stands behind \boxed in balanced braces, or one token if it has no braces."""
    text = text.lstrip()
    if not text.startswith("{"):
        token = re.match(r"\\?\w+|\S", text)
        return token.group() if token else None
    depth, i = 0, 0
    while i < len(text):
        if text[i] == "\\":  # \{ and \} are the braces of a set: they group nothing
            i += 2
            continue
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[1:i].strip() or None
        i += 1
    return None  # the braces never close: the box was cut off


def _last_number(response):
    """The last number of a response, or None if its thinking or a box was cut off."""
    text = _after_thinking(response)
    if "<think>" in text or BOX.search(text):
        return None
    scale = rf"(?: (?:{'|'.join(SCALES)})\b)?"  # 5 million
    digits = r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
    numbers = re.findall(digits + scale, text[-LONGEST_ANSWER:])
    return numbers[-1] if numbers else None


def _gold_answer(gold):
    r"""The tidied answer in a gold, which may be a worked solution with "####" or \boxed."""
    answer = gold.rpartition("####")[2]
    boxed = extract(answer) if BOX.search(answer) else None
    return tidy(answer[:LONGEST_ANSWER] if boxed is None else boxed)


def graded_answer(response, gold, truncated=False):
    """The answer that `grade` compares with the gold, or None if there is none.

    truncated: the response was cut off. Then its last number is not an answer: that number
    may be the gold by chance.
    """
    said = extract(str(response))
    if said is None and not truncated and number(_gold_answer(str(gold))) is not None:
        return _last_number(str(response))
    return said


def grade(response, gold, truncated=False):
    """Whether the answer of a response is the gold.

    It uses at most two seconds of CPU time, whatever the text, except if it has to start
    math-verify.
    """
    said, gold = graded_answer(response, gold, truncated), _gold_answer(str(gold))
    return said is not None and gold != "" and equal(tidy(said), gold, Budget())


def verify(response, gold, truncated):
    """Whether a rollout is right: `grade`, under the name that the methods use."""
    return grade(response, gold, truncated)
