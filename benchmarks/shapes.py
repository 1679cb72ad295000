"""Qwen3 models of real shapes with random weights. For memory and speed the numbers in a
model do not matter, so nothing has to be downloaded except a tokenizer.

    python benchmarks/shapes.py 0.6B runs/shape-0.6B --tokenizer Qwen/Qwen3-0.6B
    python benchmarks/shapes.py 4B runs/shape-4B --tokenizer Qwen/Qwen3-0.6B --seed 1
    python opd.py --student runs/shape-0.6B --teacher runs/shape-4B --data toy --steps 50 \\
        --max_new_tokens 512 --lr 1e-5

The first two write model folders like any other. A random model hardly ever ends its turn
(the probability is one in 151,936 per token), so every rollout is as long as it may be.
That is the hardest case for memory and time.
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from common.arguments import Parser, require, run_script  # noqa: E402
from common.files import make_folder  # noqa: E402
from common.models import load_tokenizer  # noqa: E402
from common.size import QWEN3, WORDS, Size, qwen3_config  # noqa: E402, F401

# Two more shapes for measurements. The small one is for cards on which no Qwen3 can learn, the
# tiny one for tests on a CPU.
SHAPES = {
    **QWEN3,
    "0.1B": Size(512, 1536, 14, 8, 4),
    "tiny": Size(64, 128, 2, 4, 2, head_dim=32, words=500),
}


def random_qwen3(size, seed=0, device="cpu", dtype=torch.float32, **more):
    """A Qwen3 of this size with random weights. `more` goes into its configuration.

    It gets the attributes that `common.models.know` sets, with no end token.
    """
    from transformers import AutoModelForCausalLM

    config = qwen3_config(size, **more)
    torch.manual_seed(seed)
    with torch.device(device):
        # Made in its own type: for a moment a copy in float32 would take twice the memory.
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.vocabulary, model.ends, model.engine = size.words, [], None
    return model


def main():
    p = Parser(__doc__)
    p.add_argument("shape", choices=QWEN3)
    p.add_argument("folder")
    p.add_argument(
        "--tokenizer",
        default="Qwen/Qwen3-0.6B",
        help="folder or hub name of Qwen3's tokenizer (default Qwen/Qwen3-0.6B)",
    )
    p.add_argument("--seed", type=int, default=0, help="of the random weights (default 0)")
    args = p.parse_args()
    tokenizer, out = load_tokenizer(args.tokenizer), make_folder(args.folder)
    # A trained model would be overwritten.
    require(not any(out.iterdir()), f"'{out}' is not empty; choose another folder.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = random_qwen3(
        QWEN3[args.shape],
        args.seed,
        device,
        torch.bfloat16,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    count = sum(x.numel() for x in model.parameters())
    print(f"{args.shape}: {count:,} random numbers in {out}")


if __name__ == "__main__":
    run_script(main)
