r"""What counts as the answer of a response, and whether a response is right.

An answer is
* the content of the last \boxed{...} or \fbox{...} that is not empty;
* if there is no box, the rest of the line after the last "####" (the marker of GSM8K), if it is
  mathematics or nothing comes after it: "#### Step 2" is a heading;
* if there is neither, the formula in Minerva's "The final answer is $...$.";
* if there is none of these, and the gold is a number, the last number of the response.

Boxes side by side are one answer if the gold is a list: \boxed{2} or \boxed{5} is 2, 5.

Nothing else counts. A box in the thinking is not an answer. If the last box was cut off,
there is no answer, whatever stands before it. A grader that searched the text for the gold
would reward a list of guesses.

The file follows the data: response -> extract -> graded_answer -> grade. Whether two answers
are equal is decided in `common/answers.py`. The text of a model is never executed.
"""

import re

from common.answers import equal
from common.judge import Budget
from common.notation import LONGEST_ANSWER, POWER, SCALES, SURE_SEPARATOR, in_latex, number, tidy

BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
GROUP = r" ?\{(?:[^{}]|\{[^{}]*\})*\}"
EMPTY = re.compile(r"\s*\{\s*\}")
# "Final Answer: The final answer is $X$. I hope it is correct." is Minerva's last line. What
# stands there without dollars counts only if the line ends as Minerva's does.
FORMULA = r"\$\$?((?:\\.|[^$\\])+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]"
MINERVA = rf"(?:is|be):? *(?:{FORMULA}|(.+?)\.? I hope it is correct)"
# What may stand before the answer in the line of "####".
LABEL = r"(?:(?:the )?(?:final )?answer(?: is)?:?|[*: ]+)*"
# What may stand between two boxes that are one answer, and how many there can be.
MOST_BOXES = 10
NAME = r"[a-z](?:_\{?\d\}?)? *="
BETWEEN = rf"(?:[\s$,;.]|\\[,;() ]|\\q?quad|\\text *\{{ *(?:and|or) *\}}|and|or|{NAME})+"


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

    # The last box wins: a model that corrects itself writes a second one. An empty one is mostly
    # a quotation of the task.
    boxes = list(BOX.finditer(text))
    if boxes:
        full = [box for box in boxes if not EMPTY.match(text, box.end())]
        return _in_braces(text[full[-1].end() :][:LONGEST_ANSWER]) if full else None
    if "####" in text and (marked := _marked(text.rpartition("####")[2][:LONGEST_ANSWER])):
        return marked
    _, found, rest = text.rpartition("inal answer ")
    if found and (match := re.match(MINERVA, rest[:LONGEST_ANSWER])):
        return next(filter(None, match.groups())).strip() or None
    return None


def _marked(text):
    """The answer behind "####", or None if it only begins a heading of Markdown."""
    line, _, rest = text.strip().partition("\n")
    answer = line[re.match(LABEL, line, re.IGNORECASE).end() :].rstrip("*. ")
    if answer:
        plain = re.sub(r"\\(?:text\w*|begin|end) ?\{[^{}]*\}|\\[a-zA-Z]+", "", answer)
        mathematics = number(tidy(answer)) is not None or not re.search("[A-Za-z][a-z]{2}", plain)
        return answer if mathematics or not rest.strip() else None
    # The answer stands in the next line, if this one is only its label.
    below = rest.strip().partition("\n")[0].lstrip("* ").rstrip("*. ")
    return below if number(tidy(below)) is not None else None


def _after_thinking(response):
    return response.rpartition("</think>")[2]


def _in_braces(text):
    r"""What stands behind \boxed in balanced braces, or one token if it has no braces."""
    text = text.lstrip()
    if not text.startswith("{"):
        token = re.match(rf"\\[a-zA-Z]+(?:{GROUP})+|\\?\w+|\S", text)  # \boxed\frac{1}{2}
        return token.group() if token else None
    return text[1 : _closing(text)].strip() or None if _closing(text) else None


def _closing(text):
    """Where the brace closes with which a text begins. None: the box was cut off."""
    depth, i = 0, 0
    while i < len(text):
        if text[i] == "\\":  # \{ and \} are the braces of a set: they group nothing
            i += 2
            continue
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i
        i += 1
    return None


SIGN = r"(?:(?:(?<=[=($])|(?<=[=($] )|(?<=\bis ))- ?|-)?"  # a dash with a space may begin an item
DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<![\w.)])\.\d+"
SCALE = rf" (?:{'|'.join(SCALES)})\b"  # 5 million
POWERS = rf"[eE][-+]?\d{{1,3}}(?!\w)|{POWER}|\^(?:\{{[-\d/ ]+\}}|-?\d+)"  # 1e5   2^5
WHOLE = rf"(?:\d+ ?)?\\[dtc]?frac(?:{GROUP}){{2}}|\d*\\sqrt(?:\[\d+\])?{GROUP}"
# What stands above or below the line is passed over: the 2 of x^2, the th of 18^{th}.
BESIDE = rf"(?<=[a-zA-Z0-9)\]}}'])[\^_](?:{GROUP}|-?[a-zA-Z0-9]+)"
LAST = re.compile(rf"{BESIDE}|({SIGN}(?:{WHOLE}|(?:{DIGITS})(?:{POWERS}|{SCALE})?))")


def _last_number(response):
    """The last number of a response, or None if its thinking or a box was cut off."""
    text = _after_thinking(response)
    if "<think>" in text or BOX.search(text):
        return None
    text = re.sub(r"(?<=[\w)}])–", " ", text[-LONGEST_ANSWER:])  # 3–5 holds no minus
    text = re.sub(SURE_SEPARATOR, "", re.sub(" +", " ", in_latex(text)))
    numbers = [match[1] for match in LAST.finditer(text) if match[1]]
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
    said, gold = extract(str(response)), _gold_answer(str(gold))
    if said is None and not truncated and number(gold) is not None:
        return _last_number(str(response))
    if said is not None and "," in gold and number(gold) is None:
        return _boxes_side_by_side(str(response)) or said
    return said


def _boxes_side_by_side(response):
    r"""x=\boxed{2} or x=\boxed{5} as 2, 5. None if there is one box, or more between the boxes."""
    text, answers, end = _after_thinking(response), [], 0
    for box in list(BOX.finditer(text))[-MOST_BOXES:]:
        braces = text[box.end() : box.end() + LONGEST_ANSWER]
        closing = _closing(braces) if braces.startswith("{") else None
        if closing is None or "," in braces[:closing]:
            return None
        if not re.fullmatch(BETWEEN, text[end : box.start()][:LONGEST_ANSWER]):
            answers = []
        answers.append(braces[1:closing].strip())
        end = box.end() + closing + 1
    return ", ".join(answers) if len(answers) > 1 else None


def grade(response, gold, truncated=False):
    """Whether the answer of a response is the gold.

    It uses at most two seconds of CPU time, whatever the text, except if it has to start
    math-verify.
    """
    said, gold = graded_answer(response, gold, truncated), _gold_answer(str(gold))
    return said is not None and gold != "" and equal(tidy(said), gold, Budget())


def is_gold(text):
    """Whether a response with this very answer would be right."""
    said = extract(f"\\boxed{{{text}}}")
    return said is not None and tidy(said) == _gold_answer(text) != ""


def opened(prompt):
    """What the prompt has already written of the response: "<think>" or nothing. A response is
    graded together with it, because what stands in unfinished thinking is no answer."""
    return "<think>" if prompt.rstrip().endswith("<think>") else ""


def verify(response, gold, truncated):
    """Whether a rollout is right: `grade`, under the name that the methods use."""
    return grade(response, gold, truncated)
