"""common/compare.py: which runs are one arm, which cannot be compared, and what the table says."""
import json
import shutil

import pytest

from common.arguments import Mistake
from common.compare import compare
from common.evaluation import newcombe, wilson


def fake_run(folder, config, *accuracies, n=10):
    """A training run: accuracies at the updates 0, 10, 20 ... of n problems"""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"script": "opd.py", **config}))
    rows = [{"step": 10 * i, "eval": {"accuracy": a, "interval": [0, 1], "n": n}}
            for i, a in enumerate(accuracies)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def fake_evaluation(folder, verdicts, model="m", benchmark="toy", seed=0, gold="1", n=None,
                    asked=None, **more):
    """verdicts: {problem: verdicts of its samples}. n: the problems of the summary, 0: none"""
    folder.mkdir()
    config = {"model": model, "benchmark": benchmark, "seed": seed, **more}
    (folder / "config.json").write_text(json.dumps(config))
    hashes = {} if asked is None else {"asked": asked}
    rows = [{"index": i, "correct": v, "gold": gold, **hashes} for i, values in verdicts.items()
            for v in values]
    if n != 0:
        (folder / "summary.json").write_text(json.dumps({"n": n or len(verdicts)}))
    (folder / "responses.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_compare_pairs_by_seed(tmp_path):
    for seed, a, b in ((0, .50, .55), (1, .60, .66), (2, .40, .45)):
        for arm, final, lr in (("a", a, 1e-3), ("b", b, 2e-3)):
            folder = tmp_path / f"{arm}{seed}"
            fake_run(folder, {"seed": seed, "out": str(folder), "lr": lr}, .2, final)
    folders = [tmp_path / f"{arm}{seed}" for arm in "ab" for seed in range(3)]
    text = compare(folders, tmp_path / "picture.png")
    first, second = [line for line in text.split("\n") if line.startswith("opd.py")]
    assert "50.0%" in first and "55.3%" in second
    # differences .05 .06 .05: mean .0533, standard error .00333, t(2) = 4.303
    assert "+5.3 [+3.9, +6.8] over 3 seeds" in second
    assert (tmp_path / "picture.png").stat().st_size > 5000
    with pytest.raises(Mistake):
        compare([tmp_path], tmp_path / "x.png")


def test_runs_of_another_version_are_the_same_arm(tmp_path):
    """Flags that came later (sampler, adam_bits, lora) or went (off_policy_data) do not tear an
    arm apart. What was really set differently still does."""
    new = {"lr": 1e-3, "sampler": "own", "adam_bits": 32, "lora": 0, "vllm_memory": .3}
    fake_run(tmp_path / "old", {"lr": 1e-3, "off_policy_data": "reference", "seed": 0}, .5)
    fake_run(tmp_path / "new", {**new, "seed": 1}, .6)
    fake_run(tmp_path / "eight0", {**new, "adam_bits": 8, "seed": 0}, .6)
    fake_run(tmp_path / "eight1", {**new, "adam_bits": 8, "seed": 1}, .7)
    folders = [tmp_path / name for name in ("old", "new", "eight0", "eight1")]
    lines = compare(folders, tmp_path / "x.png").split("\n")
    arms = [line.split() for line in lines if line.startswith("opd.py")]
    assert len(arms) == 2 and arms[0][:3] == ["opd.py", "2", "55.0%"], lines
    assert arms[1][:4] == ["opd.py", "adam_bits=8", "2", "65.0%"], lines
    assert "+10.0" in arms[1] and arms[1][-3:] == ["for", "2", "seeds)"]


def test_another_spelling_of_a_file_or_folder_is_no_other_arm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jsonl").write_text("")
    (tmp_path / "student").mkdir()
    spellings = ("own.jsonl", "student"), ("./own.jsonl", "./student/")
    for seed, (data, student) in enumerate(spellings):
        flags = {"data": data, "student": student, "benchmark": f"{data}:held-out"}
        fake_run(tmp_path / str(seed), {**flags, "seed": seed}, .5)
    lines = compare([tmp_path / "0", tmp_path / "1"], tmp_path / "x.png").split("\n")
    [arm] = [line.split() for line in lines if line.startswith("opd.py")]
    assert arm[1] == "2"


def test_compare_pairs_evaluations_by_problem(tmp_path):
    fake_evaluation(tmp_path / "a", {0: [True, False], 1: [False, False], 2: [True, True]}, "base")
    fake_evaluation(tmp_path / "b", {0: [True, True], 1: [False, True], 2: [True, True]}, "tuned")
    text = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "x.png")
    _, first, second = text.split("\n")
    assert first.split()[:3] == ["base", "1", "50.0%"]
    assert second.split()[:3] == ["tuned", "1", "83.3%"]
    # differences .5 .5 0: (3 x .333 - 3.84) / (3 + 3.84), which is below Student's -38.4
    assert "+33.3 [-41.5, +100.0] over 3 problems" in second
    assert not (tmp_path / "x.png").exists()  # there are no curves to draw
    fake_evaluation(tmp_path / "c", {0: [True]}, benchmark="gsm8k")
    with pytest.raises(Mistake, match="different benchmarks: gsm8k, toy"):
        compare([tmp_path / "a", tmp_path / "c"], tmp_path / "x.png")


def test_an_evaluation_with_fewer_problems_counts_on_the_shared_ones(tmp_path):
    """With --limit: a problem that was not asked is not a wrong answer."""
    fake_evaluation(tmp_path / "whole", {0: [True], 1: [True], 2: [False]}, "base", seed=0)
    fake_evaluation(tmp_path / "part", {0: [True], 1: [True]}, "base", seed=1)
    fake_evaluation(tmp_path / "other", {0: [True], 1: [True], 2: [True]}, "tuned")
    for folders in (("whole", "part", "other"), ("part", "whole", "other")):
        text = compare([tmp_path / f for f in folders], tmp_path / "x.png")
        _, first, second, note = text.split("\n")
        assert first.split()[:3] == ["base", "2", "100.0%"]
        assert "+0.0 [-65.8, +65.8] over 2 problems" in second
        assert note == "note: only the 2 problems count that all evaluations have, of up to 3"


def test_an_evaluation_that_was_stopped_before_its_first_batch_is_named(tmp_path):
    fake_evaluation(tmp_path / "none", {})
    with pytest.raises(Mistake, match="has no responses yet"):
        compare([tmp_path / "none"], tmp_path / "x.png")


# ------------------------------------------------------------------------ what is refused


def test_a_folder_that_is_no_run_is_named_with_the_way_out(tmp_path):
    for name in ("none", "model"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model/config.json").write_text('{"model_type": "qwen3"}')
        with pytest.raises(Mistake, match="is not a run: .* name the folder that a training"):
            compare([tmp_path / name], tmp_path / "x.png")


def test_a_run_that_was_stopped_early_is_refused(tmp_path):
    fake_run(tmp_path / "whole", {"seed": 0, "steps": 20}, .2, .5, .6)
    fake_run(tmp_path / "part", {"seed": 1, "steps": 20}, .2, .5)
    fake_run(tmp_path / "other", {"seed": 1, "steps": 30}, .2, .5)
    for order in ([0, 1, 2], [2, 1, 0]):
        folders = [[tmp_path / f for f in ("whole", "part", "other")][i] for i in order]
        with pytest.raises(Mistake) as refused:
            compare(folders, tmp_path / "x.png")
        said = str(refused.value)
        assert f"'{tmp_path}/part' is at update 10 of 20; let it go on (python opd.py" in said
        assert f"'{tmp_path}/other' is at update 10 of 30" in said and "whole" not in said
    assert not (tmp_path / "x.png").exists()


def test_an_evaluation_that_was_stopped_is_refused(tmp_path):
    """Problems with short prompts are asked first, and they are the easy ones."""
    fake_evaluation(tmp_path / "whole", {i: [i < 3] for i in range(6)}, "base")
    fake_evaluation(tmp_path / "part", {1: [True], 4: [True]}, "tuned", n=0)
    with pytest.raises(Mistake, match="part' was stopped after 2 problems, those with the short"):
        compare([tmp_path / "whole", tmp_path / "part"], tmp_path / "x.png")
    # A complete evaluation of three problems, and some answers of a longer one that was stopped.
    fake_evaluation(tmp_path / "three", {0: [True], 1: [True], 2: [False], 5: [True]}, "tuned", n=3)
    lines = compare([tmp_path / "whole", tmp_path / "three"], tmp_path / "x.png").split("\n")
    assert lines[1].split()[:3] == ["base", "1", "100.0%"]
    assert lines[2].split()[:3] == ["tuned", "1", "66.7%"]


def test_one_folder_under_two_names_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_run(tmp_path / "a", {"seed": 0}, .5)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "below").mkdir()
    for other in ("a", "./a/", tmp_path / "a", "below/../a", "link"):
        with pytest.raises(Mistake, match="are the same folder; name a run once"):
            compare(["a", other], tmp_path / "x.png")


def test_a_copy_is_no_second_seed(tmp_path):
    fake_run(tmp_path / "a", {"seed": 3, "out": "a"}, .5)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(Mistake, match="the same settings and seed .3., so they are one run made twice"):
        compare([tmp_path / "a", tmp_path / "b"], tmp_path / "x.png")
    fake_evaluation(tmp_path / "c", {0: [True], 1: [False]})
    shutil.copytree(tmp_path / "c", tmp_path / "d")
    with pytest.raises(Mistake, match="one run made twice"):
        compare([tmp_path / "c", tmp_path / "d"], tmp_path / "x.png")


def test_runs_on_other_benchmarks_or_with_other_golds_are_refused(tmp_path):
    fake_run(tmp_path / "a", {"seed": 0, "benchmark": "toy"}, .5)
    fake_run(tmp_path / "b", {"seed": 0, "benchmark": "toy-heldout"}, .5)
    with pytest.raises(Mistake, match="different benchmarks: toy, toy-heldout. Evaluate their fin"):
        compare([tmp_path / "a", tmp_path / "b"], tmp_path / "x.png")
    fake_evaluation(tmp_path / "c", {0: [True]}, "base")
    fake_evaluation(tmp_path / "d", {0: [True]}, "tuned", gold="2")
    with pytest.raises(Mistake, match="different golds for problem 0"):
        compare([tmp_path / "c", tmp_path / "d"], tmp_path / "x.png")


def test_other_problems_with_the_same_golds_are_refused(tmp_path):
    for name, asked in (("a", "1" * 16), ("b", "2" * 16), ("old", None), ("c", "1" * 16)):
        fake_evaluation(tmp_path / name, {0: [True]}, name, asked=asked)
    with pytest.raises(Mistake, match="a' and '.*b' have the same gold for problem 0 and ask something"):
        compare([tmp_path / "a", tmp_path / "old", tmp_path / "b"], tmp_path / "x.png")
    assert "over 1 problems" in compare([tmp_path / x for x in ("a", "old", "c")], tmp_path / "x.png")


def test_different_versions_of_the_grading_code_are_told(tmp_path):
    for name, code in (("a", "1" * 16), ("b", "2" * 16), ("c", "2" * 16)):
        fake_evaluation(tmp_path / name, {0: [True]}, name, graded_by=code)
    said = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "x.png")
    assert "note: different versions of the grading code" in said and "graded_by" not in said
    assert "grading code" not in compare([tmp_path / "b", tmp_path / "c"], tmp_path / "x.png")


@pytest.mark.parametrize("out, sentence", [
    ("", "must end in .png, .pdf, .svg or .jpg"),
    ("picture", "must end in .png, .pdf, .svg or .jpg"),
    ("folder.png", "is a folder; give --out the name of a file"),
    ("a/config.json/x.png", "Cannot write into .* choose another"),
])
def test_a_picture_that_cannot_be_written_is_refused(tmp_path, out, sentence):
    (tmp_path / "folder.png").mkdir()
    fake_run(tmp_path / "a", {"seed": 0}, .5)
    with pytest.raises(Mistake, match=sentence):
        compare([tmp_path / "a"], tmp_path / out)


# ------------------------------------------------------------------------ what is one arm


def test_a_changed_loss_under_the_old_name_is_another_arm(tmp_path):
    fake_run(tmp_path / "a", {"seed": 0, "source": "aaaaaaaaaaaa"}, .5)
    fake_run(tmp_path / "b", {"seed": 1, "source": "aaaaaaaaaaaa"}, .6)
    fake_run(tmp_path / "c", {"seed": 0, "source": "bbbbbbbbbbbb"}, .8)
    fake_run(tmp_path / "d", {"seed": 1, "source": "aaaaaaaaaaaa+bbbbbbbbbbbb"}, .9)
    fake_run(tmp_path / "old", {"seed": 2}, .5)
    folders = [tmp_path / name for name in "abcd"]
    lines = compare(folders[:2], tmp_path / "x.png").split("\n")
    assert len([line for line in lines if line.startswith("opd.py")]) == 1
    lines = compare(folders, tmp_path / "x.png").split("\n")
    arms = [line.split()[:3] for line in lines if line.startswith("opd.py")]
    assert arms == [["opd.py", "code=aaaaaaa", "2"], ["opd.py", "code=bbbbbbb", "1"],
                    ["opd.py", "code=aaaaaaa+bbbbbbb", "1"]]
    assert "note: opd.py: these runs do not all have the same code" in "\n".join(lines)
    # A run of an older version has no hash. It is compared, and the table says so.
    lines = compare([*folders[:2], tmp_path / "old"], tmp_path / "x.png").split("\n")
    assert lines[1].split()[:3] == ["opd.py", "3", "53.3%"]
    assert any("old: written by an older version, so it is not known whether" in x for x in lines)
    lines = compare([tmp_path / "old"], tmp_path / "x.png").split("\n")
    assert not any("note" in line for line in lines)
    lines = compare([tmp_path / name for name in ("a", "c", "old")], tmp_path / "x.png").split("\n")
    assert [x.split()[1] for x in lines[1:4]] == ["code=aaaaaaa", "code=bbbbbbb", "code=unknown"]


def test_evaluations_of_other_weights_under_one_name_are_two_arms(tmp_path):
    fake_evaluation(tmp_path / "a", {0: [True], 1: [False]}, weights="1" * 16)
    fake_evaluation(tmp_path / "b", {0: [True], 1: [True]}, weights="2" * 16, seed=1)
    lines = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "x.png").split("\n")
    assert [x.split()[1] for x in lines[1:3]] == ["weights=1111111", "weights=2222222"]


def test_arms_are_named_by_script_and_by_what_differs_within_it(tmp_path):
    """OPD against TOPD: twelve flags that only one of them has say nothing to a reader."""
    shared = {"steps": 10, "eval_n": 10, "max_new_tokens": 160}
    opd = {**shared, "divergence": "reverse", "beta": .5, "estimator": "full", "lr": 1e-3}
    topd = {**shared, "script": "topd.py", "window_size": 12, "lam": .1, "epsilon": .05, "lr": 2e-3}
    for seed in (0, 1):
        fake_run(tmp_path / f"o{seed}", {**opd, "seed": seed}, .2, .5)
        fake_run(tmp_path / f"t{seed}", {**topd, "seed": seed}, .2, .6)
        fake_run(tmp_path / f"u{seed}", {**topd, "lam": .2, "seed": seed}, .2, .6)
    folders = [tmp_path / f"{arm}{seed}" for arm in "ot" for seed in (0, 1)]
    lines = compare(folders, tmp_path / "x.png").split("\n")
    assert [x.split()[:2] for x in lines[1:3]] == [["opd.py", "2"], ["topd.py", "2"]]
    assert lines[3] == "note: the arms also differ in lr (opd.py: 0.001, topd.py: 0.002)"
    folders += [tmp_path / f"u{seed}" for seed in (0, 1)]
    lines = compare(folders, tmp_path / "x.png").split("\n")
    names = [x[:15].strip() for x in lines[1:4]]
    assert names == ["opd.py", "topd.py lam=0.1", "topd.py lam=0.2"]


@pytest.mark.parametrize("flag, value", [("lora", 32), ("adam_bits", 8), ("sampler", "vllm")])
def test_two_scripts_that_differ_in_a_flag_with_a_neutral_value_are_flagged(flag, value, tmp_path):
    for seed in (0, 1):
        fake_run(tmp_path / f"o{seed}", {"lr": .1, "seed": seed}, .2, .5)
        fake_run(tmp_path / f"t{seed}", {"lr": .1, "seed": seed, "script": "topd.py", flag: value}, .2, .6)
    folders = [tmp_path / f"{arm}{seed}" for arm in "ot" for seed in (0, 1)]
    neutral = {"lora": 0, "adam_bits": 32, "sampler": "own"}[flag]
    note = f"note: the arms also differ in {flag} (opd.py: {neutral}, topd.py: {value})"
    for order in (folders, folders[::-1]):
        told = compare(order, tmp_path / "x.png")
        assert note in told or note.replace(f"opd.py: {neutral}, topd.py: {value}",
                                            f"topd.py: {value}, opd.py: {neutral}") in told
    # Within one script the names say it.
    for seed in (0, 1):
        fake_run(tmp_path / f"v{seed}", {"lr": .1, "seed": seed, flag: value}, .2, .6)
    told = compare([tmp_path / f"{arm}{seed}" for arm in "ov" for seed in (0, 1)], tmp_path / "x.png")
    assert f"opd.py {flag}={value}" in told and "also differ" not in told


def test_arms_with_other_steps_or_other_problems_are_flagged(tmp_path):
    fake_run(tmp_path / "a", {"seed": 0, "steps": 10, "eval_n": 10}, .2, .5)
    fake_run(tmp_path / "b", {"seed": 0, "steps": 20, "eval_n": 10}, .2, .5, .6)
    fake_run(tmp_path / "c", {"seed": 0, "steps": 10, "eval_n": 20}, .2, .6, n=20)
    text = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "x.png")
    assert ("note: the arms differ in steps (opd.py steps=10: 10, opd.py steps=20: 20): they were "
            "not trained for the same number of updates") in text
    text = compare([tmp_path / "a", tmp_path / "c"], tmp_path / "x.png")
    assert "their accuracies are of different problems" in text
    assert "none: 20 problems here, 10 there" in text


# ------------------------------------------------------------------------ intervals


def test_no_interval_collapses_or_leaves_what_is_possible(tmp_path):
    for seed, (a, b, c) in enumerate([(1, .90, .5), (1, .99, .5), (1, .97, .5)]):
        fake_run(tmp_path / f"a{seed}", {"seed": seed, "lr": 1}, .2, a, n=100)
        fake_run(tmp_path / f"b{seed}", {"seed": seed, "lr": 2}, .2, b, n=100)
        fake_run(tmp_path / f"c{seed}", {"seed": seed, "lr": 3}, .2, c, n=100)
    folders = [tmp_path / f"{arm}{seed}" for arm in "abc" for seed in range(3)]
    _, a, b, c, *notes = compare(folders, tmp_path / "x.png").split("\n")
    low, high = wilson(100, 100)
    assert f"{100 * low:.1f} .. 100.0" in a and "83.6 .. 100.0" in b
    assert any("all seeds ended alike, so the interval is over the 100 problems" in n for n in notes)
    low, high = newcombe(.5, 100, 1, 100)
    assert f"-50.0 [{100 * low:+.1f}, {100 * high:+.1f}] over 100 problems (equal for 3" in c
    # Two seeds: t has one degree of freedom, and Student's interval would be -77 .. 177.
    fake_run(tmp_path / "d0", {"seed": 0, "lr": 4}, .2, .4)
    fake_run(tmp_path / "d1", {"seed": 1, "lr": 4}, .2, .6)
    fake_run(tmp_path / "e0", {"seed": 0, "lr": 5}, .2, .9)
    fake_run(tmp_path / "e1", {"seed": 1, "lr": 5}, .2, .6)
    folders = [tmp_path / name for name in ("d0", "d1", "e0", "e1")]
    lines = compare(folders, tmp_path / "x.png").split("\n")
    assert "0.0 .. 100.0" in lines[1] and "[-100.0, +100.0] over 2 seeds" in lines[2]


def test_an_evaluation_of_one_sample_has_wilson_s_interval(tmp_path):
    fake_evaluation(tmp_path / "a", {i: [i < 30] for i in range(40)}, "base")
    fake_evaluation(tmp_path / "b", {i: [True] for i in range(40)}, "tuned")
    _, a, b = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "x.png").split("\n")
    for line, right in ((a, 30), (b, 40)):
        low, high = wilson(right, 40)
        assert f"{100 * low:.1f} .. {100 * high:5.1f}" in line
    assert "over 40 problems" in b


@pytest.mark.parametrize("flag, values", [
    ("device", ["cuda:0", "cuda:1"]), ("show_every", [20, 0]), ("save_every", [20, 50]),
    ("eval_every", [20, 60]), ("chunk_logits", [2**24, 2**20]), ("gradient_checkpointing", [None, True]),
    ("micro_tokens", [16384, 4096]),
])
def test_seeds_that_ran_in_other_places_are_one_arm(flag, values, tmp_path):
    for seed, value in enumerate(values):
        fake_run(tmp_path / f"{seed}", {"seed": seed, "lr": 1e-3, flag: value}, .5, .6)
    text = compare([tmp_path / "0", tmp_path / "1"], tmp_path / "x.png")
    arms = [line.split() for line in text.split("\n") if line.startswith("opd.py")]
    assert len(arms) == 1 and arms[0][:2] == ["opd.py", "2"], text
    shutil.rmtree(tmp_path / "1")
    fake_run(tmp_path / "1", {"seed": 0, "lr": 1e-3, flag: values[1]}, .5, .6)
    with pytest.raises(Mistake, match="one run made twice"):
        compare([tmp_path / "0", tmp_path / "1"], tmp_path / "x.png")


def test_other_problems_under_one_name_are_not_compared(tmp_path):
    """mine.jsonl was edited between two runs."""
    for i, (tested, trained) in enumerate([("a", "x"), ("b", "x"), ("a", "y"), (None, None)]):
        more = {"tested_on": tested, "trained_on": trained} if tested else {}
        fake_run(tmp_path / f"{i}", {"seed": i, "benchmark": "mine.jsonl:held-out", **more}, .5, .6)
    with pytest.raises(Mistake, match="different problems"):
        compare([tmp_path / "0", tmp_path / "1"], tmp_path / "x.png")
    text = compare([tmp_path / "0", tmp_path / "2"], tmp_path / "x.png")
    assert "not all trained on the same problems" in text
    assert "not all" not in compare([tmp_path / "0", tmp_path / "3"], tmp_path / "x.png")


def test_one_seed_in_two_precisions_is_two_arms(tmp_path):
    """--dtype auto is bfloat16 on a GPU and float32 on a CPU."""
    for name, device, computed_in in (("a", "cpu", "float32"), ("b", "cuda", "bfloat16")):
        fake_run(tmp_path / name, {"seed": 0, "dtype": "auto", "device": device, "computed_in": computed_in}, .5, .6)
    text = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "x.png")
    assert "opd.py computed_in=float32" in text and "opd.py computed_in=bfloat16" in text


def test_more_test_problems_are_flagged_and_not_refused(tmp_path):
    for i, n in enumerate((10, 20)):
        fake_run(tmp_path / f"{i}", {"seed": 0, "eval_n": n, "tested_on": f"hash of {n}"}, .5, .6, n=n)
    assert "different problems" in compare([tmp_path / "0", tmp_path / "1"], tmp_path / "x.png")


@pytest.mark.parametrize("gold, other, same", [("5.0", "5", True), ("x", "x", True), ("x", "5", False), ("5", "6", False)])
def test_a_gold_that_is_typed_in_another_way_is_the_same_gold(gold, other, same, tmp_path):
    fake_evaluation(tmp_path / "a", {0: [True]}, gold=gold)
    fake_evaluation(tmp_path / "b", {0: [False]}, "other", gold=other)
    if same:
        assert "over 1 problems" in compare([tmp_path / "a", tmp_path / "b"], tmp_path / "x.png")
    else:
        with pytest.raises(Mistake, match="different golds"):
            compare([tmp_path / "a", tmp_path / "b"], tmp_path / "x.png")
