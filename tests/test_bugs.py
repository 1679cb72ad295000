"""benchmarks/bugs.py: a fork is refused where it would silently change nothing, and each bug is the
mistake that its name says."""

import json
import math
import sys

import pytest
import torch
from conftest import ROOT

import opd
from common.arguments import Mistake

sys.path.insert(0, str(ROOT / "benchmarks"))
import bugs

# One state and three tokens. The student wrote the second one.
S, T, WRITTEN = [0.6, 0.3, 0.1], [0.1, 0.2, 0.7], 1
ARMS = bugs.ARMS


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """{arm: the module with the bug, and the arguments of its runs}"""
    folder, made = tmp_path_factory.mktemp("bugs"), {}
    for arm, (flags, before, after) in ARMS.items():
        name = "bug_" + arm.replace(" ", "_").replace("-", "_")
        module = bugs.fork(name, [] if before is None else [(before, after)], folder)
        values = dict(zip(flags[::2], flags[1::2]))
        args = module.Args(estimator=values.get("--estimator", "full"))
        made[arm] = module, args
    yield made
    for module, _ in made.values():
        del sys.modules[module.__name__]


def loss_and_gradient(module, args):
    """Of one token: (loss, gradient with respect to the student's logits [3])."""
    logits = torch.tensor([S], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([T], dtype=torch.float64).log()
    written, on_policy = torch.tensor([WRITTEN]), torch.tensor([False])
    loss = module.token_loss(logits.log_softmax(-1), teacher, written, on_policy, args)
    loss.sum().backward()
    return loss.item(), logits.grad[0].tolist()


@pytest.mark.parametrize("before, count", [("no such line", 0), ("import torch\n", 1), ("lo", 9)])
def test_a_change_needs_a_text_that_stands_in_the_file_once(before, count, tmp_path):
    if count == 1:
        fork = bugs.fork("renamed", [(before, "import torch\n\nMINE = 1\n")], tmp_path)
        assert sys.modules.pop("renamed").MINE == 1 and fork.token_loss is not opd.token_loss
        return
    with pytest.raises(Mistake, match=r"stands in opd.py \d+ times.*needs a text that stands"):
        bugs.fork("renamed", [(before, "x")], tmp_path)
    assert not (tmp_path / "renamed.py").exists()


def test_the_wrong_direction_is_the_forward_kl(forks):
    loss, _ = loss_and_gradient(*forks["wrong direction"])
    right, _ = loss_and_gradient(*forks["right full"])
    assert loss == pytest.approx(sum(t * math.log(t / s) for s, t in zip(S, T)))
    assert right == pytest.approx(sum(s * math.log(s / t) for s, t in zip(S, T)))


def test_without_detach_entropy_is_rewarded(forks):
    _, gradient = loss_and_gradient(*forks["missing detach"])
    _, right = loss_and_gradient(*forks["right sampled"])
    score = [(v == WRITTEN) - s for v, s in enumerate(S)]  # the gradient of log p_S(y)
    s, t = S[WRITTEN], T[WRITTEN]
    assert right == pytest.approx([-math.log(t / s) * g for g in score])
    # One more term: log p_S(y) times the score. Its mean is the gradient of minus the entropy, so a
    # step against it raises the entropy.
    assert gradient == pytest.approx([(-math.log(t / s) + math.log(s)) * g for g in score])


def test_the_renormalised_top_k_does_not_see_the_other_mass(forks):
    module, args = forks["renormalised top-k"]
    args.top_k = 2
    loss, gradient = loss_and_gradient(module, args)
    s, t = ([p / sum(x[:2]) for p in x[:2]] for x in (S, T))
    assert loss == pytest.approx(sum(a * math.log(a / b) for a, b in zip(s, t)))
    # The teacher's favourite is the third token. It gets no push at all.
    assert gradient[2] == pytest.approx(0)
    args.top_k = 1
    assert loss_and_gradient(module, args)[0] == pytest.approx(0)


def updated(module, args, toy, tokens_at_once):
    """Metrics of one update on two rollouts, of which one ends."""
    from common.batches import Compute
    from common.weights import adamw

    student, teacher, _ = toy
    before = {k: v.clone() for k, v in student.state_dict().items()}
    end, args.micro_tokens = min(student.ends), tokens_at_once
    batch = [[10, 11, 12], [13, 14]], [[20, 21, end], [22, 23, 24, 25]], [False, False]
    compute = Compute(args, torch.device("cpu"), torch.float32, student.vocabulary)
    metrics, _ = module.update(student, teacher, adamw(student, 0.0), batch, args, compute)
    student.load_state_dict(before)
    student.eval()  # other tests use this model, too
    return metrics


def test_the_mask_from_pad_ids_drops_the_end_of_the_turn(forks, toy):
    wrong, right = (updated(*forks[arm], toy, 99) for arm in ("mask from pad ids", "right full"))
    assert wrong["kl"] == right["kl"] and wrong["loss"] != pytest.approx(right["loss"])
    assert right["loss"] == pytest.approx(right["kl"], rel=1e-5)


def test_the_batch_dependent_mean_depends_on_how_the_batch_is_cut(forks, toy):
    whole, cut = (updated(*forks["batch-dependent mean"], toy, n)["grad_norm"] for n in (99, 6))
    right = [updated(*forks["right full"], toy, n)["grad_norm"] for n in (99, 6)]
    assert right == pytest.approx([whole, whole], rel=1e-4) and cut > 1.2 * whole


def test_the_recorded_curves_are_those_of_the_arms():
    recorded = json.loads((ROOT / "notebooks/bugs.json").read_text())
    words = recorded["command"].split()
    steps, seeds = int(words[words.index("--steps") + 1]), words[words.index("--seeds") + 1 :]
    assert set(recorded["curves"]) == set(ARMS) and len(seeds) >= 1
    for runs in recorded["curves"].values():
        assert len(runs) == len(seeds)
        assert all(set(run) == set(bugs.KEPT) for run in runs)
        assert all(len(values) == steps for run in runs for values in run.values())
    # Before the first step a bug has changed nothing: the same rollouts, the same KL.
    first = {run["kl"][0] for runs in recorded["curves"].values() for run in runs[:1]}
    assert len(first) == 1
