"""Tables: a file of the user or a data set of the hub, read and checked row by row.

What arrives here was written by somebody else. So everything that can be wrong with it ends in
one sentence that names the place. common/data.py turns the rows into problems.
"""

import csv
import glob
import json
import math
import os
import re
import tempfile
from decimal import Decimal
from pathlib import Path

from common.arguments import Mistake, require, shorten
from common.grading import extract, is_gold
from common.hub import hub_folder, reach_hub
from common.notation import plain_number, tidy

# ======================================================================== reading

# CSV and Parquet are read by the package datasets. Files with other names are read as JSON.
READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
CONTENT = {
    "json": "It must hold one JSON object a line, in UTF-8.",
    "csv": "It must hold a comma-separated table (or .tsv: separated by tabs) whose first line "
    "names the columns, in UTF-8.",
    "parquet": "It must hold a table in the format Parquet.",
}


def is_hub_name(name):
    """OWNER/NAME or OWNER/NAME:CONFIGURATION. A path with the suffix of a file is none. Nor is a
    folder of the user, whose files would be read with guessed types: 007 as 7.0."""
    pattern = r"[\w.-]+/[\w.-]+(:[\w.-]+)?"
    folder = Path(name)
    require(
        not folder.is_dir() or (folder / "README.md").exists(),  # that is a copy of a data set
        f"'{name}' is a folder; name a file in it.",
    )
    return bool(re.fullmatch(pattern, name)) and Path(name).suffix.lower() not in READERS


def quiet_datasets():
    """The package datasets, without progress bars and without a log.

    Its errors are also exceptions, and each of them is reported once, by this file.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def read_file(path):
    """The rows of a local file. All of them have the same columns; what a row lacks is None."""
    suffix = Path(path).suffix.lower()
    kind = READERS.get(suffix, "json")
    require(
        os.path.getsize(path) > 0,
        f"The data file '{path}' is empty; it needs rows with the columns problem and answer. "
        f"{CONTENT[kind]}",
    )
    try:
        if kind == "json":
            rows = read_json_rows(path)
        else:
            rows = read_table(path, kind, "\t" if suffix == ".tsv" else ",")
        require(rows, f"'{path}' has no data: not one row.")
        columns = dict.fromkeys(name for row in rows for name in row)
        return [{c: row.get(c) for c in columns} for row in rows]
    except Mistake:
        raise
    except Exception as error:  # a dozen kinds of exception mean that the file cannot be read
        raise Mistake(
            f"Could not load the file '{path}' ({cause(error)}). {CONTENT[kind]}"
        ) from None


class Typed(float):
    """A number that is not whole, which remembers how it was typed: 0.50 stays 0.50."""

    def __new__(cls, text):
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self):
        return self.text


def read_json_rows(path):
    """JSON objects one after the other, mostly one a line, or lists of them.

    The package datasets would give every column one type. Then a gold of 22 digits loses some of
    them, and a column with both numbers and texts is refused. Here a number stays as it was typed.
    """
    with open(path, encoding="utf-8-sig") as f:
        text = f.read()
    decoder = json.JSONDecoder(parse_float=Typed, object_pairs_hook=without_repetition)
    rows, at = [], len(text) - len(text.lstrip())
    while at < len(text):
        begin = at
        found, at = decoder.raw_decode(text, at)
        found = found if isinstance(found, list) else [found]
        if not all(isinstance(row, dict) for row in found):
            line = text.count("\n", 0, begin) + 1
            raise ValueError(f"line {line} holds something else")
        # Half a character, as in "\ud83d", cannot be written anywhere.
        json.dumps(found, ensure_ascii=False).encode()
        rows += found
        while at < len(text) and text[at].isspace():
            at += 1
    return rows


def without_repetition(pairs):
    """A JSON object as a dict. Of two equal names one value would be lost."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"an object names one of its columns twice: {[k for k, _ in pairs]}")
    return dict(pairs)


def read_table(path, kind, separator):
    """The rows of a CSV or Parquet file."""
    datasets = quiet_datasets()
    how = text_columns(path, separator) if kind == "csv" else {}
    # The package reads a name with brackets or stars as a pattern.
    file = glob.escape(str(path))
    # As a stream. Otherwise the package writes a copy of every file, and the disk may be full.
    # Its own folder may be one that cannot be written to. It needs one even for a stream.
    with tempfile.TemporaryDirectory() as folder:
        stream = datasets.load_dataset(
            kind, data_files=file, split="train", streaming=True, cache_dir=folder, **how
        )
        return list(stream)


def text_columns(path, separator):
    """For the reader of CSV: every column is text, as it was typed. As numbers, a column with 3
    and 2.5 would become 3.0 and 2.5, and a gold of 22 digits would lose some of them."""
    csv.field_size_limit(2**31 - 1)  # otherwise a text of 131,073 characters is an error
    with open(path, encoding="utf-8-sig", newline="") as f:
        rows = csv.reader(f, delimiter=separator)
        columns = next(rows, [])
        # Otherwise the reader would shift the columns, and the problem would become a name.
        for number, row in enumerate(rows, 1):
            require(
                len(row) <= len(columns),
                f"Row {number} of '{path}' has {len(row)} fields, and the first line names "
                f"{len(columns)} columns. A comma inside of a text needs double quotes around the "
                "text.",
            )
    how = {"sep": separator, "keep_default_na": False}  # a gold NA is those two letters
    return {**how, "converters": dict.fromkeys(columns, str)}


def read_hub(source, configuration, split, instead):
    """A split of a data set of the hub. instead: the name that a user can replace by a file."""
    datasets = quiet_datasets()
    try:
        reach_hub()
        return datasets.load_dataset(source, configuration, split=split)
    except Exception as error:  # a dozen kinds of exception mean that there is no data set
        raise Mistake(
            f"Could not load the data set '{source}' ({cause(error)}).{hub_folder(error)} "
            "Check the spelling and the network. Without network, save its "
            f"{split or 'training or test'} split as JSONL and pass that file's path instead of "
            f"'{instead}'."
        ) from None


def read_own_hub(name, split):
    """A data set of the hub that is no benchmark: its split train or test, or its only split."""
    source, _, configuration = name.partition(":")
    splits = read_hub(source, configuration or None, None, name)
    only = list(splits)[0] if len(splits) == 1 else split
    require(
        only in splits,
        f"'{name}' has no split {split}; it has {', '.join(splits)}. Save one of them as JSONL and "
        "pass that file's path.",
    )
    return splits[only]


def cause(error):
    """What went wrong first, in a few words. The package wraps it into an error that says
    nothing."""
    inner = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
    error = inner or error
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# ======================================================================== columns

# A user's own data may call their columns by any of these names. The first that exists counts.
PROBLEM_COLUMNS = ("problem", "question", "prompt")
ANSWER_COLUMNS = ("answer", "final_answer", "gold", "solution")


def find_columns(there, source, problem_columns, answer_columns):
    """(column of the problem, column of the answer): of each the first name that is there."""
    problem = next((c for c in problem_columns if c in there), None)
    answer = next((c for c in answer_columns if c in there), None)
    missing = [what for what, c in (("problem", problem), ("answer", answer)) if c is None]
    require(
        not missing,
        f"'{source}' has no column for the {' and the '.join(missing)}; its columns are "
        f"{', '.join(there)}. Rename them: a problem is read from problem, question or prompt, an "
        "answer from answer, final_answer, gold or solution (the final answer stands in its "
        "\\boxed{}).",
    )
    return problem, answer


def in_plain_spaces(problem):
    """Two problems that differ in their spaces and line ends are the same problem."""
    return " ".join(problem.split())


def check_row(problem, answer, which):
    """Refuse a row without a problem or without an answer that can be compared."""
    require(
        isinstance(problem, str) and problem.strip(),
        f"{which} has no text as its problem; mend or delete it.",
    )
    golds = answer if isinstance(answer, list) else [answer]  # OlympiadBench has a list of them
    require(
        all(map(is_text_or_number, golds)) and any(str(g).strip() for g in golds),
        f"{which} has an empty answer, or one that is neither text nor a number; mend or delete "
        "it.",
    )


# What JSON makes of \frac, \boxed, \text, \right if their backslash is not doubled. No tab of a
# table stands in front of these ends of words.
ESCAPED = re.compile(
    r"[\f\x08](?=[a-zA-Z])|\t(?=ext|imes|heta|frac|riangle|ilde)|\r(?=ight|angle|ceil|floor)"
)


def check_backslashes(texts, which):
    """Refuse a row whose LaTeX has lost its backslashes."""
    for text in texts:
        found = ESCAPED.search(text or "")
        behind = shorten(text[found.end() :], 20) if found else ""
        require(
            found is None,
            f"{which} has a control character in front of '{behind}': a backslash of LaTeX was not "
            "escaped. JSON writes \\frac as \\\\frac, and json.dumps does so by itself.",
        )


def warn_of_golds(rows, source):
    """Say how many golds would not accept themselves. No response to their problems is right."""
    bad = [i for i, row in enumerate(rows) if not is_gold(row["answer"])]
    if bad:
        first = shorten(rows[bad[0]]["answer"], 60)
        print(
            f"warning: {len(bad)} of the {len(rows)} answers of '{source}' cannot be graded, so no "
            f"response to them is right; the first is {first!r} in row {bad[0] + 1}"
        )


def is_text_or_number(value):
    if isinstance(value, (float, Decimal)) and not isinstance(value, Typed):
        return math.isfinite(value)
    return isinstance(value, (str, int, Typed)) and not isinstance(value, bool)


def check_repetition(first_with, problem, answer, i, source, split):
    """Refuse a problem that the file holds twice, here in row i.

    With two different answers, one of them is wrong. With the same answer, a test problem
    is counted twice, and the interval becomes too narrow. In training that does no harm.
    first_with: {problem: (its first row, its answer there)}.
    """
    j, earlier = first_with.setdefault(in_plain_spaces(problem), (i, answer))
    if earlier != answer or (j < i and split == "test"):
        both = f" with different answers ({earlier!r}, {answer!r})" if earlier != answer else ""
        raise Mistake(
            f"Rows {j + 1} and {i + 1} of '{source}' hold the same problem{both}; delete one of "
            "them."
        )


# ======================================================================== golds


def solution_text(solution):
    """The worked solution of a row as one text, or None if there is none.

    OlympiadBench has a list of texts. A number or an object is nothing that a model could read
    as a solution.
    """
    parts = solution if isinstance(solution, list) else [solution]
    return "\n\n".join(p for p in parts if isinstance(p, str) and p.strip()) or None


def worked_solution(answer, is_solution, own, which):
    """(worked solution, gold) if the answer of a row is a whole worked solution, else None.

    If the whole text was the gold, a teacher that may see only the final answer would see the
    solution. is_solution: the column says that it is one.  own: the user's own data, whose
    solutions may also end with a box.
    """
    boxed, marked = own and "\\boxed" in answer, "####" in answer
    # #### also begins a heading in Markdown. It marks a gold if only the gold stands behind it. If
    # there is a box as well, that gold must be a number.
    last = answer.rpartition("####")[2].strip()
    one_line = bool(last) and "\n" not in last
    if marked and one_line and (not boxed or plain_number(tidy(last)) is not None):
        return gsm8k_solution(answer)
    if not own or not (is_solution or boxed or marked):
        return None
    gold = extract(answer) if boxed or not marked else None
    require(
        gold,
        f"{which} has a solution without a final answer in \\boxed{{...}} or behind ####; mend it, "
        "or add a column answer.",
    )
    return answer, gold


def gsm8k_solution(answer):
    """GSM8K stores a whole worked solution as the answer of a row. Returns the solution, with the
    final number in a box, and the number alone.

    The stored text has calculator marks, which are left out: 48/2 = <<48/2=24>>24 ... #### 72
    """
    solution, _, final = re.sub(r"<<[^>]*>>", "", answer).rpartition("####")
    gold = final.strip()
    if not solution.strip():  # an answer alone, and no solution
        return f"\\boxed{{{gold}}}", gold
    return f"{solution.strip()}\nThe answer is \\boxed{{{gold}}}.", gold
