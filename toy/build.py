"""Build the toy from a seed: tokenizer, data files, the models student, teacher, reader,
reader2 and reader3, and the table of what the first three can do.

    python toy/build.py
        everything, about 40 minutes on one core, into toy/
    python toy/build.py --seed 2 --out toy/pair1
        another pair, trained independently
    python toy/build.py --only table
        measure the models that are there, and rewrite the table in toy/README.md

How a student comes to be weak matters more than how weak it is. Our first student spoke the
teacher's language with noise (dropped carries, wrong signs). Fifty updates of any method
removed the noise, so no method could be told from another. This student lacks skill and
knowledge, and there is no noise in what it does know:

* skill: hard steps (two-digit operands, products, halves) are 5 % of the steps in its
  training text and 33 % of those in the benchmark;
* knowledge: it has read 45 of the 81 facts of the table `#`. It has seen the others only
  with random results.

A hint is a worked solution, a part of one, or the answer, shown in the prompt. Hints are
trained so that a hint alone means nothing. In a document with a RIGHT hint, every hard
result and every fact is drawn at random, the same in the hint and in the wanted solution.
So the hint must be read, and it teaches no arithmetic. In a fifth of the documents with a
hint, it belongs to another problem and must be ignored. Otherwise "there is a hint" comes
to mean "do well now", and every experiment on self-distillation measures that instead.
"""

import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from common.arguments import Parser, run_script
from common.batches import log_probabilities, pack, states
from common.data import load_benchmark, privileged_prompt, prompt_ids
from common.evaluation import evaluate, mean_interval, wilson
from common.files import write_text
from common.gate import first_mistakes, mass, token_at
from common.models import load_model, load_tokenizer
from common.sampler import sample
from toy import world

CPU = torch.device("cpu")

# Rows and levels (numbers of steps) of each data file.
SPLITS = {
    "train": (4000, [3, 4, 5]),
    "test": (2001, [3, 4, 5]),
    "heldout": (2001, [6, 7, 8]),
    "validation": (1002, [3, 4, 5]),  # to choose settings on; the test set is for the verdict
}

# What the teacher reads, and what all documents with a right hint show. It is harder than
# the benchmark (world.MIXTURE).
RICH = {"easy": 0.35, "hard": 0.40, "mix": 0.25}
ROLES = {
    "teacher": dict(
        width=128,
        layers=3,
        tokens=9_000_000,
        mixture=RICH,
        known=1.0,
        drills=(0.5, 0.5),
    ),
    # The student's text has 5 % hard steps instead of 40 %, and 55 % of the table.
    "student": dict(
        width=96,
        layers=3,
        tokens=10_000_000,
        mixture={"easy": 0.74, "hard": 0.05, "mix": 0.21},
        known=0.55,
        drills=(0.95, 0.05),
    ),
}


# ======================================================================== tokenizer

SPECIAL = ["<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|end|>"]
# It does what a real chat template does, with one token per role. Further arguments, like
# `enable_thinking`, are accepted and ignored.
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer():
    """A fast word tokenizer: one token per word, digit or sign. The space before a word is
    part of its token, so decoding is exact.

    The vocabulary is collected from the language itself. No word of the language may become
    <|unk|> (a test checks this).
    """
    rng = random.Random(0)
    texts = [
        privileged_prompt("x.", "x.", "1"),
        privileged_prompt("x.", answer="1"),
        "\n \\boxed{ \\boxed{0} + - * / # =",
    ]
    for _ in range(4000):
        p = world.make_problem(rng, rng.randint(1, 8))
        texts += [p.text, world.solve(p, rng, "teacher"), world.solve(p, rng, "student")]
    texts += [" " + " ".join(world.LABELS), " 0 1 2 3 4 5 6 7 8 9 0123456789"]
    tokenizer = Tokenizer(models.WordLevel({}, unk_token="<|unk|>"))
    # Every piece of text begins with a space. So a word is the same token at the beginning
    # of a line and inside it.
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"\n(?=[^\s])"), "\n "),
            normalizers.Replace(Regex(r"\A(?=[^\s])"), " "),
        ]
    )
    pieces = Regex(r" ?\\boxed\{| ?\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, "isolated")
    tokenizer.decoder = decoders.Fuse()  # tokens have their spaces, so they are only joined
    words = set()
    for text in texts:
        text = tokenizer.normalizer.normalize_str(text)
        words |= {piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    vocabulary = {w: i for i, w in enumerate(SPECIAL + sorted(words))}
    tokenizer.model = models.WordLevel(vocabulary, unk_token="<|unk|>")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


# ======================================================================== training text


def known_facts(share):
    """The part of the table that a role knows. It is the same for every seed, so that pairs
    can be compared."""
    facts = sorted(world.TABLE)
    random.Random(5).shuffle(facts)
    return set(facts[: int(round(share * len(facts)))])


def show_hint(rng, kind, problem, solution):
    """(shown solution, shown answer) for a kind of hint: full, both, partial or answer.
    Either of them may be None. The share of a partial hint is random."""
    if kind == "partial":
        solution = world.cut(solution, rng.uniform(0.3, 0.7))
    answer = str(problem.answer) if kind in ("both", "answer") else None
    return None if kind == "answer" else solution, answer


def document(rng, role, level, facts):
    """One training document: (user's turn, wanted response, spans of characters of the
    response that have no loss)."""
    mixture = ROLES[role]["mixture"]

    def ignorant(event, before):
        """An unknown fact is seen with random results. All other steps are true."""
        unknown = event.kind == "mix" and event.numbers not in facts
        return rng.randint(1, 6) if unknown else None

    def at_random(event, before):
        """With a right hint, every hard result and every fact is what the hint says."""
        if event.kind == "mix":
            return rng.randint(1, 6)
        return rng.randint(0, world.LIMIT) if world.is_hard(event) else None

    def voice(own=0.85):
        other = {"teacher": "student", "student": "teacher"}[role]
        return role if rng.random() < own else other

    draw = rng.random()
    if draw < 0.50:  # without a hint
        p = world.make_problem(rng, level, mixture=mixture, believe=ignorant)
        return p.text, world.solve(p, rng, voice()), []
    if draw < 0.60:  # the hint belongs to another problem: it must be ignored
        p = world.make_problem(rng, level, mixture=mixture, believe=ignorant)
        q = world.make_problem(rng, rng.randint(1, 5), mixture=RICH, believe=at_random)
        solution = world.solve(q, rng, voice(0.5))
        kind = rng.choice(["full", "full", "partial", "both", "answer"])
        user = privileged_prompt(p.text, *show_hint(rng, kind, q, solution))
        return user, world.solve(p, rng, voice()), []
    p = world.make_problem(rng, level, mixture=RICH, believe=at_random)
    solution, wanted = world.solve(p, rng, voice(0.5)), world.solve(p, rng, voice())
    kind = rng.choices(["full", "both", "partial", "answer"], [5, 3, 3, 1])[0]
    shown, answer = show_hint(rng, kind, p, solution)
    user = privileged_prompt(p.text, shown, answer)
    return user, wanted, unknowable(p, wanted, shown or "", answer)


def unknowable(problem, wanted, shown, answer):
    """Spans of random results in the wanted response that the hint does not show. Nobody
    can know them, so they have no loss. The last result is known if the answer is shown."""
    visible = {(label["label"], what) for label, what, _ in world.claims(shown) if label}
    if answer is not None:
        visible.add((problem.chain[-1].label, "step"))
    spans = []
    for label, what, m in world.claims(wanted):
        if what not in ("fact", "step") or (label["label"], what) in visible:
            continue
        if what == "fact" or world.is_hard(problem[label["label"]]):
            spans.append(m.span("value"))
    return spans


def drill(rng, role, facts):
    """Twelve bare equations: the cheapest way to learn arithmetic. The shares of easy and
    hard ones are those of the role."""
    easy, hard = ROLES[role]["drills"]
    said = []
    while len(said) < 12:
        kind = rng.choices(["easy", "hard", "mix"], [easy, hard, 0.12])[0]
        if kind == "mix":
            left, op, right = rng.randint(1, 9), "#", rng.randint(1, 9)
            if (left, right) not in facts:
                continue
            value = world.TABLE[left, right]
        elif kind == "easy":
            left, right, op = rng.randint(1, 99), rng.randint(1, 9), rng.choice("+-")
            value = left + right if op == "+" else left - right
        else:
            op = rng.choice("++--*/")
            left, right = rng.randint(10, 99), rng.randint(10, 40)
            if op == "*":
                left, right = rng.randint(1, 49), rng.choice([2, 3])
            if op == "/":
                left, right = 2 * rng.randint(1, 49), 2
            value = result_of(left, op, right)
        if not 0 <= value <= world.LIMIT:
            continue
        if op in "+*" and rng.random() < 0.5:
            left, right = right, left
        equals = world.pick(rng, world.VOICES[role]["equals"])
        said.append(f"{left} {op} {right} {equals} {value}.")
    return " ".join(said)


def result_of(left, op, right):
    """The result of an equation as it is written. Division by 0 counts as division by 1."""
    results = {"+": left + right, "-": left - right, "*": left * right}
    return results[op] if op in results else left // max(1, right)


def documents(rng, role, tokenizer, facts, progress):
    """3,000 documents as (ids, first trained position, untrained positions). At the
    beginning of the training they are drills and short problems."""
    if progress < 0.2:
        levels = [1, 2]
    elif progress < 0.4:
        levels = [1, 2, 3, 4]
    else:
        levels = [1, 2, 3, 3, 4, 4, 5, 5]
    drills = 0.25 if progress < 0.4 else 0.10
    texts, prompts, spans_of = [], [], []
    for _ in range(3000):
        draw = rng.random()
        if draw < drills:
            prompt, wanted, spans = "", drill(rng, role, facts), []
        else:
            user, wanted, spans = document(rng, role, rng.choice(levels), facts)
            turn = [{"role": "user", "content": user}]
            prompt = tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True
            )
        texts.append(wanted)
        prompts.append(prompt)
        spans_of.append(spans)
    heads = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    body = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    rows = []
    for head, ids, offsets, spans in zip(
        heads, body["input_ids"], body["offset_mapping"], spans_of
    ):
        # The offsets count the characters of the text as it was given. The space before a
        # word belongs to its token.
        untrained = {
            len(head) + i
            for i, (start, end) in enumerate(offsets)
            if any(start < b and end > a for a, b in spans)
        }
        rows.append((head + ids + [tokenizer.eos_token_id], max(1, len(head)), untrained))
    return rows


def pools(rows, rng):
    """Batches of about 4,000 tokens: the rows are sorted by length and cut into batches,
    and the batches are shuffled."""
    batches, batch = [], []
    for row in sorted(rows, key=lambda r: len(r[0])):
        batch.append(row)
        if len(batch) * len(row[0]) > 4000:
            batches.append(batch)
            batch = []
    rng.shuffle(batches)
    return batches


# ======================================================================== student and teacher


def document_loss(model, rows, tokenizer):
    """The mean cross-entropy over the trained positions. rows: as from `documents`."""
    longest = max(len(r[0]) for r in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)  # [B, L]
    wanted = torch.full((len(rows), longest), -100)  # [B, L], -100 where there is no loss
    for i, (tokens, first, untrained) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        wanted[i, first : len(tokens)] = ids[i, first : len(tokens)]
        wanted[i, sorted(untrained)] = -100
    # Padding is on the right. So no position with a loss attends to it, and the causal mask
    # is enough.
    hidden = model.model(ids).last_hidden_state[:, :-1]  # [B, L-1, width]
    keep = wanted[:, 1:] != -100  # [B, L-1]
    return F.cross_entropy(model.lm_head(hidden[keep]), wanted[:, 1:][keep])


def new_model(spec, tokenizer):
    """A Qwen3 with random weights."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=spec["width"],
        intermediate_size=3 * spec["width"],
        head_dim=32,
        num_hidden_layers=spec["layers"],
        num_attention_heads=spec["width"] // 32,
        num_key_value_heads=spec["width"] // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def train(role, seed, out, tokenizer, log=print):
    """From random weights to a model, on one thread. (Beside a busy core, a second thread
    makes both slower.)"""
    torch.set_num_threads(1)
    torch.manual_seed(seed * 1000 + len(role) + ord(role[0]))
    spec, rng = ROLES[role], random.Random(f"{role}-{seed}")
    facts, model = known_facts(spec["known"]), new_model(spec, tokenizer)
    # Muon for the matrices, AdamW for the embedding and the norms. This learned faster here
    # than AdamW alone.
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in named if p.ndim != 2 or "embed" in n]
    rates = [0.02, 3e-3]
    optimizers = [
        torch.optim.Muon(matrices, lr=rates[0], weight_decay=0.0),
        torch.optim.AdamW(others, lr=rates[1], weight_decay=0.0),
    ]
    tokens, step, begun, pending = 0, 0, time.time(), []
    while tokens < spec["tokens"]:
        progress = tokens / spec["tokens"]
        if not pending:
            pending = pools(documents(rng, role, tokenizer, facts, progress), rng)
        rows = pending.pop()
        loss = document_loss(model, rows, tokenizer)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, rates):
            # A warm-up over 50 steps, and a linear decay over the second half.
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, step / 50) * min(1.0, 2 * (1 - progress)) + 1e-6
            optimizer.step()
            optimizer.zero_grad()
        tokens, step = tokens + sum(len(r[0]) for r in rows), step + 1
        if step % 100 == 0:
            seconds = time.time() - begun
            log(
                f"{role}: {tokens / 1e6:6.2f} of {spec['tokens'] / 1e6:.0f} M tokens, "
                f"loss {loss.item():.3f}, {tokens / seconds:,.0f} tokens/s, "
                f"{seconds / 60:.1f} min",
                flush=True,
            )
    save(model, tokenizer, Path(out) / role)


def save(model, tokenizer, folder):
    """Under another name first, so that a folder with its final name is complete."""
    with moved_to(folder) as half:
        model.save_pretrained(half)
        tokenizer.save_pretrained(half)


@contextlib.contextmanager
def moved_to(folder):
    """A folder to write into. At the end it takes the place of `folder`."""
    half = Path(folder).with_suffix(".tmp")
    shutil.rmtree(half, ignore_errors=True)
    yield half
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)


# ======================================================================== the reader


def lost_rollouts(model, tokenizer, rng, key, count=40):
    """The model's own rollouts, and prompts with a hint that does not apply to them: (plain
    prompts, hinted prompts, responses, weights of all their tokens).

    In three quarters the hint is right, but the rollout has left the truth. The tokens
    behind its first wrong token have weight 1. In one quarter the hint belongs to another
    problem, and all tokens have weight 1. The facts of the table have weight 0 behind a
    right hint: they are true wherever the solution is.
    """
    problems = [world.make_problem(rng, rng.choice([2, 3, 3, 4, 4, 5, 5])) for _ in range(count)]
    prompts = [prompt_ids(tokenizer, p.text) for p in problems]
    keys = [(key, i) for i in range(count)]
    drawn = sample(model, prompts, max_new_tokens=160, keys=keys)
    plain, with_hint, responses, weights = [], [], [], []
    for i, (p, c) in enumerate(zip(problems, drawn)):
        text = tokenizer.decode(c.ids)
        wrong, of, first = world.check(p, text).first_wrong, p, 0
        if rng.random() < 0.25:
            of = problems[(i + 1) % count]
        elif wrong is None:
            continue
        else:
            first = token_at(tokenizer, c.ids, wrong.wrong_at) + 1
        solution = world.solve(of, rng, rng.choice(list(world.VOICES)))
        kind = rng.choices(["full", "both", "partial", "answer"], [5, 2, 4, 1])[0]
        hint = show_hint(rng, kind, of, solution)
        weight = [float(k >= first) for k in range(len(c.ids))]
        if of is p:
            for _, what, m in world.claims(text):
                if what == "fact":
                    weight[token_at(tokenizer, c.ids, m.start("value"))] = 0.0
        plain.append(prompts[i])
        with_hint.append(prompt_ids(tokenizer, privileged_prompt(p.text, *hint)))
        responses.append(c.ids)
        weights += weight
    return plain, with_hint, responses, torch.tensor(weights)


def train_reader(seed, out, tokenizer, steps=300, log=print):
    """The student that can be its own teacher. It goes on from the student, and learns what
    to do where a hint does not apply.

    The student has read hinted documents only if they agree with their hint, or if the hint
    was another problem's. Behind its own mistakes the hint and the text contradict each
    other, and there it mixes the two. With the whole solution in view, the right result of
    a hard step falls from .50 to .38 (toy/README.md), and numbers end too early. A
    self-teacher like this destroys its student. One that imitated the whole-solution view
    fell from 28 to 0 % right answers within a hundred updates, although all tables of
    accuracy looked healthy.

    So the reader learns on its own rollouts: where the hint does not apply, predict what
    you would predict without it. No skill can leak in, because the target is the model's
    own plain distribution, without gradient. The documents from before are trained beside
    it. So hints that do apply are still copied.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = load_model(str(Path(out) / "student"), CPU, torch.float32, tokenizer)
    rng, facts = random.Random(f"reader-{seed}"), known_facts(ROLES["student"]["known"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    pending, begun = [], time.time()
    for step in range(1, steps + 1):
        plain, with_hint, responses, weight = lost_rollouts(
            model, tokenizer, rng, ("reader", seed, step)
        )
        with torch.no_grad():
            ids, predicts, _ = pack(plain, responses, model.device)
            plain_logp = log_probabilities(model, states(model, ids, predicts))  # [N, V]
        ids, predicts, _ = pack(with_hint, responses, model.device)
        hinted_logp = log_probabilities(model, states(model, ids, predicts))  # [N, V]
        kl = (plain_logp.exp() * (plain_logp - hinted_logp)).sum(-1)  # [N]
        kl = (kl * weight).sum() / weight.sum()
        kl.backward()
        for _ in range(2):
            if not pending:
                pending = pools(documents(rng, "student", tokenizer, facts, 1.0), rng)
            loss = document_loss(model, pending.pop(), tokenizer) / 2
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, step / 20) * (1 - step / steps) + 1e-6
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            minutes = (time.time() - begun) / 60
            log(f"reader: {step} of {steps}, KL {kl.item():.4f}, {minutes:.1f} min", flush=True)
    save(model, tokenizer, Path(out) / "reader")


LATER_READERS = {"reader2": 40, "reader3": 100}  # updates


def train_later_reader(name, seed, out):
    """A reader whose groups of eight rollouts often hold a success: of the rollouts of reader,
    reader2 and reader3 about 12, 22 and 40 % are right (toy/README.md has the command).
    Methods that learn from a verifier need successes, and the papers begin where they are common.

    It is the reader after a short on-policy distillation from the teacher. No prompt has a hint
    there. Whether it still uses hints as the reader does is not in the table.
    """
    import opd  # a method, and only here: everything else in this file makes models from nothing

    out = Path(out)
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--student", f"{out / 'reader'}", "--teacher", f"{out / 'teacher'}"]
        flags += ["--data", "toy", "--steps", str(LATER_READERS[name]), "--lr", "1e-3"]
        flags += ["--seed", str(7 + seed)]
        flags += ["--eval_every", "0", "--eval_n", "100", "--save_every", "0", "--show_every", "0"]
        opd.main([*flags, "--device", "cpu", "--out", f"{folder}/run"])
        with moved_to(out / name) as half:
            shutil.copytree(f"{folder}/run/final", half)


# ======================================================================== data files


def write_data(seed, out):
    """The data files. No problem occurs twice in them."""
    rng, seen = random.Random(f"data-{seed}"), set()
    for split, (count, levels) in SPLITS.items():
        with open(Path(out) / f"{split}.jsonl", "w", encoding="utf-8") as f:
            for i in range(count):
                while (row := world.make_row(rng, levels[i % len(levels)]))["problem"] in seen:
                    pass
                seen.add(row["problem"])
                f.write(json.dumps(row) + "\n")


# ======================================================================== what is measured

# What is shown beside the problem: the user's turn from a row r and a row o of another
# problem.
HINTS = {
    "nothing": lambda r, o: r["problem"],
    "answer": lambda r, o: privileged_prompt(r["problem"], answer=r["answer"]),
    "first half of a solution": lambda r, o: privileged_prompt(
        r["problem"], world.cut(r["solution"], 0.5)
    ),
    "whole solution": lambda r, o: privileged_prompt(r["problem"], r["solution"]),
    "a peer's solution": lambda r, o: privileged_prompt(r["problem"], r["peer"]),
    "a peer's solution and the answer": lambda r, o: privileged_prompt(
        r["problem"], r["peer"], r["answer"]
    ),
    "WRONG answer": lambda r, o: privileged_prompt(r["problem"], answer=o["answer"]),
    "WRONG problem's solution": lambda r, o: privileged_prompt(r["problem"], o["solution"]),
    "WRONG problem's solution and answer": lambda r, o: privileged_prompt(
        r["problem"], o["solution"], o["answer"]
    ),
}


def hinted(rows, kind):
    """The rows with another prompt. The wrong problem is another one of the same file, with
    another answer."""

    def other(i):
        places = range(i + 17, i + 17 + len(rows))
        others = (rows[place % len(rows)] for place in places)
        return next(o for o in others if o["answer"] != rows[i]["answer"])

    return [{**r, "prompt": HINTS[kind](r, other(i))} for i, r in enumerate(rows)]


@torch.no_grad()
def mass_on_the_right_token(model, tokenizer, rows, count):
    """The first gate of self-distillation: {hint: list of probabilities}.

    At the first wrong step of the model's OWN failed rollouts: how much probability does
    the same model put on the token that would be right, with nothing and with each hint in
    its prompt?
    """
    prompts = [prompt_ids(tokenizer, r["problem"]) for r in rows]
    keys = [("gate", i) for i in range(len(rows))]
    responses = [c.ids for c in sample(model, prompts, max_new_tokens=200, keys=keys)]
    cases = first_mistakes(tokenizer, rows, responses, world.check)[:count]
    masses = {}
    for kind in HINTS:
        users, texts = hinted(rows, kind), []
        for i, k, right in cases:
            prompt = prompt_ids(tokenizer, users[i]["prompt"])
            texts.append((prompt + responses[i][:k], right))
        masses[kind] = mass(model, texts)
    return masses


@torch.no_grad()
def hard_results(model, tokenizer, rows, kinds=tuple(HINTS)):
    """The second gate of self-distillation: what happens BEHIND a mistake. Returns
    {hint: {"before": [...], "after": [...]}}.

    Measured at every hard step of the model's own rollouts: the probability of the first
    digit of the result that follows from the operands as they are written, with each hint,
    before the rollout leaves the truth and after it. A hint that lowers this probability
    behind a mistake teaches false arithmetic there.
    """
    prompts = [prompt_ids(tokenizer, r["problem"]) for r in rows]
    keys = [("results", i) for i in range(len(rows))]
    drawn = sample(model, prompts, max_new_tokens=200, keys=keys)
    steps = [hard_steps(tokenizer, r, c.ids) for r, c in zip(rows, drawn)]
    masses = {}
    for kind in kinds:
        users, masses[kind] = hinted(rows, kind), {"before": [], "after": []}
        for i, of_rollout in enumerate(steps):
            if not of_rollout:
                continue
            prompt = prompt_ids(tokenizer, users[i]["prompt"])
            ids, predicts, _ = pack([prompt], [drawn[i].ids], model.device)
            p = log_probabilities(model, states(model, ids, predicts)).exp()  # [N, V]
            for k, digit, place in of_rollout:
                masses[kind][place].append(p[k, digit].item())
    return masses


def hard_steps(tokenizer, row, ids):
    """The hard steps of a rollout: [(number of the token that begins the result, the right
    token there, "before" or "after" the first mistake)]."""
    text = tokenizer.decode(ids)
    wrong = world.check(row["problem"], text).first_wrong
    found = []
    for _, what, m in world.claims(text):
        if what != "step":
            continue
        left, right = int(m["left"]), int(m["right"])
        value = result_of(left, m["op"], right)
        two_digits = min(left, right) >= 10 or (m["op"] == "-" and right >= 10)
        digit = tokenizer.convert_tokens_to_ids(f" {str(value)[0]}")
        known = 0 <= value <= world.LIMIT and digit not in (None, tokenizer.unk_token_id)
        if (m["op"] in "*/" or two_digits) and known:
            place = "after" if wrong is not None and m.start() > wrong.wrong_at else "before"
            found.append((token_at(tokenizer, ids, m.start("value")), digit, place))
    return found


# ======================================================================== the table


def line(name, cells):
    return f"| {name} | {' | '.join(cells)} |"


def rule(columns):
    return "|---" * columns + "|"


def as_percent(verdicts):
    low, high = wilson(sum(verdicts), len(verdicts))
    return f"{100 * sum(verdicts) / len(verdicts):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def as_mean(values):
    m, low, high = mean_interval(values)
    return f"{m:.3f} [{low:.3f}, {high:.3f}]"


def right_answers(model, tokenizer, rows, temperature=0.0):
    """Is the answer to each row right?"""
    _, records = evaluate(
        model, tokenizer, rows, temperature=temperature, max_new_tokens=320, bar=True
    )
    return [r["correct"] for r in records]


def table(out, problems):
    """Everything that toy/README.md says about the models, measured. Returns Markdown."""
    tokenizer = load_tokenizer(str(Path(out) / "student"))
    names = ("student", "teacher", "reader")
    trio = {n: load_model(str(Path(out) / n), CPU, torch.float32, tokenizer) for n in names}
    rows = {}
    for split in ("test", "heldout"):
        data = load_benchmark(str(Path(out) / f"{split}.jsonl"))[:problems]
        rows[split] = [{**r, "prompt": r["problem"]} for r in data]
    few = rows["test"][: problems // 2]
    return "\n".join(
        [
            *table_of_accuracy(trio, tokenizer, rows),
            "",
            "Accuracy when generating with something shown in the prompt (first "
            f"{len(few)} problems of the test set):",
            "",
            *table_of_hints(trio, tokenizer, few),
            "",
            "Mean probability of the right token at the first wrong step of the model's own "
            "failing rollouts (temperature 1), with 95 % intervals:",
            "",
            *table_at_mistakes(trio, tokenizer, rows["test"]),
            "",
            "Mean probability of the right result of a hard step (its first digit, given the "
            "operands as they are written), on own rollouts, before and after the first wrong "
            "token:",
            "",
            *table_behind_mistakes(trio, tokenizer, rows["test"][:400]),
        ]
    )


def table_of_accuracy(trio, tokenizer, rows):
    test, heldout = rows["test"], rows["heldout"]
    weights = [f"{sum(p.numel() for p in m.parameters()):,}" for m in trio.values()]
    configs = [m.config for m in trio.values()]
    greedy = [right_answers(m, tokenizer, test) for m in trio.values()]
    sampled = [right_answers(m, tokenizer, test, 1.0) for m in trio.values()]
    beyond = [right_answers(m, tokenizer, heldout) for m in trio.values()]

    def by(key, value, rows, verdicts):
        return [as_percent([v for v, r in zip(of, rows) if r[key] == value]) for of in verdicts]

    def values(key, rows):
        return sorted({r[key] for r in rows})

    return [
        f"| | {' | '.join(trio)} |",
        rule(len(trio) + 1),
        line("parameters", weights),
        line("layers x width", [f"{c.num_hidden_layers} x {c.hidden_size}" for c in configs]),
        line(f"test set, greedy (n = {len(test)})", map(as_percent, greedy)),
        line("test set, temperature 1", map(as_percent, sampled)),
        *[line(f"- {v} steps", by("level", v, test, greedy)) for v in values("level", test)],
        *[line(f"- {v}", by("style", v, test, greedy)) for v in values("style", test)],
        line(f"held-out set, greedy (n = {len(heldout)})", map(as_percent, beyond)),
        *[line(f"- {v} steps", by("level", v, heldout, beyond)) for v in values("level", heldout)],
    ]


def table_of_hints(trio, tokenizer, rows):
    columns = [
        ("student", "greedy", 0.0),
        ("student", "temperature 1", 1.0),
        ("teacher", "greedy", 0.0),
        ("reader", "greedy", 0.0),
        ("reader", "temperature 1", 1.0),
    ]
    lines = [line("shown", [f"{name}, {how}" for name, how, _ in columns]), rule(6)]
    for kind in HINTS:
        asked = hinted(rows, kind)
        answers = [right_answers(trio[name], tokenizer, asked, heat) for name, _, heat in columns]
        lines.append(line(kind, map(as_percent, answers)))
    return lines


def table_at_mistakes(trio, tokenizer, rows):
    gates = {n: mass_on_the_right_token(m, tokenizer, rows, 400) for n, m in trio.items()}
    heads = [f"{name} (n = {len(gate['nothing'])})" for name, gate in gates.items()]
    cells = [line(kind, [as_mean(gate[kind]) for gate in gates.values()]) for kind in HINTS]
    return [line("shown", heads), rule(len(gates) + 1), *cells]


def table_behind_mistakes(trio, tokenizer, rows):
    names, places = ("student", "reader"), ("before", "after")
    results = [hard_results(trio[name], tokenizer, rows) for name in names]
    heads = [f"{name}, {place}" for name in names for place in places]
    lines = [line("shown", heads), rule(5)]
    for kind in HINTS:
        cells = [as_mean(result[kind][place]) for result in results for place in places]
        lines.append(line(kind, cells))
    return lines


def write_table(out, problems):
    """Print the table, and put it between the two marks in README.md."""
    text, readme = table(out, problems), Path(out) / "README.md"
    print(text)
    old = readme.read_text(encoding="utf-8") if readme.exists() else ""
    before, _, rest = old.partition("<!-- table -->\n")
    after = rest.partition("<!-- end of table -->")[2]
    write_text(readme, f"{before}<!-- table -->\n{text}\n<!-- end of table -->{after}")


# ======================================================================== main


def main():
    p = Parser(__doc__)
    p.add_argument(
        "--seed",
        type=int,
        default=0,
        help="everything random follows from it; other seeds give other pairs",
    )
    p.add_argument(
        "--out", default=str(ROOT / "toy"), help="where tokenizer, data and models go"
    )
    p.add_argument(
        "--only",
        choices=["data", "student", "teacher", "reader", "reader2", "reader3", "table"],
        help="rebuild only this part",
    )
    p.add_argument(
        "--problems",
        type=int,
        default=1000,
        help="test problems behind the table (default 1000: about six minutes)",
    )
    args = p.parse_args()
    Path(args.out).mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    if args.only in (None, "data"):
        write_data(args.seed, args.out)
    for role in ROLES:
        if args.only in (None, role):
            train(role, args.seed, args.out, tokenizer)
    if args.only in (None, "reader"):
        train_reader(args.seed, args.out, tokenizer)
    for name in LATER_READERS:
        if args.only in (None, name):
            train_later_reader(name, args.seed, args.out)
    if args.only in (None, "table"):
        write_table(args.out, args.problems)


if __name__ == "__main__":
    run_script(main)
