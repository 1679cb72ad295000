"""See what a method sees: rollouts of the student, token by token.

    python look.py opd                              # three rollouts of the toy, in the terminal
    python look.py opd --n 5 --html look.html       # the same as one self-contained page; hover a token for the details
    python look.py opd --student runs/opd-0/final --teacher toy/teacher --data toy

Nothing is trained. For `opd` every token of a rollout is coloured by KL(student || teacher) at its position: pale is
agreement, red is where a gradient would be large. On the toy the checker adds what no real data set knows: where the
rollout first goes wrong, and how much of the disagreement lies on words and how much on substance.
"""

import argparse
import html
from pathlib import Path

import torch

import opd
import plumbing
from evaluate import eos_ids, extract, grade, load_benchmark, prompt_ids, sample
from plumbing import require
from toy import world

RED_FROM = 2.0  # nats at which a token is fully red


@torch.no_grad()
def scored(student, teacher, tokenizer, prompt, response):
    """One dictionary a token of the response: text, kl, probability under both models, the teacher's three favourites."""
    ids, predicts, targets = opd.pack([prompt], [response], student.device)
    vocabulary = len(tokenizer)
    s, t = (
        m.get_output_embeddings()(opd.states(m, ids, predicts))[:, :vocabulary].float().log_softmax(-1)
        for m in (student, teacher)
    )  # [N, V]
    kl, best = opd.divergence(s, t), t.topk(min(3, vocabulary))
    return [
        {
            "text": tokenizer.decode([y]),
            "kl": k,
            "student": s[i, y].exp().item(),
            "teacher": t[i, y].exp().item(),
            "favourites": [(tokenizer.decode([v]), p) for v, p in zip(best.indices[i].tolist(), best.values[i].exp().tolist())],
        }
        for i, (y, k) in enumerate(zip(targets.tolist(), kl.tolist()))
    ]


def offsets(tokens):
    """(start, end) of every token in the joined text. Decoding token by token is exact for the toy, near enough for others."""
    at, found = 0, []
    for t in tokens:
        found.append((at, at + len(t["text"])))
        at += len(t["text"])
    return found


def verdict(row, tokens, truncated):
    """Right or wrong; on the toy also where the text first leaves the truth (index of the token), and the KL by kind of token."""
    text = "".join(t["text"] for t in tokens)
    right = grade(text, row["answer"])
    said = f"answer {plumbing.harmless(str(extract(text)))}, gold {row['answer']}: {'right' if right else 'wrong'}{', truncated' if truncated else ''}"
    try:
        report = world.check(row["problem"], text)
    except ValueError:  # not the toy's language
        return said, None
    kinds = world.token_kinds(text, offsets(tokens))
    words = sum(t["kl"] for t, kind in zip(tokens, kinds) if kind == "surface")
    said += f"; of {sum(t['kl'] for t in tokens):.1f} nats of KL {words:.1f} lie on words, the rest on substance"
    wrong = report.first_wrong
    if wrong is None:
        return said, None
    said += f"; first wrong: {wrong.fault}" + (f", right would be {wrong.right!r}" if wrong.right else "")
    return said, next((i for i, (s, e) in enumerate(offsets(tokens)) if s <= wrong.wrong_at < e), None)


def in_terminal(found):
    colours = plumbing.colours_wanted()
    print(
        f"tokens coloured by KL(student || teacher), red from {RED_FROM:g} nats"
        if colours
        else f"tokens above {RED_FROM / 2:g} nats in [ ]"
    )
    for prompt, tokens, said, wrong in found:
        pieces = [t["text"] for t in tokens]
        if wrong is not None:
            pieces[wrong] = f" >>>{pieces[wrong].strip()}"
        print(f"\n{plumbing.harmless(prompt)}")
        if colours:
            print(plumbing.paint(pieces, [t["kl"] for t in tokens], RED_FROM))
        else:
            print(plumbing.harmless("".join(f"[{p}]" if t["kl"] > RED_FROM / 2 else p for p, t in zip(pieces, tokens))))
        print(f"  {said}" + ("   (>>> marks it)" if wrong is not None else ""))


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>rollouts</title><style>
body{{font:16px/1.7 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}}
.prompt{{color:#666;white-space:pre-wrap}} .rollout{{white-space:pre-wrap;background:#fff;border:1px solid #ddd;border-radius:6px;padding:.7em}}
.rollout span{{border-radius:3px;cursor:help}} .wrong{{outline:2px solid #1f6fb4}} .said{{color:#444;font-size:.9em}}
.scale span{{padding:0 .6em}}</style>
<h1>Rollouts of {student}</h1><p>Coloured by KL(student || teacher), teacher {teacher}; hover a token for both probabilities and the
teacher's favourites. A blue frame marks where the text first goes wrong (toy only).</p>
<p class="scale">{scale}</p>{body}</html>
"""


def shade(kl):
    share = max(0.0, min(1.0, kl / RED_FROM))
    return f"background:rgb(255,{255 - int(150 * share)},{255 - int(190 * share)})" if share > 0.02 else ""


def as_page(found, args):
    """One file without scripts or anything from outside. All text of models and data is escaped: it comes from strangers."""
    body = []
    for prompt, tokens, said, wrong in found:
        spans = []
        for i, t in enumerate(tokens):
            tip = (
                f"KL {t['kl']:.2f}; student {t['student']:.2f}, teacher {t['teacher']:.2f}; teacher's favourites: "
                + ", ".join(f"{plumbing.harmless(w)!r} {p:.2f}" for w, p in t["favourites"])
            )
            spans.append(
                f'<span style="{shade(t["kl"])}"{" class=wrong" if i == wrong else ""} title="{html.escape(tip, quote=True)}">'
                f"{html.escape(plumbing.harmless(t['text']))}</span>"
            )
        body.append(
            f'<h2>&nbsp;</h2><p class="prompt">{html.escape(plumbing.harmless(prompt))}</p><p class="rollout">{"".join(spans)}</p>'
            f'<p class="said">{html.escape(said)}</p>'
        )
    scale = "".join(f'<span style="{shade(x)}">{x:g}</span>' for x in (0, 0.25, 0.5, 1, 1.5, RED_FROM)) + " nats and more"
    return PAGE.format(student=html.escape(args.student), teacher=html.escape(args.teacher), scale=scale, body="".join(body))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("method", choices=["opd"], help="whose view")
    p.add_argument("--n", type=int, default=3, help="rollouts to show (default 3)")
    p.add_argument("--html", metavar="FILE", help="write a page instead of printing")
    p.add_argument("--student", default="toy/student", help="model that writes (default toy/student)")
    p.add_argument("--teacher", default="toy/teacher", help="model that scores (default toy/teacher)")
    p.add_argument("--data", default="toy", help="problems: toy, gsm8k or a JSONL file (default toy; their test split)")
    p.add_argument("--seed", type=int, default=0, help="another seed shows other problems and rollouts")
    p.add_argument("--max_new_tokens", type=int, default=256, help="longest rollout (default 256)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    args = p.parse_args(argv)
    require(args.n >= 1, f"--n is {args.n}; it must be at least 1.")
    require(args.max_new_tokens >= 1, f"--max_new_tokens is {args.max_new_tokens}; it must be at least 1.")
    require(
        not args.html or Path(args.html).absolute().parent.is_dir(),
        f"There is no folder '{Path(args.html or '').absolute().parent}' to write the page into.",
    )
    device = plumbing.pick_device(args.device)
    rows, tokenizer = load_benchmark(args.data, "test"), plumbing.load_tokenizer(args.student)
    plumbing.same_tokenizer(tokenizer, plumbing.load_tokenizer(args.teacher))
    chosen = [rows[i] for i in plumbing.prompts_of_step(1, args.n, len(rows), args.seed)]
    plumbing.check_prompts(tokenizer, [r["prompt"] for r in chosen], args.data)
    dtype = plumbing.compute_dtype("auto", device)
    student, teacher = (plumbing.load_model(name, device, dtype) for name in (args.student, args.teacher))
    prompts = [prompt_ids(tokenizer, r["prompt"]) for r in chosen]
    completions = sample(
        student,
        prompts,
        max_new_tokens=args.max_new_tokens,
        eos=eos_ids(student, tokenizer),
        vocabulary=len(tokenizer),
        keys=[("look", args.seed, i) for i in range(args.n)],
    )
    found = []
    for row, prompt, c in zip(chosen, prompts, completions):
        tokens = scored(student, teacher, tokenizer, prompt, c.ids)
        found.append((row["problem"], tokens, *verdict(row, tokens, c.truncated)))
    if args.html:
        plumbing.write_text(args.html, as_page(found, args))
        print(f"wrote {args.html}")
    else:
        in_terminal(found)


if __name__ == "__main__":
    plumbing.run(main)
