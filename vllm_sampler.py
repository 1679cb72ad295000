"""Rollouts from vLLM instead of evaluate.sample, for those who have it: `--sampler vllm` (pip install vllm). Nobody else imports this file.

Sampling makes one token after another, large models wait for it, and vLLM is built for nothing else. The engine
lives in the same process, on the same card, and holds a copy of the student. Four things make its text the student's own:

  1. Before it samples, it is given the student's present weights, whenever they have changed since the last time. Rollouts of
     yesterday's student would be off-policy, and nothing would look wrong.
  2. After new weights its prefix cache is emptied: it holds keys and values that the old weights made.
  3. Temperature and filters are set for every request. Left out, they would come from the model's generation_config (Qwen ships
     top_k 20 and top_p 0.8), and the loss would be about a distribution that nobody sampled.
  4. Its vocabulary is cut to the tokenizer's: Qwen3's head has 267 rows more than there are tokens, and the loss knows none of them.

Whether the weights arrive is checked at the first call: vLLM's log-probabilities of its own text against the student's. What is lost:
a rollout still depends on (seed, step, prompt, sample), but only up to rounding, which in vLLM depends on what else is in the batch.
"""

import json
import os
import tempfile
from pathlib import Path

import torch

import evaluate
import plumbing
from plumbing import Mistake, require

# Kernels in bfloat16 round differently: hundredths of a nat a token. Other weights differ by whole nats.
TOLERANCE = 0.2


def attach(model, tokenizer, args, dtype):
    """From here on evaluate.sample(model, ...) asks vLLM, in training and in evaluation. Other models (teachers) sample as before."""
    require(
        len(tokenizer) == max(tokenizer.get_vocab().values()) + 1,
        "The ids of this tokenizer have gaps; --sampler vllm cannot cut its vocabulary. Use --sampler own.",
    )
    evaluate.ELSEWHERE[model] = Engine(model, len(tokenizer), args.vllm_memory, args.max_new_tokens, dtype)


class Engine:
    def __init__(self, model, vocabulary, share, max_new_tokens, dtype):
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process: weights are handed over as tensors
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; without a GPU only
        from vllm import LLM

        context = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        # Prompts may hold a whole solution or rollout (ar_opd.py, hindsight_sd.py); what is longer is refused in one sentence.
        self.longest = min(context, 4096 + 2 * max(256, max_new_tokens))
        self.model, self.vocabulary, self.seen, self.checked = model, vocabulary, None, False
        with tempfile.TemporaryDirectory() as folder:
            # The engine begins with random weights: the first call brings the student's, those of a checkpoint or of adapters included.
            # The head is declared to be a tensor of its own, even where it is the embedding's: without a GPU vLLM repacks the head when
            # it loads, and would go on using the first one forever.
            own = {"architectures": [type(model).__name__], "vocab_size": vocabulary, "tie_word_embeddings": False}
            config = {**model.config.to_dict(), **own}
            plumbing.write_text(Path(folder) / "config.json", json.dumps(config, default=str))
            self.llm = LLM(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                dtype=dtype,
                enforce_eager=model.device.type == "cpu",
                max_model_len=self.longest,
                gpu_memory_utilization=share,
                enable_prefix_caching=True,  # the samples of a prompt share its keys and values
                logprobs_mode="processed_logprobs",  # of the distribution that is drawn from, temperature and filters included
                seed=0,
            )

    def synchronise(self):
        """Hand over the weights, if an update has changed them. (Every change in place raises a parameter's version.)"""
        now = [(p.data_ptr(), p._version) for p in self.model.parameters()]
        if now == self.seen:
            return

        def cut():
            for name, value in plumbing.ordinary_weights(self.model, head=True):
                yield name, value[: self.vocabulary] if name.endswith(("embed_tokens.weight", "lm_head.weight")) else value

        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": cut()})
        self.llm.reset_prefix_cache()
        self.seen = now

    def sample(self, prompts, *, n, max_new_tokens, eos, keys, temperature, top_p, top_k):
        """As evaluate.sample: n Completions for every prompt, in prompt order."""
        from vllm import SamplingParams

        most = max(map(len, prompts)) + max_new_tokens
        require(
            most <= self.longest,
            f"A prompt and --max_new_tokens make {most} tokens and vLLM was started with room for {self.longest}; use --sampler own.",
        )
        wanted = []
        for i in range(len(prompts)):
            for j in range(n):
                wanted.append(
                    SamplingParams(
                        temperature=temperature,
                        top_p=top_p,
                        top_k=top_k,
                        min_p=0.0,
                        repetition_penalty=1.0,
                        max_tokens=max_new_tokens,
                        stop_token_ids=eos,
                        logprobs=0,  # of the sampled token alone
                        seed=evaluate.key_seed(keys[i * n + j]) % 2**63 if temperature > 0 else None,
                        detokenize=False,
                    )
                )
        # Training samples under autocast; vLLM's kernels have their own types, and autocast would change them.
        with torch.autocast(self.model.device.type, enabled=False):
            self.synchronise()
            asked = [{"prompt_token_ids": p} for p in prompts for _ in range(n)]
            answers = self.llm.generate(asked, wanted, use_tqdm=False)
        found = []
        for answer in answers:
            ids, values = list(answer.outputs[0].token_ids), answer.outputs[0].logprobs
            found.append(evaluate.Completion(ids, ids[-1] not in eos, [v[i].logprob for v, i in zip(values, ids)]))
        if not self.checked and temperature == 1.0 and top_p == 1.0 and top_k == 0:
            self.check(prompts[0], found[0])
            self.checked = True
        return found

    @torch.no_grad()
    def check(self, prompt, completion):
        ids = torch.tensor([prompt + completion.ids], device=self.model.device)
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
        own = []
        for h, y in zip(hidden.split(64), ids[0, len(prompt) :].split(64)):  # never the logits of a whole text at once
            logits = self.model.get_output_embeddings()(h)[:, : self.vocabulary]  # [at most 64, V]
            own.append(logits.float().log_softmax(-1).gather(1, y[:, None]).squeeze(1).cpu())
        away = (torch.cat(own) - torch.tensor(completion.logprobs)).abs().mean().item()
        if not away <= TOLERANCE:
            raise Mistake(
                f"vLLM's log-probabilities are {away:.2f} nats a token away from the student's: its copy of the weights is not the student's (another "
                "version of vLLM, perhaps). Nothing was trained; use --sampler own."
            )
