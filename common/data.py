"""Problems and prompts: where each benchmark comes from, and which text a model is given.

`load_benchmark` returns rows. A row is a dict with `problem`, `prompt` (the text of the
user's turn), `answer` (the gold answer as a string) and the other columns of its data set.
`prompt_ids` turns a user's turn into the token ids that a model sees.

Training and evaluation must do all of this in the same way. If they do not, the evaluation
measures a model on prompts that it was never trained on.
"""

import importlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from common.arguments import Mistake, require, shorten
from common.models import ROOT, reach_hub

# ======================================================================== the benchmarks

# This is Qwen3's own wording. The toy is asked without it: its vocabulary lacks the words.
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


class Benchmark(NamedTuple):
    """The columns of the table below, with what holds where the table says nothing."""

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

# A user's own file may call its columns by any of these names.
PROBLEM_COLUMNS, ANSWER_COLUMNS = ("problem", "question"), ("answer", "final_answer", "gold")


def check_name(name, split):
    """True for a local file, False for a benchmark, a Mistake for anything else.

    This reads no data. So a wrong name is reported before anything slow begins.
    """
    if name.endswith((".jsonl", ".json")) or name not in BENCHMARKS:
        require(
            Path(name).is_file(),
            f"There is no benchmark and no file named '{name}'. Benchmarks: "
            f"{', '.join(BENCHMARKS)}; or the path of a JSONL file with the columns problem and "
            "answer.",
        )
        return True
    require(
        getattr(BENCHMARKS[name], split) is not None,
        f"'{name}' has no training problems; train on toy or gsm8k, or pass a JSONL file with "
        "the columns problem and answer.",
    )
    return False


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
    """The rows of a benchmark or of a local JSONL file; at most the first `limit` rows."""
    local = check_name(name, split)
    benchmark = Benchmark(name) if local else BENCHMARKS[name]
    in_repository = not local and benchmark.source.startswith("toy/")

    # 1. The whole table, as an object of the package datasets.
    if local or in_repository:
        source = name if local else str(ROOT / benchmark.source.format(split=split))
        data = read_file(source)
    else:
        source = benchmark.source
        data = read_hub(name, split)

    # 2. The two columns that must be there.
    if local:
        candidates = (PROBLEM_COLUMNS, ANSWER_COLUMNS)
    else:
        candidates = ([benchmark.problem], [benchmark.answer])
    problem_column, answer_column = find_columns(data, source, *candidates)

    # 3. Plain dicts. Only here is the text decoded, so only here can it turn out to be
    # broken.
    require(len(data) > 0, f"'{source}' holds no rows.")
    try:
        table = list(data.select(range(min(limit or len(data), len(data)))))
    except UnicodeDecodeError:
        raise Mistake(
            f"'{source}' holds text that is not in UTF-8; save it in that encoding."
        ) from None

    # 4. One form for all benchmarks.
    rows, first_with = [], {}
    for i, row in enumerate(table):
        problem, answer = row[problem_column], row[answer_column]
        if isinstance(answer, list):  # OlympiadBench has a list of gold answers
            answer = ", ".join(map(str, answer))
        check_row(problem, answer, f"Row {i + 1} of '{source}'")
        answer = str(answer)
        if local:
            check_repetition(first_with, problem, answer, i, source, split)
        if "####" in answer:  # GSM8K, and files in its format
            row["solution"], answer = solution_and_gold(answer)
        prompt = problem if in_repository else f"{problem}\n{INSTRUCTION}"
        rows.append({**row, "problem": problem, "answer": answer, "prompt": prompt})
    return rows


def quiet_datasets():
    """The package datasets, without progress bars and without a log.

    Its errors are also exceptions, and each of them is reported once, by this file.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def read_file(path):
    datasets = quiet_datasets()
    try:
        if os.path.getsize(path) > 0:
            return datasets.load_dataset("json", data_files=path, split="train")
    except Exception as error:  # a dozen kinds of exception mean that the file cannot be read
        raise Mistake(
            f"Could not load the file '{path}' ({type(error).__name__}: {first_words(error)}). "
            "It must hold one JSON object a line, in UTF-8."
        ) from None
    raise Mistake(
        f"The data file '{path}' is empty; it needs one JSON object a line with the columns "
        "problem and answer."
    )


def read_hub(name, split):
    datasets, benchmark = quiet_datasets(), BENCHMARKS[name]
    hub_split = getattr(benchmark, split)
    try:
        reach_hub()
        return datasets.load_dataset(benchmark.source, benchmark.configuration, split=hub_split)
    except Exception as error:  # a dozen kinds of exception mean that there is no data set
        raise Mistake(
            f"Could not load the data set '{benchmark.source}' ({type(error).__name__}: "
            f"{first_words(error)}). Without network, save its {hub_split} split as JSONL and "
            f"pass that file's path instead of '{name}'."
        ) from None


def first_words(error):
    return " ".join(str(error).split())[:200]


def find_columns(data, source, problem_columns, answer_columns):
    """(column of the problem, column of the answer): of each the first name that exists."""
    there = data.column_names
    problem = next((c for c in problem_columns if c in there), None)
    answer = next((c for c in answer_columns if c in there), None)
    missing = [what for what, c in (("problem", problem), ("answer", answer)) if c is None]
    require(
        not missing,
        f"'{source}' has no column for the {' and the '.join(missing)}; its columns are "
        f"{', '.join(there)}. Rename them, or pass a JSONL file with the columns problem and "
        "answer.",
    )
    return problem, answer


def check_row(problem, answer, which):
    """Refuse a row without a problem or without an answer that can be compared."""
    require(
        isinstance(problem, str) and problem.strip(),
        f"{which} has no text as its problem; mend or delete it.",
    )
    not_a_number = answer != answer  # only NaN is unequal to itself
    require(
        not (answer is None or isinstance(answer, (bool, dict)) or not_a_number)
        and str(answer).strip(),
        f"{which} has an empty answer, or one that is neither text nor a number; mend or delete "
        "it.",
    )


def check_repetition(first_with, problem, answer, i, source, split):
    """Refuse a problem that the file holds twice, here in row i.

    With two different answers, one of them is wrong. With the same answer, a test problem
    is counted twice, and the interval becomes too narrow. In training that does no harm.
    first_with: {problem: (its first row, its answer there)}.
    """
    j, earlier = first_with.setdefault(problem, (i, answer))
    if earlier != answer or (j < i and split == "test"):
        both = f" with different answers ({earlier!r}, {answer!r})" if earlier != answer else ""
        raise Mistake(
            f"Rows {j + 1} and {i + 1} of '{source}' hold the same problem{both}; delete one of "
            "them."
        )


def solution_and_gold(answer):
    """GSM8K stores a whole worked solution as the answer of a row. Returns the solution, with the
    final number in a box, and the number alone.

    If the whole text was the gold, a teacher that may see only the final answer would see the
    solution. The stored text has calculator marks, which are left out:
    48/2 = <<48/2=24>>24 ... #### 72
    """
    solution, _, final = re.sub(r"<<[^>]*>>", "", answer).rpartition("####")
    gold = final.strip()
    return f"{solution.strip()}\nThe answer is \\boxed{{{gold}}}.", gold


# ======================================================================== prompts


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
    A student that is sampled with one template and scored or evaluated with another is
    measured on a text that it was never asked for.
    """
    require(
        tokenizer.chat_template,
        f"The tokenizer of '{tokenizer.name_or_path}' has no chat template; use an instruct model.",
    )
    encoded = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}],
        add_generation_prompt=True,
        tokenize=True,
        enable_thinking=thinking,
        return_dict=True,
    )
    return list(encoded["input_ids"])


def check_prompts(tokenizer, prompts, data):
    """Refuse data whose words the tokenizer does not have.

    Such a word becomes <unk>. Then the model is asked something else than the data says.
    """
    if tokenizer.unk_token_id is None:
        return
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        require(
            tokenizer.unk_token_id not in ids,
            f"The tokenizer of '{tokenizer.name_or_path}' does not know the words of '{data}' "
            f"({shorten(prompt, 60)}); the toy's models only speak the toy's language "
            "(--data toy, --benchmark toy).",
        )
