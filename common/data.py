"""Problems and prompts: where each benchmark comes from, and which text a model is given.

`load_benchmark` returns rows. A row is a dict with `problem`, `prompt` (the text of the
user's turn), `answer` (the gold answer as a string), `solution` (a worked solution as a string,
or None) and the other columns of its data set.
`prompt_ids` turns a user's turn into the token ids that a model sees.

Training and evaluation must do all of this in the same way. If they do not, the evaluation
measures a model on prompts that it was never trained on.
"""

import datetime
import hashlib
import importlib
import itertools
import re
from pathlib import Path
from typing import NamedTuple

from common.arguments import Mistake, require, shorten
from common.files import HELD_OUT
from common.grading import opened
from common.hub import ROOT, where
from common.tables import (
    ANSWER_COLUMNS,
    PROBLEM_COLUMNS,
    check_backslashes,
    check_repetition,
    check_row,
    find_columns,
    in_plain_spaces,
    is_hub_name,
    read_file,
    read_hub,
    read_own_hub,
    solution_text,
    warn_of_golds,
    worked_solution,
)

# ======================================================================== the benchmarks

# This is Qwen3's own wording. The toy is asked without it: its vocabulary lacks the words.
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


class Benchmark(NamedTuple):
    """The columns of the table below. What a row of the table leaves out has the value that stands
    here."""

    source: str  # name of the data set on the hub, or a file of this repository
    configuration: str | None = None  # the part of the data set, if it has several
    train: str | None = None  # the hub's name for the training problems, if there are any
    test: str = "test"  # the hub's name for the test problems
    problem: str = "problem"  # column with the problem
    answer: str = "answer"  # column with the gold answer
    checker: str | None = None  # module with a function `check` (see `checker`)


BENCHMARKS = {
    "toy": Benchmark("toy/{split}.jsonl", train="train", checker="toy.world"),
    "toy-heldout": Benchmark("toy/heldout.jsonl", checker="toy.world"),
    "toy-validation": Benchmark("toy/validation.jsonl", checker="toy.world"),
    "gsm8k": Benchmark("openai/gsm8k", "main", train="train", problem="question"),
    "math500": Benchmark("HuggingFaceH4/MATH-500"),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", test="train"),
    "aime25": Benchmark("math-ai/aime25"),
    "hmmt25": Benchmark("MathArena/hmmt_feb_2025", test="train"),
    "amc23": Benchmark("math-ai/amc23", problem="question"),
    "minerva": Benchmark("math-ai/minervamath", problem="question"),
    "olympiad": Benchmark(
        "Hothan/OlympiadBench",
        "OE_TO_maths_en_COMP",
        test="train",
        problem="question",
        answer="final_answer",
    ),
}

OWN_DATA = (
    "a file (.jsonl, .json, .csv, .tsv, .parquet) with the columns problem and answer, or a data "
    "set of the hub as OWNER/NAME or OWNER/NAME:CONFIGURATION"
)


def check_name(name, split):
    """True for a user's own data (a file, or a data set of the hub that is no benchmark), False
    for a benchmark, a Mistake for anything else.

    This reads no data. So a wrong name is reported before anything slow begins.
    """
    whole = name.removesuffix(HELD_OUT)
    if name not in BENCHMARKS:
        known = whole in BENCHMARKS  # "toy:held-out": a benchmark has its own test problems
        require(
            not known and (Path(whole).is_file() or is_hub_name(whole)),
            f"There is no benchmark and no file named '{name}'. Benchmarks: "
            f"{', '.join(BENCHMARKS)}; or {OWN_DATA}.",
        )
        require(
            split == "test" or name == whole,
            f"'{name}' is what is held out for tests; train on '{whole}'.",
        )
        return True
    require(
        getattr(BENCHMARKS[name], split) is not None,
        f"'{name}' has no training problems; train on toy or gsm8k, or on {OWN_DATA}.",
    )
    return False


def is_toy(name):
    """Is it one of the toy's benchmarks, or a model or a file in the folder toy/? Then the flags
    have the toy's defaults. A name that only begins like that, as toy_math.jsonl, is not."""
    if name in BENCHMARKS:
        return BENCHMARKS[name].checker is not None
    path = Path(where(name.removesuffix(HELD_OUT)))
    return path.exists() and ROOT / "toy" in path.resolve().parents


def default_benchmark(data):
    """The test problems that belong to --data: its test split, or what is held out of it."""
    return data if data in BENCHMARKS else data.removesuffix(HELD_OUT) + HELD_OUT


def checker(name):
    """The function check(problem, response) that knows every true step, or None.

    Only the toy has such a function. It is imported by the name in the table, so that no
    file of common/ depends on the toy. A user's own file may hold problems of the toy. For
    other problems the function raises ValueError.
    """
    module = BENCHMARKS[name].checker if name in BENCHMARKS else BENCHMARKS["toy"].checker
    return None if module is None else importlib.import_module(module).check


# ======================================================================== loading


def load_benchmark(name, split="test", limit=None):
    """The rows of a benchmark or of a user's own data; at most the first `limit` rows."""
    own = check_name(name, split)
    if name.endswith(HELD_OUT):
        whole = name.removesuffix(HELD_OUT)
        return hold_out(load_benchmark(whole, "train"), whole)[1][:limit]
    benchmark = Benchmark(name) if own else BENCHMARKS[name]
    in_repository = not own and benchmark.source.startswith("toy/")

    # 1. The whole table.
    source = benchmark.source
    if in_repository:
        source = str(ROOT / source.format(split=split))
    if in_repository or (own and Path(name).is_file()):
        data = read_file(source)
    elif own:
        data = read_own_hub(name, split)
    else:
        data = read_hub(source, benchmark.configuration, getattr(benchmark, split), name)

    # 2. Plain dicts. The text is decoded in this step, so broken text is found in this step.
    try:
        table = list(itertools.islice(data, limit))
    except UnicodeDecodeError:
        raise Mistake(
            f"'{source}' holds text that is not in UTF-8; save it in that encoding."
        ) from None
    require(table, f"'{source}' holds no rows.")

    # 3. The two columns that must be there.
    if own:
        candidates = (PROBLEM_COLUMNS, ANSWER_COLUMNS)
    else:
        candidates = ([benchmark.problem], [benchmark.answer])
    problem_column, answer_column = find_columns(list(table[0]), source, *candidates)

    # 4. One form for all benchmarks.
    rows, first_with = [], {}
    for i, row in enumerate(table):
        which = f"Row {i + 1} of '{source}'"
        problem, answer = row[problem_column], row[answer_column]
        check_row(problem, answer, which)
        solution = solution_text(row.get("solution"))
        if isinstance(answer, list):  # OlympiadBench has a list of gold answers
            answer = solution if answer_column == "solution" else ", ".join(map(str, answer))
        answer = str(answer)
        worked = worked_solution(answer, answer_column == "solution", own, which)
        if worked:
            text, answer = worked
            # A box with nothing beside it is no solution, and a column solution stays.
            known = answer_column != "solution" and solution
            if not known and text.strip() != f"\\boxed{{{answer}}}":
                solution = text
        if own:
            check_backslashes([problem, answer, solution], which)
            check_repetition(first_with, problem, answer, i, source, split)
        prompt = problem if in_repository else f"{problem}\n{INSTRUCTION}"
        same = {"problem": problem, "answer": answer, "prompt": prompt, "solution": solution}
        rows.append({**row, **same})
    if own:
        warn_of_golds(rows, source)
    return rows


# ======================================================================== training and test rows

# A share of a user's own problems, but not more than are needed for a narrow interval.
SHARE, MOST = 0.1, 500


def hold_out(rows, name):
    """(rows to train on, rows to test on) of a user's own data.

    A hash of the problem decides which rows are held out. --seed does not, so all seeds of all
    methods are tested on the same problems, and evaluate.py finds them again. A problem that
    occurs several times lies on one side, and it is tested once.
    """
    first = {}  # {problem: the first row with it}
    for row in rows:
        first.setdefault(in_plain_spaces(row["problem"]), row)
    require(
        len(first) > 1,
        f"'{name}' holds one problem, so none can be held out for testing; pass other problems "
        "with --benchmark.",
    )
    order = sorted(first, key=lambda p: hashlib.sha256(f"held out: {p}".encode()).hexdigest())
    # In the order of the hash: the first --eval_n of them come from everywhere in the file.
    held = order[: min(MOST, max(1, round(SHARE * len(first))))]
    tested = set(held)
    training = [row for row in rows if in_plain_spaces(row["problem"]) not in tested]
    return training, [first[p] for p in held]


def training_and_tests(data, benchmark, resumed=False):
    """(training rows, test rows) of a run. No problem is in both."""
    rows = load_benchmark(data, "train")
    if benchmark == data + HELD_OUT:
        rows, tests = hold_out(rows, data)
        print(
            f"held out {len(tests)} of its {problem_count(rows) + len(tests)} problems "
            f"({100 * SHARE:.0f} %, at most {MOST}; the same for every --seed) are only tested; "
            f"evaluate.py knows them as --benchmark {benchmark}"
        )
        return rows, tests
    tests = load_benchmark(benchmark, "test")
    if data in BENCHMARKS and benchmark in BENCHMARKS:  # published splits stay as they are
        return rows, tests
    trained = {in_plain_spaces(row["problem"]) for row in rows}
    both = [row["problem"] for row in tests if in_plain_spaces(row["problem"]) in trained]
    if both:
        said = (
            f"{len(both)} of the {len(tests)} problems of '{benchmark}' (--benchmark) are also in "
            f"'{data}' (--data), for example '{shorten(both[0], 60)}'. A model is not tested on "
            "what it was trained on"
        )
        # A run of an earlier version began with them. It must be possible to finish it.
        require(
            resumed,
            f"{said}: remove them from one of the two, or leave out --benchmark, and a part of "
            "--data is held out for testing.",
        )
        print(f"warning: {said}, but this run has begun so.")
    return rows, tests


def problem_count(rows):
    return len({in_plain_spaces(row["problem"]) for row in rows})


# ======================================================================== prompts

# Some templates print today's date (Llama-3.2). Then the same command would ask something else
# tomorrow. Instead they print the day that Llama's template names where there is no clock.
DAY = datetime.date(2024, 7, 26)
CLOCK = r"""strftime_now\s*\(\s*(?:format\s*=\s*)?(?:'([^']*)'|"([^"]*)")\s*\)"""


def privileged_prompt(problem, solution=None, answer=None):
    """The user's turn for a model that is shown more than the problem: a solution (the
    whole of it or a part), the gold answer, or both.

    All views use the same wording. So two views differ only in what they show.
    """
    parts = [problem]
    if solution:
        parts.append(f"This is an example response:\n{solution}")
    if answer is not None:
        parts.append(f"The final answer is {answer}.")
    return "\n\n".join([*parts, "Now answer with your own response."])


def prompt_ids(tokenizer, user, thinking=False):
    """Token ids of one user's turn and of the opening of the assistant's turn.

    Thinking is switched off explicitly, because Qwen3's template switches it on by default.
    If a student was sampled with one template and scored or evaluated with another, its
    responses would be measured behind prompts that it has not answered.
    """
    require(
        tokenizer.chat_template,
        f"The tokenizer of '{tokenizer.name_or_path}' has no chat template; use an instruct model.",
    )
    template = re.sub(
        CLOCK, lambda m: repr(DAY.strftime(m[1] or m[2])), tokenizer.get_chat_template()
    )
    encoded = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}],
        chat_template=template,
        add_generation_prompt=True,
        tokenize=True,
        enable_thinking=thinking,
        return_dict=True,
    )
    return list(encoded["input_ids"])


def opened_thinking(tokenizer):
    """"<think>" if the chat template opens the thinking in the prompt, else "" (see `opened`)."""
    has_one = getattr(tokenizer, "chat_template", None)
    return opened(tokenizer.decode(prompt_ids(tokenizer, "1 + 1"))) if has_one else ""


def knows(tokenizer, text):
    """Does the tokenizer have all words of the text? What it does not have becomes <unk>."""
    if tokenizer.unk_token_id is None:
        return True
    return tokenizer.unk_token_id not in tokenizer(text, add_special_tokens=False)["input_ids"]


def ask_in_known_words(tokenizer, rows):
    """Ask without INSTRUCTION where the tokenizer does not have its words, as the toy's. So a
    user's own problems in the toy's language can be given to the toy's models."""
    if not knows(tokenizer, INSTRUCTION):
        for row in rows:
            row["prompt"] = row["problem"]


def check_prompts(tokenizer, prompts, data):
    """Refuse data whose words the tokenizer does not have.

    Such a word becomes <unk>. Then the model is asked something else than the data says.
    """
    for prompt in prompts:
        require(
            knows(tokenizer, prompt),
            f"The tokenizer of '{tokenizer.name_or_path}' does not know the words of '{data}' "
            f"({shorten(prompt, 60)}); the toy's models only speak the toy's language "
            "(--data toy, --benchmark toy).",
        )
