"""Build the toy from a seed: tokenizer, data files, student and teacher, and the table of what they can do.

    python toy/build.py                     # everything, about 40 minutes on one core -> toy/
    python toy/build.py --seed 1 --out pair1   # another, independently trained pair
    python toy/build.py --only table        # measure the pair that is there, rewrite toy/README.md

How a student gets to be weak matters more than how weak it is. A first student spoke the teacher's language with noise
injected (dropped carries, wrong signs): fifty updates of any method undid the noise, and no method could be told from
another. This one lacks skill and knowledge, and there is no label noise in what it does know:

* skill: hard steps (two-digit operands, products, halves) are rare in its training text (5 %), 33 % of the benchmark's steps;
* knowledge: of the 81 facts of the table `#` it has read 45; the others it has only seen with random results.

Hints (a worked solution, part of one, or the answer, shown in the prompt) are trained so that being shown one means
nothing by itself: in a document with a RIGHT hint every hard result and every mix is drawn at random, in the hint and in
the wanted solution alike, so the hint must be read and teaches no arithmetic; a fifth of all hints belong to another
problem and must be ignored. Otherwise "a hint is present" comes to mean "do well now", and every experiment on
self-distillation measures that instead.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import plumbing
from diagnostics import first_mistakes, mass, token_at
from evaluate import eos_ids, evaluate, load_benchmark, mean_interval, privileged_prompt, prompt_ids, sample, wilson
from toy import world

SPLITS = {"train": (4000, [3, 4, 5]), "test": (2001, [3, 4, 5]), "heldout": (2001, [6, 7, 8])}  # rows, levels (steps)

# What the teacher reads, and what all documents with a right hint show: harder than the benchmark (world.MIXTURE).
RICH = {"easy": 0.35, "hard": 0.40, "mix": 0.25}
ROLES = {
    "teacher": dict(width=128, layers=3, tokens=9_000_000, mixture=RICH, known=1.0, drills=(0.5, 0.5)),
    # The student's text: hard steps at 5 % instead of 40 %, 55 % of the table.
    "student": dict(
        width=96,
        layers=3,
        tokens=10_000_000,
        mixture={"easy": 0.74, "hard": 0.05, "mix": 0.21},
        known=0.55,
        drills=(0.95, 0.05),
    ),
}


# ---------------------------------------------------------------------------------------------------- tokenizer

SPECIAL = ["<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|end|>"]
# What a real chat template does, with one token per role. `enable_thinking` and the like are accepted and ignored.
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer():
    """A fast word tokenizer: one token a word, digit or sign, the space before it included, so that decoding is exact.

    The vocabulary is collected from the language itself, and no word of it may fall to <|unk|> (tests check this).
    """
    rng = random.Random(0)
    texts = [privileged_prompt("x.", "x.", "1"), privileged_prompt("x.", answer="1"), "\n \\boxed{ \\boxed{0} + - * / # ="]
    for _ in range(4000):
        p = world.make_problem(rng, rng.randint(1, 8))
        texts += [p.text, world.solve(p, rng, "teacher"), world.solve(p, rng, "student")]
    texts += [" " + " ".join(world.LABELS), " 0 1 2 3 4 5 6 7 8 9 0123456789"]
    tokenizer = Tokenizer(models.WordLevel({}, unk_token="<|unk|>"))
    # Every piece of text begins with a space: "Owl" is the same token at the start of a line and inside it.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\n(?=[^\s])"), "\n "), normalizers.Replace(Regex(r"\A(?=[^\s])"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\\boxed\{| ?\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s"), "isolated")
    tokenizer.decoder = decoders.Fuse()  # tokens carry their spaces: decoding only glues them together
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


# ---------------------------------------------------------------------------------------------------- training text


def known_facts(share):
    """The part of the table that a role knows; the same for every seed, so that pairs are comparable."""
    facts = sorted(world.TABLE)
    random.Random(5).shuffle(facts)
    return set(facts[: int(round(share * len(facts)))])


def document(rng, role, level, facts):
    """One training document: (user turn, wanted response, character spans of the response that carry no loss)."""
    spec = ROLES[role]

    def ignorant(event, before):  # an unknown fact is seen with random results: honest ignorance, no noise elsewhere
        return rng.randint(1, 6) if event.kind == "mix" and event.numbers not in facts else None

    def at_random(event, before):  # right hints: every hard result and every fact is whatever the hint says
        if event.kind == "mix":
            return rng.randint(1, 6)
        return rng.randint(0, world.LIMIT) if world.is_hard(event) else None

    def voice(own=0.85):
        return role if rng.random() < own else {"teacher": "student", "student": "teacher"}[role]

    draw = rng.random()
    if draw < 0.50:  # plain
        p = world.make_problem(rng, level, mixture=spec["mixture"], believe=ignorant)
        return p.text, world.solve(p, rng, voice()), []
    if draw < 0.60:  # a hint that belongs to another problem: no help, and no harm if ignored
        p = world.make_problem(rng, level, mixture=spec["mixture"], believe=ignorant)
        q = world.make_problem(rng, rng.randint(1, 5), mixture=RICH, believe=at_random)
        shown = world.solve(q, rng, voice(0.5))
        kind = rng.choice(["full", "full", "partial", "both", "answer"])
        if kind == "partial":
            shown = world.cut(shown, rng.uniform(0.3, 0.7))
        return (
            privileged_prompt(
                p.text, None if kind == "answer" else shown, str(q.answer) if kind in ("both", "answer") else None
            ),
            world.solve(p, rng, voice()),
            [],
        )
    p = world.make_problem(rng, level, mixture=RICH, believe=at_random)
    shown, wanted = world.solve(p, rng, voice(0.5)), world.solve(p, rng, voice())
    kind = rng.choices(["full", "both", "partial", "answer"], [5, 3, 3, 1])[0]
    if kind == "partial":
        shown = world.cut(shown, rng.uniform(0.3, 0.7))
    elif kind == "answer":
        shown = ""
    # Results drawn at random that the hint does not show cannot be known: no loss on them. (The last one can, where the
    # answer is shown.)
    visible = {(label["label"], what) for label, what, m in world.claims(shown) if label}
    if kind in ("both", "answer"):
        visible.add((p.chain[-1].label, "step"))
    hidden = [
        m.span("value")
        for label, what, m in world.claims(wanted)
        if what in ("fact", "step")
        and (label["label"], what) not in visible
        and (what == "fact" or world.is_hard(p[label["label"]]))
    ]
    return privileged_prompt(p.text, shown or None, str(p.answer) if kind in ("both", "answer") else None), wanted, hidden


def drill(rng, role, facts):
    """Bare equations: the cheapest way to learn arithmetic. Easy and hard in the role's own proportion."""
    easy, hard = ROLES[role]["drills"]
    said = []
    while len(said) < 12:
        kind = rng.choices(["easy", "hard", "mix"], [easy, hard, 0.12])[0]
        if kind == "mix":
            numbers = rng.randint(1, 9), rng.randint(1, 9)
            if numbers not in facts:
                continue
            left, op, right, value = *numbers[:1], "#", numbers[1], world.TABLE[numbers]
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
            value = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[op]
        if not 0 <= value <= world.LIMIT:
            continue
        if op in "+*" and rng.random() < 0.5:
            left, right = right, left
        said.append(f"{left} {op} {right} {world._pick(rng, world.VOICES[role]['equals'])} {value}.")
    return " ".join(said)


def documents(rng, role, tokenizer, facts, progress):
    """A few thousand documents as (ids, first trained position, untrained positions). Drills and short problems first."""
    levels = [1, 2] if progress < 0.2 else [1, 2, 3, 4] if progress < 0.4 else [1, 2, 3, 3, 4, 4, 5, 5]
    drills = 0.25 if progress < 0.4 else 0.10
    texts, prompts, hidden = [], [], []
    for _ in range(3000):
        draw = rng.random()
        if draw < drills:
            user, wanted, spans = None, drill(rng, role, facts), []
        else:
            user, wanted, spans = document(rng, role, rng.choice(levels), facts)
        texts.append(wanted)
        prompts.append(
            ""
            if user is None
            else tokenizer.apply_chat_template([{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True)
        )
        hidden.append(spans)
    head = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    body = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    rows = []
    for h, ids, offsets, spans in zip(head, body["input_ids"], body["offset_mapping"], hidden):
        # Offsets count the text as it was given; a token's own space belongs to it.
        untrained = {len(h) + i for i, (s, e) in enumerate(offsets) if any(s < b and e > a for a, b in spans)}
        rows.append((h + ids + [tokenizer.eos_token_id], max(1, len(h)), untrained))
    return rows


def pools(rows, rng):
    """Batches of about 4,000 tokens: sorted by length, cut, shuffled."""
    found, batch = [], []
    for row in sorted(rows, key=lambda r: len(r[0])):
        batch.append(row)
        if len(batch) * len(row[0]) > 4000:
            found.append(batch)
            batch = []
    rng.shuffle(found)
    return found


def document_loss(model, rows, tokenizer):
    """Mean cross-entropy over the trained positions of (ids, first trained position, untrained positions)."""
    longest = max(len(r[0]) for r in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)  # [B, L]
    wanted = torch.full((len(rows), longest), -100)  # [B, L]
    for i, (tokens, first, untrained) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        wanted[i, first : len(tokens)] = ids[i, first : len(tokens)]
        wanted[i, sorted(untrained)] = -100
    # Padding stands on the right, so that a causal mask alone keeps it from everything that carries loss.
    hidden = model.model(ids).last_hidden_state[:, :-1]  # [B, L-1, width]
    keep = wanted[:, 1:] != -100
    return F.cross_entropy(model.lm_head(hidden[keep]), wanted[:, 1:][keep])


def train(role, seed, out, tokenizer, log=print):
    """From random weights to a model, on one thread (a second one beside a busy core makes both slower)."""
    torch.set_num_threads(1)
    torch.manual_seed(seed * 1000 + len(role) + ord(role[0]))
    spec, rng, facts = ROLES[role], random.Random(f"{role}-{seed}"), known_facts(ROLES[role]["known"])
    model = Qwen3ForCausalLM(
        Qwen3Config(
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
    )
    # Muon on the matrices, AdamW on embeddings and norms: learned faster here than AdamW alone.
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimisers = [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0), torch.optim.AdamW(others, lr=3e-3, weight_decay=0.0)]
    rates, seen, step, begun = [0.02, 3e-3], 0, 0, time.time()
    pending = []
    while seen < spec["tokens"]:
        progress = seen / spec["tokens"]
        if not pending:
            pending = pools(documents(rng, role, tokenizer, facts, progress), rng)
        rows = pending.pop()
        loss = document_loss(model, rows, tokenizer)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, rate in zip(optimisers, rates):
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, step / 50) * min(1.0, 2 * (1 - progress)) + 1e-6
            optimiser.step()
            optimiser.zero_grad()
        seen, step = seen + sum(len(r[0]) for r in rows), step + 1
        if step % 100 == 0:
            log(
                f"{role}: {seen / 1e6:6.2f} of {spec['tokens'] / 1e6:.0f} M tokens, loss {loss.item():.3f}, "
                f"{seen / (time.time() - begun):,.0f} tokens/s, {(time.time() - begun) / 60:.1f} min",
                flush=True,
            )
            if step % 400 == 0:
                save(model, tokenizer, Path(out) / role)
    save(model, tokenizer, Path(out) / role)


# ---------------------------------------------------------------------------------------------------- a careful reader


def lost_rollouts(model, tokenizer, rng, key, count=40):
    """Own rollouts behind prompts with a hint that does not (or no longer) apply: (plain prompts, hinted prompts, responses, weights).

    Three quarters: a right hint, but the rollout has left the truth; weight 1 behind its first wrong token. One quarter: another
    problem's hint; weight 1 everywhere. Facts of the table keep weight 0: they are true wherever the solution has got to.
    """
    problems = [world.make_problem(rng, rng.choice([2, 3, 3, 4, 4, 5, 5])) for _ in range(count)]
    prompts = [prompt_ids(tokenizer, p.text) for p in problems]
    done = sample(
        model,
        prompts,
        max_new_tokens=160,
        eos=eos_ids(model, tokenizer),
        vocabulary=len(tokenizer),
        keys=[(key, i) for i in range(count)],
    )
    plain, hinted, responses, weights = [], [], [], []
    for i, (p, c) in enumerate(zip(problems, done)):
        text = tokenizer.decode(c.ids)
        wrong, of, first = world.check(p, text).first_wrong, p, 0
        if rng.random() < 0.25:
            of = problems[(i + 1) % count]
        elif wrong is None:
            continue
        else:
            first = token_at(tokenizer, c.ids, wrong.wrong_at) + 1
        shown = world.solve(of, rng, rng.choice(list(world.VOICES)))
        kind = rng.choices(["full", "both", "partial", "answer"], [5, 2, 4, 1])[0]
        if kind == "partial":
            shown = world.cut(shown, rng.uniform(0.3, 0.7))
        weight = [float(k >= first) for k in range(len(c.ids))]
        if of is p:
            for _, what, m in world.claims(text):
                if what == "fact":
                    weight[token_at(tokenizer, c.ids, m.start("value"))] = 0.0
        answer = str(of.answer) if kind in ("both", "answer") else None
        plain.append(prompts[i])
        hinted.append(prompt_ids(tokenizer, privileged_prompt(p.text, None if kind == "answer" else shown, answer)))
        responses.append(c.ids)
        weights += weight
    return plain, hinted, responses, torch.tensor(weights)


def train_reader(seed, out, tokenizer, steps=300, log=print):
    """The student that can be its own teacher: it goes on from the student and learns what to do where a hint does not apply.

    The student has only read hinted documents that agree with their hint. Behind its own mistakes the hint and the text
    contradict each other, and there it mixes the two: the whole solution in view lowers the probability of the right result
    of a hard step from .50 to .38 (toy/README.md), and numbers end too early. A self-teacher that does this destroys its student:
    imitating the whole-solution view, it fell from 28 to 0 % right answers within a hundred updates, while all tables of accuracy looked
    healthy. So, on its own rollouts: where the hint does not apply, predict what you would predict without it. No skill can
    leak in by that: the target is the model's own plain distribution, detached. The documents of before go on beside it, so
    that hints that do apply are still copied.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = plumbing.load_model(str(Path(out) / "student"), torch.device("cpu"), torch.float32)
    rng, facts, pending, begun = random.Random(f"reader-{seed}"), known_facts(ROLES["student"]["known"]), [], time.time()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(1, steps + 1):
        plain, hinted, responses, weight = lost_rollouts(model, tokenizer, rng, ("reader", seed, step))
        with torch.no_grad():
            ids, predicts, _ = plumbing.pack(plain, responses, model.device)
            target = model.lm_head(plumbing.states(model, ids, predicts)).log_softmax(-1)  # [N, V]
        ids, predicts, _ = plumbing.pack(hinted, responses, model.device)
        ours = model.lm_head(plumbing.states(model, ids, predicts)).log_softmax(-1)  # [N, V]
        lost = ((target.exp() * (target - ours)).sum(-1) * weight).sum() / weight.sum()
        lost.backward()
        for _ in range(2):
            if not pending:
                pending = pools(documents(rng, "student", tokenizer, facts, 1.0), rng)
            loss = document_loss(model, pending.pop(), tokenizer) / 2
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, step / 20) * (1 - step / steps) + 1e-6
        optimiser.step()
        optimiser.zero_grad()
        if step % 20 == 0:
            log(f"reader: {step} of {steps}, KL {lost.item():.4f}, {(time.time() - begun) / 60:.1f} min", flush=True)
    save(model, tokenizer, Path(out) / "reader")


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(seed, out):
    """train, test and held-out files; no problem occurs twice, within a file or across them."""
    rng, seen = random.Random(f"data-{seed}"), set()
    for split, (count, levels) in SPLITS.items():
        with open(Path(out) / f"{split}.jsonl", "w", encoding="utf-8") as f:
            for i in range(count):
                while (row := world.make_row(rng, levels[i % len(levels)]))["problem"] in seen:
                    pass
                seen.add(row["problem"])
                f.write(json.dumps(row) + "\n")


# ---------------------------------------------------------------------------------------------------- the table

HINTS = {  # what is shown beside the problem: own row, another problem's row -> user turn
    "nothing": lambda r, o: r["problem"],
    "answer": lambda r, o: privileged_prompt(r["problem"], answer=r["answer"]),
    "first half of a solution": lambda r, o: privileged_prompt(r["problem"], world.cut(r["solution"], 0.5)),
    "whole solution": lambda r, o: privileged_prompt(r["problem"], r["solution"]),
    "a peer's solution": lambda r, o: privileged_prompt(r["problem"], r["peer"]),
    "a peer's solution and the answer": lambda r, o: privileged_prompt(r["problem"], r["peer"], r["answer"]),
    "WRONG answer": lambda r, o: privileged_prompt(r["problem"], answer=o["answer"]),
    "WRONG problem's solution": lambda r, o: privileged_prompt(r["problem"], o["solution"]),
    "WRONG problem's solution and answer": lambda r, o: privileged_prompt(r["problem"], o["solution"], o["answer"]),
}


def hinted(rows, kind):
    """Rows with another prompt. The wrong problem is another one of the same file, with another answer."""

    def other(i):
        return next(
            rows[(i + k) % len(rows)]
            for k in range(17, 17 + len(rows))
            if rows[(i + k) % len(rows)]["answer"] != rows[i]["answer"]
        )

    return [{**r, "prompt": HINTS[kind](r, other(i))} for i, r in enumerate(rows)]


@torch.no_grad()
def mass_on_the_right_token(model, tokenizer, rows, count):
    """The gate of self-distillation. At the first wrong step of the model's OWN failing rollouts: how much probability does
    the same model put on the token that would have been right, shown nothing and shown each hint? {hint: list of masses}"""
    prompts = [prompt_ids(tokenizer, r["problem"]) for r in rows]
    completions = sample(
        model,
        prompts,
        max_new_tokens=200,
        eos=eos_ids(model, tokenizer),
        vocabulary=len(tokenizer),
        keys=[("gate", i) for i in range(len(rows))],
    )
    cases = first_mistakes(tokenizer, rows, [c.ids for c in completions])[:count]
    return {
        kind: mass(
            model, [(prompt_ids(tokenizer, users[i]["prompt"]) + completions[i].ids[:k], right) for i, k, right in cases]
        )
        for kind, users in ((kind, hinted(rows, kind)) for kind in HINTS)
    }


@torch.no_grad()
def hard_results(model, tokenizer, rows, kinds=tuple(HINTS)):
    """The other gate of self-distillation, BEHIND the mistakes. At every hard step of the model's own rollouts whose result the written
    operands determine: the probability of that result's first digit, under each hint, before the rollout leaves the truth and after.
    Returns {hint: {"before": [...], "after": [...]}}. A hint that lowers it after a mistake teaches false arithmetic there."""
    prompts = [prompt_ids(tokenizer, r["problem"]) for r in rows]
    ends, keys = eos_ids(model, tokenizer), [("results", i) for i in range(len(rows))]
    done = sample(model, prompts, max_new_tokens=200, eos=ends, vocabulary=len(tokenizer), keys=keys)
    cases = []
    for i, c in enumerate(done):
        text = tokenizer.decode(c.ids)
        wrong = world.check(rows[i]["problem"], text).first_wrong
        for _, what, m in world.claims(text):
            if what != "step":
                continue
            left, right = int(m["left"]), int(m["right"])
            value = {"+": left + right, "-": left - right, "*": left * right, "/": left // max(1, right)}[m["op"]]
            hard = m["op"] in "*/" or min(left, right) >= 10 or (m["op"] == "-" and right >= 10)
            digit = tokenizer.convert_tokens_to_ids(f" {str(value)[0]}")
            if hard and 0 <= value <= world.LIMIT and digit not in (None, tokenizer.unk_token_id):
                place = "after" if wrong is not None and m.start() > wrong.wrong_at else "before"
                cases.append((i, token_at(tokenizer, c.ids, m.start("value")), digit, place))
    found = {}
    for kind in kinds:
        users, found[kind] = hinted(rows, kind), {"before": [], "after": []}
        for i in sorted({c[0] for c in cases}):
            prompt = prompt_ids(tokenizer, users[i]["prompt"])
            ids, predicts, _ = plumbing.pack([prompt], [done[i].ids], model.device)
            p = model.lm_head(plumbing.states(model, ids, predicts)).softmax(-1)  # [N, V]
            for _, k, digit, place in [c for c in cases if c[0] == i]:
                found[kind][place].append(p[k, digit].item())
    return found


def table(out, problems):
    """Everything toy/README.md says about the models, measured. Returns Markdown."""
    cpu, lines = torch.device("cpu"), []
    tokenizer = plumbing.load_tokenizer(str(Path(out) / "student"))
    pair = {role: plumbing.load_model(str(Path(out) / role), cpu, torch.float32) for role in ("student", "teacher", "reader")}
    rows = {split: load_benchmark(str(Path(out) / f"{split}.jsonl")) for split in ("test", "heldout")}
    rows = {split: [{**r, "prompt": r["problem"]} for r in data][:problems] for split, data in rows.items()}

    def shown(verdicts):
        low, high = wilson(sum(verdicts), len(verdicts))
        return f"{100 * sum(verdicts) / len(verdicts):.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    def right(model, asked, temperature=0.0):
        return [
            r["correct"] for r in evaluate(model, tokenizer, asked, temperature=temperature, max_new_tokens=320, bar=True)[1]
        ]

    lines += [
        "| | " + " | ".join(pair) + " |",
        "|---" * (len(pair) + 1) + "|",
        "| parameters | " + " | ".join(f"{sum(p.numel() for p in m.parameters()):,}" for m in pair.values()) + " |",
        "| layers x width | "
        + " | ".join(f"{m.config.num_hidden_layers} x {m.config.hidden_size}" for m in pair.values())
        + " |",
    ]
    base = {role: right(m, rows["test"]) for role, m in pair.items()}
    warm = {role: right(m, rows["test"], 1.0) for role, m in pair.items()}
    beyond = {role: right(m, rows["heldout"]) for role, m in pair.items()}

    def line(name, verdicts):
        lines.append(f"| {name} | " + " | ".join(shown(v) for v in verdicts) + " |")

    line(f"test set, greedy (n = {len(rows['test'])})", base.values())
    line("test set, temperature 1", warm.values())
    for key in ("level", "style"):
        for value in sorted({r[key] for r in rows["test"]}):
            line(
                f"- {value} steps" if key == "level" else f"- {value}",
                [[v for v, r in zip(b, rows["test"]) if r[key] == value] for b in base.values()],
            )
    line(f"held-out set, greedy (n = {len(rows['heldout'])})", beyond.values())
    for value in sorted({r["level"] for r in rows["heldout"]}):
        line(f"- {value} steps", [[v for v, r in zip(b, rows["heldout"]) if r["level"] == value] for b in beyond.values()])
    few = rows["test"][: problems // 2]
    lines += [
        "",
        f"Accuracy when generating with something shown in the prompt (first {len(few)} problems of the test set):",
        "",
        "| shown | student, greedy | student, temperature 1 | teacher, greedy | reader, greedy | reader, temperature 1 |",
        "|---|---|---|---|---|---|",
    ]
    for kind in HINTS:
        asked, cells = hinted(few, kind), []
        for role, temperature in (("student", 0.0), ("student", 1.0), ("teacher", 0.0), ("reader", 0.0), ("reader", 1.0)):
            cells.append(shown(right(pair[role], asked, temperature)))
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    gates = {role: mass_on_the_right_token(m, tokenizer, rows["test"], 400) for role, m in pair.items()}
    lines += [
        "",
        "Mean probability of the right token at the first wrong step of the model's own failing rollouts (temperature 1), with 95 % intervals:",
        "",
        "| shown | " + " | ".join(f"{role} (n = {len(g['nothing'])})" for role, g in gates.items()) + " |",
        "|---" * (len(gates) + 1) + "|",
    ]

    def numbers(values):
        m, low, high = mean_interval(values)
        return f"{m:.3f} [{low:.3f}, {high:.3f}]"

    for kind in HINTS:
        lines.append(f"| {kind} | " + " | ".join(numbers(g[kind]) for g in gates.values()) + " |")
    beside = {role: hard_results(pair[role], tokenizer, rows["test"][:400]) for role in ("student", "reader")}
    lines += [
        "",
        "Mean probability of the right result of a hard step (its first digit, given the operands as they are written), on own rollouts, before "
        "and after the first wrong token:",
        "",
        "| shown | student, before | student, after | reader, before | reader, after |",
        "|---|---|---|---|---|",
    ]
    for kind in HINTS:
        cells = [numbers(g[kind][place]) for g in beside.values() for place in ("before", "after")]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table(out, problems):
    text, readme = table(out, problems), Path(out) / "README.md"
    print(text)
    before, mark, rest = (readme.read_text(encoding="utf-8") if readme.exists() else "").partition("<!-- table -->\n")
    after = rest.partition("<!-- end of table -->")[2]
    plumbing.write_text(readme, f"{before}<!-- table -->\n{text}\n<!-- end of table -->{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="everything random follows from it; other seeds give other pairs")
    parser.add_argument("--out", default=str(ROOT / "toy"), help="where tokenizer, data and models go")
    parser.add_argument("--only", choices=["data", "student", "teacher", "reader", "table"], help="rebuild just this part")
    parser.add_argument(
        "--problems", type=int, default=1000, help="test problems behind the table (default 1000: about six minutes)"
    )
    args = parser.parse_args()
    Path(args.out).mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    if args.only in (None, "data"):
        write_data(args.seed, args.out)
    for role in ROLES:
        if args.only in (None, role):
            train(role, args.seed, args.out, tokenizer)
    if args.only in (None, "reader"):
        train_reader(args.seed, args.out, tokenizer)
    if args.only in (None, "table"):
        write_table(args.out, args.problems)


if __name__ == "__main__":
    main()
