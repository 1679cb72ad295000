"""Is it the same loss as TRL's? On fixed token ids, loss and gradient of opd.py against trl.DistillationTrainer.

    pip install trl
    python benchmarks/parity.py

Both see the toy's pair and 32 rollouts of the student, of unequal lengths. TRL's trainer is built as a user would build it, and its
own loss is called with these token ids, once on one thread; ours is opd.update in front of its optimiser step. Printed for reverse KL, forward KL and the
Jensen-Shannon divergences: both losses, the largest difference of any entry of the gradient, and the largest entry. Ends with
an error where they differ by more than 1e-5.
"""

import copy
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import opd  # noqa: E402
import plumbing  # noqa: E402
from evaluate import load_benchmark, prompt_ids  # noqa: E402

CPU = torch.device("cpu")


def ours(student, teacher, tokenizer, batch, flags):
    """(loss, gradient) of one update, taken where the optimiser would step."""
    args = opd.settle(plumbing.parse_arguments(opd.Args, "", ["--data", "toy", *flags]))
    student, caught = copy.deepcopy(student), {}

    class Catch(torch.optim.SGD):
        def step(self):
            caught.update({n: p.grad.clone() for n, p in student.named_parameters()})

    clock, clip = plumbing.Clock(CPU), torch.nn.utils.clip_grad_norm_
    clock.start()
    torch.nn.utils.clip_grad_norm_ = lambda parameters, _: clip(parameters, float("inf"))  # the gradient itself, unclipped
    try:
        metrics, _ = opd.update(
            student, teacher, Catch(student.parameters(), lr=0.0), batch, args, clock, plumbing.no_autocast, len(tokenizer)
        )
    finally:
        torch.nn.utils.clip_grad_norm_ = clip
    return metrics["loss"], caught


def theirs(student, teacher, tokenizer, batch, beta, folder):
    """The same from TRL: padded prompts on the left, padded completions on the right, as its own generation hands them over."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    prompts, responses, *_ = batch
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
    loss, *_ = trainer._compute_loss(model, inputs, torch.tensor(float(sum(map(len, responses)))))
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters()}


def main():
    try:
        import trl
    except ImportError:
        raise plumbing.Mistake("TRL is not installed, and only this benchmark needs it: pip install trl") from None
    torch.set_num_threads(1)
    student, teacher = (plumbing.load_model(f"toy/{name}", CPU, torch.float32) for name in ("student", "teacher"))
    tokenizer = plumbing.load_tokenizer("toy/student")
    rows = load_benchmark("toy", "train", 16)
    for r in rows:
        r["ids"] = prompt_ids(tokenizer, r["prompt"])
    args = opd.settle(plumbing.parse_arguments(opd.Args, "", ["--data", "toy", "--samples", "2", "--max_new_tokens", "90"]))
    batch = opd.rollouts(student, teacher, tokenizer, rows, args, 1)
    print(f"TRL {trl.__version__}, torch {torch.__version__}; {len(batch[1])} rollouts, {sum(map(len, batch[1]))} tokens")
    print(f"{'divergence':<12} {'ours':>12} {'TRL':>12} {'difference':>11}   {'gradient: largest':>18} {'difference':>11}")
    worst = 0.0
    cases = [
        ("reverse", ["--divergence", "reverse"], 1.0),
        ("forward", ["--divergence", "forward"], 0.0),
        ("jsd 0.5", ["--divergence", "jsd", "--beta", "0.5"], 0.5),
        ("jsd 0.1", ["--divergence", "jsd", "--beta", "0.1"], 0.1),
    ]
    for name, flags, beta in cases:
        a, own = ours(student, teacher, tokenizer, batch, flags)
        with tempfile.TemporaryDirectory() as folder:
            b, other = theirs(student, teacher, tokenizer, batch, beta, folder)
        far = max((own[n] - other[n]).abs().max().item() for n in own)
        print(
            f"{name:<12} {a:12.7f} {b:12.7f} {abs(a - b):11.1e}   {max(g.abs().max().item() for g in own.values()):18.4f} {far:11.1e}"
        )
        worst = max(worst, abs(a - b), far)
    if worst > 1e-5:
        raise plumbing.Mistake(f"They differ by {worst:.1e}, more than 1e-5.")
    print(f"largest difference {worst:.1e}: the same loss")


if __name__ == "__main__":
    plumbing.run(main)
