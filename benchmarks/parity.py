"""Is it the same loss as TRL's? Loss and gradient of opd.py against
trl.DistillationTrainer, on fixed token ids.

    pip install trl
    python benchmarks/parity.py

Both get the toy's pair and 32 rollouts of the student, of unequal lengths. TRL's trainer is
built as a user would build it, and its own loss is called with these token ids, on one
thread. Ours is opd.update, stopped before the optimizer's step.

Printed for reverse KL, forward KL and two Jensen-Shannon divergences: both losses and their
difference, the largest entry of the gradient, and the largest difference of any entry. If
anything differs by more than 1e-5, the script ends with an error.
"""

import copy
import math
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import opd  # noqa: E402
from common.arguments import Mistake, run_script  # noqa: E402
from common.batches import Compute  # noqa: E402
from common.data import load_benchmark, prompt_ids  # noqa: E402
from common.flags import parse  # noqa: E402
from common.models import load_model, load_tokenizer  # noqa: E402
from common.weights import clip_gradient  # noqa: E402

CPU = torch.device("cpu")


def settings(*flags):
    """The flags of opd.py, as its command line would give them."""
    return opd.check(parse(opd.Args, "", ["--data", "toy", *flags], "opd"))


def loss_and_gradient(student, teacher, batch, flags):
    """Our loss and {name: gradient}, taken where the optimizer would make its step."""
    args, student, gradient = settings(*flags), copy.deepcopy(student), {}

    class Catch(torch.optim.SGD):
        def step(self):
            gradient.update({n: p.grad.clone() for n, p in student.named_parameters()})

    optimizer = Catch(student.parameters(), lr=0.0)
    compute = Compute(args, CPU, torch.float32, student.vocabulary)
    opd.clip_gradient = lambda model, *_: clip_gradient(model, math.inf)  # not clipped
    try:
        metrics, _ = opd.update(student, teacher, optimizer, batch, args, compute)
    finally:
        opd.clip_gradient = clip_gradient
    return metrics["loss"], gradient


def trl_loss_and_gradient(student, teacher, tokenizer, batch, beta, folder):
    """The same from TRL. As its own sampling does, prompts are padded on the left and
    responses on the right."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    prompts, responses, _ = batch
    config = DistillationConfig(
        output_dir=folder,
        beta=beta,
        per_device_train_batch_size=len(prompts),
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_completion_length=max(map(len, responses)),
    )
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "x"}]}] * len(prompts))
    trainer = DistillationTrainer(
        model=copy.deepcopy(student),
        teacher_model=copy.deepcopy(teacher),
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
    )
    P, C = max(map(len, prompts)), max(map(len, responses))
    inputs = {
        "prompt_ids": torch.tensor([[0] * (P - len(p)) + p for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts]),
        "completion_ids": torch.tensor([r + [0] * (C - len(r)) for r in responses]),
        "completion_mask": torch.tensor([[1] * len(r) + [0] * (C - len(r)) for r in responses]),
    }
    model = trainer.model.train()
    tokens = torch.tensor(float(sum(map(len, responses))))
    loss, *_ = trainer._compute_loss(model, inputs, tokens)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters()}


CASES = [  # our flags, TRL's beta
    ("reverse", ["--divergence", "reverse"], 1.0),
    ("forward", ["--divergence", "forward"], 0.0),
    ("jsd 0.5", ["--divergence", "jsd", "--beta", "0.5"], 0.5),
    ("jsd 0.1", ["--divergence", "jsd", "--beta", "0.1"], 0.1),
]


def main():
    try:
        import trl
    except ImportError:
        raise Mistake(
            "TRL is not installed, and only the benchmarks need it: pip install trl."
        ) from None
    torch.set_num_threads(1)
    tokenizer = load_tokenizer("toy/student")
    student, teacher = (
        load_model(f"toy/{name}", CPU, torch.float32, tokenizer) for name in ("student", "teacher")
    )
    rows = load_benchmark("toy", "train", 16)
    for row in rows:
        row["ids"] = prompt_ids(tokenizer, row["prompt"])
    args = settings("--samples", "2", "--max_new_tokens", "90")
    batch = opd.rollouts(student, tokenizer, rows, args, 1)
    size = f"{len(batch[1])} rollouts, {sum(map(len, batch[1]))} tokens"
    print(f"TRL {trl.__version__}, torch {torch.__version__}; {size}")
    print(
        f"{'divergence':<12} {'ours':>12} {'TRL':>12} {'difference':>11}   "
        f"{'gradient: largest':>18} {'difference':>11}"
    )
    worst = 0.0
    for name, flags, beta in CASES:
        loss, gradient = loss_and_gradient(student, teacher, batch, flags)
        with tempfile.TemporaryDirectory() as folder:
            trl_loss, trl_gradient = trl_loss_and_gradient(
                student, teacher, tokenizer, batch, beta, folder
            )
        difference = abs(loss - trl_loss)
        largest = max(g.abs().max().item() for g in gradient.values())
        far = max((gradient[n] - trl_gradient[n]).abs().max().item() for n in gradient)
        print(
            f"{name:<12} {loss:12.7f} {trl_loss:12.7f} {difference:11.1e}   "
            f"{largest:18.4f} {far:11.1e}"
        )
        worst = max(worst, difference, far)
    if worst > 1e-5:
        raise Mistake(f"They differ by {worst:.1e}, more than 1e-5.")
    print(f"largest difference {worst:.1e}: the same loss")


if __name__ == "__main__":
    run_script(main)
