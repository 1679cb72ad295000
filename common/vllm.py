"""Samples from vLLM instead of common/sampler.py: `--sampler vllm` (pip install vllm).

Sampling makes one token after another. With large models most of the time goes there, and
vLLM is built for nothing else. The engine lives in the same process and on the same GPU. It
holds a copy of the student. Four things make its text the student's own text:

  1. Every time before it samples, it gets the student's present weights. Nothing tries to
     find out whether they have changed: a fused optimizer on a GPU and an 8-bit one change
     them without a trace. Rollouts of an earlier student would be off-policy, and nothing
     would look wrong.
  2. After new weights its prefix cache is emptied. The cache holds keys and values that the
     old weights made.
  3. Temperature and filters are set in every request. Otherwise they would come from the
     model's generation_config (Qwen ships top_k 20 and top_p 0.8), and the loss would be
     about a distribution that was not sampled.
  4. Its vocabulary is cut to the tokenizer's. Qwen3's head has 267 rows more than there are
     tokens, and the loss does not contain them.

Every call without a filter checks that the weights have arrived: it compares vLLM's
log-probabilities of one of its texts with the student's. (A call that is greedy or has a filter
cannot be checked. The first one of them draws one more text.) A fixed plan, such as the first two
calls, would not do. Scripts sample several times before their first update, and one small update
moves the log-probabilities by less than rounding does. The check reads one text, which takes
little time beside writing all of them.

One thing is lost. A rollout still depends on (seed, step, prompt, sample), but vLLM's rounding
depends on the whole batch, so the same key can give another rollout.

This file is imported only with --sampler vllm, because few people have the package.
"""

import json
import os
import tempfile
from pathlib import Path

import torch

from common.arguments import Mistake, require
from common.batches import context_of
from common.files import write_text
from common.sampler import Completion, key_seed
from common.weights import ordinary_weights

# Kernels in bfloat16 round differently: hundredths of a nat per token. With other weights
# the log-probabilities differ by whole nats.
TOLERANCE = 0.2


def attach(model, tokenizer, args, dtype):
    """From now on `sample(model, ...)` asks vLLM, in training and in evaluation. Other
    models (teachers) sample as before."""
    require(
        len(tokenizer) == max(tokenizer.get_vocab().values()) + 1,
        "The ids of this tokenizer have gaps; --sampler vllm cannot cut its vocabulary. "
        "Use --sampler own.",
    )
    model.engine = Engine(model, args.vllm_memory, args.max_new_tokens, dtype)
    # Now, when nothing is written yet: an older vLLM cannot take over weights.
    model.engine.synchronise()


class Engine:
    """vLLM with a copy of `model`. share: of the GPU's memory."""

    def __init__(self, model, share, max_new_tokens, dtype):
        # In this process, because the weights are handed over as tensors.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, only used without a GPU
        from vllm import LLM  # the package, not this file

        # Prompts may hold a whole solution or rollout (ar_opd.py, hindsight_sd.py).
        # `sample` refuses longer texts.
        self.longest = min(context_of(model.config), 4096 + 2 * max(256, max_new_tokens))
        self.model, self.checked = model, False
        with tempfile.TemporaryDirectory() as folder:
            # The engine begins with random weights. The first call brings the student's
            # weights, also those of a checkpoint or of adapters.
            # The head is declared a separate tensor, even if it is the embedding. Without a
            # GPU vLLM repacks the head when it loads. It would use the first head forever.
            changes = {
                "architectures": [type(model).__name__],
                "vocab_size": model.vocabulary,
                "tie_word_embeddings": False,
            }
            config = {**model.config.to_dict(), **changes}
            write_text(Path(folder) / "config.json", json.dumps(config, default=str))
            self.llm = LLM(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                dtype=dtype,
                enforce_eager=model.device.type == "cpu",
                max_model_len=self.longest,
                gpu_memory_utilization=share,
                # The samples of a prompt share its keys and values.
                enable_prefix_caching=True,
                # log p under the distribution that is drawn from, with temperature and filters.
                logprobs_mode="processed_logprobs",
                seed=0,
            )

    def __deepcopy__(self, memo):
        """A copy of the student, such as a teacher, gets no engine and samples by itself:
        this engine holds the weights of the student only."""
        return None

    def synchronise(self):
        """Hand over the weights, and empty the cache that the old ones made."""

        def cut():
            for name, value in ordinary_weights(self.model, head=True):
                wide = name.endswith(("embed_tokens.weight", "lm_head.weight"))
                yield name, value[: self.model.vocabulary] if wide else value

        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": cut()})
        # It answers False, and keeps the cache, while a request is still being answered.
        require(
            self.llm.reset_prefix_cache() is not False,
            "vLLM has kept keys and values that the old weights made, so its text would not be "
            "the student's. The last checkpoint is unharmed; use --sampler own.",
        )

    def sample(self, prompts, *, n, max_new_tokens, keys, temperature, top_p, top_k):
        """The same as `sample` of common/sampler.py: n Completions for every prompt, in the
        order of the prompts."""
        from vllm import SamplingParams

        most = max(map(len, prompts)) + max_new_tokens
        require(
            most <= self.longest,
            f"A prompt and --max_new_tokens make {most} tokens and vLLM was started with room for "
            f"{self.longest}; use --sampler own.",
        )
        # One request per completion, because each has its own seed.
        requests = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(n)]
        wishes = [
            SamplingParams(
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                min_p=0.0,
                repetition_penalty=1.0,
                max_tokens=max_new_tokens,
                stop_token_ids=self.model.ends,
                logprobs=0,  # only that of the sampled token
                seed=key_seed(keys[k]) % 2**63 if temperature > 0 else None,
                detokenize=False,
            )
            for k in range(len(requests))
        ]
        # Training samples under autocast. vLLM's kernels have their own types, and autocast
        # would change them.
        with torch.autocast(self.model.device.type, enabled=False):
            self.synchronise()
            answers = self.llm.generate(requests, wishes, use_tqdm=False)
        completions = []
        for answer in answers:
            ids = list(answer.outputs[0].token_ids)
            logprobs = [values[i].logprob for values, i in zip(answer.outputs[0].logprobs, ids)]
            completions.append(Completion(ids, ids[-1] not in self.model.ends, logprobs))
        # A filter makes them those of another distribution.
        if temperature > 0 and top_p == 1.0 and top_k == 0:
            # The longest text: the rounding of one token says little, the mean of many does.
            k = max(range(len(completions)), key=lambda k: len(completions[k].ids))
            self.check(prompts[k // n], completions[k], temperature)
        elif not self.checked:
            # evaluate.py is greedy, or has a filter, in all of its calls. One text without them.
            self.checked, few = True, min(max_new_tokens, 32)
            plain = dict(temperature=1.0, top_p=1.0, top_k=0)
            self.sample(prompts[:1], n=1, max_new_tokens=few, keys=["check"], **plain)
        return completions

    @torch.no_grad()
    def check(self, prompt, completion, temperature=1.0):
        """Stop if vLLM's log-probabilities of its own text are not the student's."""
        ids = torch.tensor([prompt + completion.ids], device=self.model.device)  # [1, L]
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        hidden, targets = hidden[len(prompt) - 1 : -1], ids[0, len(prompt) :]  # [N, width], [N]
        student_logp = []
        # Never the logits of a whole text at once.
        for h, y in zip(hidden.split(64), targets.split(64)):
            logits = self.model.get_output_embeddings()(h)[:, : self.model.vocabulary]  # [64, V]
            logp = (logits.float() / temperature).log_softmax(-1)  # [64, V]
            student_logp.append(logp.gather(1, y[:, None]).squeeze(1).cpu())  # [64]
        difference = torch.cat(student_logp) - torch.tensor(completion.logprobs)  # [N]
        away = difference.abs().mean().item()
        # A temperature divides the logits and their rounding. `not <=` is also true for NaN.
        if not away * temperature <= TOLERANCE:
            raise Mistake(
                f"vLLM's log-probabilities are {away:.2f} nats a token away from the student's: "
                "its copy of the weights is not the student's (another version of vLLM, perhaps). "
                "The last checkpoint is unharmed; use --sampler own."
            )
