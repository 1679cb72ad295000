"""Qwen3 models of real shapes with random weights: for memory and speed, numbers do not matter, and nothing has to be downloaded but a tokenizer.

    python benchmarks/shapes.py 0.6B runs/shape-0.6B --tokenizer Qwen/Qwen3-0.6B          a model folder like any other
    python benchmarks/shapes.py 4B runs/shape-4B --tokenizer Qwen/Qwen3-0.6B --seed 1
    python opd.py --student runs/shape-0.6B --teacher runs/shape-4B --data toy --steps 50 --max_new_tokens 512 --lr 1e-5

A random model never ends its turn (one token in 151,936), so every rollout is as long as it may be: the hardest case of memory and time.
"""

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import plumbing  # noqa: E402

WORDS = 151936  # rows of Qwen3's head; its tokenizer has 151,669 tokens

# hidden width, MLP, layers, query heads, key heads, is the head the embedding?
QWEN3 = {
    "0.6B": (1024, 3072, 28, 16, 8, True),
    "1.7B": (2048, 6144, 28, 16, 8, True),
    "4B": (2560, 9728, 36, 32, 8, True),
    "8B": (4096, 12288, 36, 32, 8, False),
}


def qwen3(
    width, mlp, layers, heads, keys, tied=True, head_dim=128, words=WORDS, seed=0, device="cpu", dtype=torch.float32, **more
):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=mlp,
        head_dim=head_dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        tie_word_embeddings=tied,
        **{"max_position_embeddings": 40960, **more},
    )
    torch.manual_seed(seed)
    with torch.device(device):
        return Qwen3ForCausalLM(config).to(dtype).eval()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("shape", choices=QWEN3)
    p.add_argument("folder")
    p.add_argument(
        "--tokenizer", default="Qwen/Qwen3-0.6B", help="folder or hub name of Qwen3's tokenizer (default Qwen/Qwen3-0.6B)"
    )
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    tokenizer = plumbing.load_tokenizer(args.tokenizer)
    out = plumbing.make_folder(args.folder)
    plumbing.require(
        not any(out.iterdir()), f"'{out}' is not empty; choose another folder."
    )  # a trained model would be overwritten
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None)
    model = qwen3(*QWEN3[args.shape], seed=args.seed, device=device, dtype=torch.bfloat16, **ends)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{args.shape}: {sum(x.numel() for x in model.parameters()):,} random numbers in {out}")


if __name__ == "__main__":
    plumbing.run(main)
