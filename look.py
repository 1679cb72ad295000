"""See what a method sees: rollouts of the student, token by token.

    python look.py opd                              # three rollouts of the toy, in the terminal
    python look.py opd --n 5 --html look.html       # the same as one self-contained page; hover a token for the details
    python look.py topd --html look.html            # with candidates, divergent points, and both futures of each
    python look.py ar_opd --html look.html          # the student's own views: what it would say, shown half of a solution, or all of it
    python look.py hindsight_sd --html look.html    # failed rollouts above a successful peer: where does the credit fall?
    python look.py opd --student runs/opd-0/final --teacher toy/teacher --data toy

Nothing is trained. Every token of a rollout is coloured by KL(student || teacher) at its position: pale is agreement, red
is where a gradient would be large. On the toy the checker adds what no real data set knows: where the rollout first goes
wrong, and how much of the disagreement lies on words and how much on substance.

`topd` adds what topd.py would do there: candidates (high loss) are underlined, those whose futures part are numbered, and for
each of these the teacher's and the student's window stand one above the other with the strongest links of the transport plan
and the distance D. A candidate without a number is a false alarm by TOPD's measure: high loss, near futures.

`ar_opd` has no second model. Every token is coloured by the residual of ar_opd.py, log q_full - log q_part: green where the whole
solution makes the student's token likelier than its first half does, red where it makes it less likely. Shortcuts (true
values that stand there before what they depend on) are marked.

`hindsight_sd` has no second model either. It draws groups of rollouts and shows failed ones beside the peer that hindsight_sd.py would give
them, every token coloured by its credit A = log p - log s: what the same model says after seeing the peer, against before. Where the two texts
part is marked, and both continuations are tried out by sampling: was that the token to blame?
"""

import html
from pathlib import Path

import torch

import ar_opd
import diagnostics
import hindsight_sd
import opd
import plumbing
import topd
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


def futures(student, teacher, tokenizer, prompts, completions, K, seed):
    """What topd.py sees in these rollouts: {rollout: its candidates}, those that are divergent points with their soft targets."""
    args = topd.Args(window_size=K, seed=seed)
    batch = prompts, [c.ids for c in completions], [c.truncated for c in completions]
    clock, ends = plumbing.Clock(student.device), set(eos_ids(teacher, tokenizer)) | set(eos_ids(student, tokenizer))
    points, _, _ = topd.look_ahead(student, teacher, batch, args, 1, clock, plumbing.no_autocast, len(tokenizer), ends)
    kept, _ = topd.divergent(points, args)
    topd.soft_targets(kept, args)
    return {i: [p for p in points if p.row == i] for i in range(len(prompts))}


def links(point, least=0.15):
    """(student position, teacher position, weight) of the plan, the strong ones only."""
    return [
        (i, j, w) for i, row in enumerate(point.weights.tolist()) for j, w in enumerate(row) if w >= max(least, 0.5 * max(row))
    ]


def numbered(points):
    """The divergent points of a rollout with their numbers, in the order of the text."""
    return {p.t: (n, p) for n, p in enumerate([p for p in points if p.weights is not None], 1)}


# ============================================================================================ in a terminal


def windows_in_terminal(number, point, tokenizer, width=110):
    """Both windows in columns: what the teacher would write, what the student wrote, and what each student token is drawn to."""
    best = {i: max((w, j) for k, j, w in links(point) if k == i) for i, _, _ in links(point)}
    their, own = ([plumbing.harmless(tokenizer.decode([t])).strip() or "_" for t in w] for w in (point.teacher, point.student))
    drawn = [f"{their[best[i][1]]} {best[i][0]:.2f}" if i in best else "spread" for i in range(len(own))]
    columns = [["teacher", "student", "drawn to"]]
    columns += [[x[i] if i < len(x) else "" for x in (their, own, drawn)] for i in range(max(len(their), len(own)))]
    lines, used = [f"  ({number}) D {point.distance:.2f}, loss {point.loss:.2f} nats"], None
    for column in columns:
        size = max(map(len, column)) + 2
        if used is None or used + size > width:
            used, rows = 6, ["      ", "      ", "      "]
            lines.append(rows)
        for r in range(3):
            rows[r] += column[r].ljust(size)
        used += size
    return "\n".join(x if isinstance(x, str) else "\n".join(r.rstrip() for r in x) for x in lines)


def in_terminal(found, tokenizer):
    colours = plumbing.colours_wanted()
    ahead = any(points is not None for *_, points in found)
    print(
        (
            f"tokens coloured by KL(student || teacher), red from {RED_FROM:g} nats"
            if colours
            else f"tokens above {RED_FROM / 2:g} nats in [ ]"
        )
        + (
            f"; candidates {'underlined' if colours else 'between _ _'}, divergent points numbered, drawn to = the plan's strongest link"
            if ahead
            else ""
        )
    )
    for prompt, tokens, said, wrong, points in found:
        marked, candidate = numbered(points or []), {p.t for p in points or []}
        print(f"\n{plumbing.harmless(prompt)}")
        line = ""
        for i, t in enumerate(tokens):
            piece = t["text"]
            if i == wrong:
                piece = f" >>>{piece.strip()}"
            if i in marked:
                piece = f"{piece}({marked[i][0]})"
            if not colours:
                piece = plumbing.harmless(f"[{piece}]" if t["kl"] > RED_FROM / 2 else piece)
                line += f"_{piece}_" if i in candidate else piece
            else:
                line += ("\x1b[4m" if i in candidate else "") + plumbing.paint([piece], [t["kl"]], RED_FROM) + "\x1b[0m"
        print(line)
        print(f"  {said}" + ("   (>>> marks it)" if wrong is not None else ""))
        for number, point in marked.values():
            print(windows_in_terminal(number, point, tokenizer))


# ============================================================================================ as a page


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>rollouts</title><style>
body{{font:16px/1.7 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}}
.prompt{{color:#666;white-space:pre-wrap}} .rollout{{white-space:pre-wrap;background:#fff;border:1px solid #ddd;border-radius:6px;padding:.7em}}
.rollout span{{border-radius:3px;cursor:help}} .wrong{{outline:2px solid #1f6fb4}} .said{{color:#444;font-size:.9em}}
.candidate{{border-bottom:3px solid #555}} sup{{color:#7a1fa2;font-weight:bold}} .windows{{overflow-x:auto;margin:.3em 0 1em}}
.scale span{{padding:0 .6em}} svg text{{font:13px ui-monospace,monospace}}</style>
<h1>Rollouts of {student}</h1><p>{intro}</p>
<p class="scale">{scale}</p>{body}</html>
"""

INTRO = """Coloured by KL(student || teacher), teacher {teacher}; hover a token for both probabilities and the teacher's favourites. A blue frame
marks where the text first goes wrong (toy only)."""
MORE = """ Candidates (the highest losses) are underlined. Where the futures part they are numbered: below, the teacher's window stands above the
student's, both from the numbered token on. A line is mass of the transport plan: the student's token is drawn to the teacher's. D is the cost of
the plan, 0 for the same tokens. An underlined token without a number is a false alarm by this measure."""


def shade(kl):
    share = max(0.0, min(1.0, kl / RED_FROM))
    return f"background:rgb(255,{255 - int(150 * share)},{255 - int(190 * share)})" if share > 0.02 else ""


def windows_as_svg(number, point, tokenizer):
    """Two rows of tokens and the plan's links between them; line width and darkness are the weight."""
    rows = [[plumbing.harmless(tokenizer.decode([t])) for t in w] for w in (point.teacher, point.student)]
    centres, width = [], 0
    for row in rows:
        x, middle = 80, []
        for text in row:
            wide = 8 * max(1, len(text)) + 12
            middle.append(x + wide / 2)
            x += wide
        centres.append(middle)
        width = max(width, x)
    drawn = "".join(
        f'<line x1="{centres[1][i]:.0f}" y1="92" x2="{centres[0][j]:.0f}" y2="32" stroke="#7a1fa2" stroke-width="{0.5 + 3 * w:.1f}" '
        f'stroke-opacity="{0.2 + 0.6 * w:.2f}"><title>{w:.2f}</title></line>'
        for i, j, w in links(point)
    )
    for y, name, row, middle, other in (
        (24, "teacher", rows[0], centres[0], rows[1]),
        (108, "student", rows[1], centres[1], rows[0]),
    ):
        drawn += f'<text x="0" y="{y}" fill="#666">{name}</text>'
        for text, x in zip(row, middle):
            colour = "#222" if text in other else "#b3261e"  # red: a token that the other window does not have
            drawn += f'<text x="{x:.0f}" y="{y}" text-anchor="middle" fill="{colour}">{html.escape(text.strip() or "_")}</text>'
    return (
        f'<div class="windows"><sup>{number}</sup> D {point.distance:.2f}, loss {point.loss:.2f} nats<br>'
        f'<svg width="{width + 10}" height="118" role="img">{drawn}</svg></div>'
    )


def as_page(found, args, tokenizer):
    """One file without scripts or anything from outside. All text of models and data is escaped: it comes from strangers."""
    body = []
    for prompt, tokens, said, wrong, points in found:
        marked, candidate = numbered(points or []), {p.t: p for p in points or []}
        spans = []
        for i, t in enumerate(tokens):
            tip = (
                f"KL {t['kl']:.2f}; student {t['student']:.2f}, teacher {t['teacher']:.2f}; teacher's favourites: "
                + ", ".join(f"{plumbing.harmless(w)!r} {p:.2f}" for w, p in t["favourites"])
            )
            if i in candidate:
                tip += f"; candidate, D {candidate[i].distance:.2f}"
            kinds = " ".join(k for k, yes in (("wrong", i == wrong), ("candidate", i in candidate)) if yes)
            spans.append(
                f'<span style="{shade(t["kl"])}" class="{kinds}" title="{html.escape(tip, quote=True)}">'
                f"{html.escape(plumbing.harmless(t['text']))}</span>" + (f"<sup>{marked[i][0]}</sup>" if i in marked else "")
            )
        body.append(
            f'<h2>&nbsp;</h2><p class="prompt">{html.escape(plumbing.harmless(prompt))}</p><p class="rollout">{"".join(spans)}</p>'
            f'<p class="said">{html.escape(said)}</p>' + "".join(windows_as_svg(n, p, tokenizer) for n, p in marked.values())
        )
    scale = "".join(f'<span style="{shade(x)}">{x:g}</span>' for x in (0, 0.25, 0.5, 1, 1.5, RED_FROM)) + " nats and more"
    return PAGE.format(
        student=html.escape(args.student),
        intro=INTRO.format(teacher=html.escape(args.teacher)) + (MORE if args.method == "topd" else ""),
        scale=scale,
        body="".join(body),
    )


# ============================================================================================ the views of ar_opd


def residuals(student, tokenizer, rows, completions, args):
    """For every rollout: (tokens with their probability under the plain prompt and both views, what the checker says, shortcuts)."""
    for r in rows:
        r.update({name: prompt_ids(tokenizer, user) for name, user in ar_opd.views(r, args).items()})
    scored = diagnostics.score_views(student, student, rows, [c.ids for c in completions], len(tokenizer))
    found = []
    for row, c, s in zip(rows, completions, scored):
        tokens = [
            {
                "text": tokenizer.decode([y]),
                "kl": s["gaps"]["full"][i, diagnostics.GAPS.index("kl")].item(),
                "residual": (s["own"]["full"][i] - s["own"]["partial"][i]).item(),
                **{name: s["own"][name][i].exp().item() for name in ("student", "partial", "full")},
            }
            for i, y in enumerate(c.ids)
        ]
        said, _ = verdict(row, tokens, c.truncated)
        said = said.split("; of ")[0]
        marked = set()
        try:
            for step in world.check(row["problem"], "".join(t["text"] for t in tokens)).shortcuts:
                marked |= {i for i, (b, e) in enumerate(offsets(tokens)) if b < step.end and step.start < e}
        except ValueError:
            said += (
                "; appeals to an unseen solution" if ar_opd.shortcut(row["problem"], "".join(t["text"] for t in tokens)) else ""
            )
        found.append((row, tokens, said + ("; a shortcut" if marked else ""), marked))
    return found


def signed(residual):
    """Background of a token: green for a positive residual, red for a negative one, as (red, green, blue); None near zero."""
    share = max(-1.0, min(1.0, residual / RED_FROM))
    if abs(share) < 0.05:
        return None
    return (
        (255, 255 - int(150 * -share), 255 - int(190 * -share))
        if share < 0
        else (255 - int(150 * share), 255 - int(20 * share), 255 - int(150 * share))
    )


def views_in_terminal(found):
    colours = plumbing.colours_wanted()
    print(
        "tokens coloured by the residual log q_full - log q_part: green likelier with the whole solution, red less likely; shortcuts underlined"
        if colours
        else f"[-token-] where the whole solution makes it less likely by {RED_FROM / 2:g} nats and more, [+token+] likelier; shortcuts between _ _"
    )
    for row, tokens, said, marked in found:
        print(f"\n{plumbing.harmless(row['problem'])}")
        line = ""
        for i, t in enumerate(tokens):
            piece, colour = plumbing.harmless(t["text"]), signed(t["residual"])
            if colours:
                paint = "\x1b[38;5;16m\x1b[48;2;{};{};{}m".format(*colour) if colour else ""
                line += ("\x1b[4m" if i in marked else "") + paint + piece + "\x1b[0m"
            else:
                sign = "-" if t["residual"] < -RED_FROM / 2 else "+" if t["residual"] > RED_FROM / 2 else ""
                piece = f"[{sign}{piece}{sign}]" if sign else piece
                line += f"_{piece}_" if i in marked else piece
        print(f"{line}\n  {said}")
        strong = sorted(sorted(range(len(tokens)), key=lambda i: -abs(tokens[i]["residual"]))[:5])
        for i in strong:  # the strongest residuals, as numbers
            t = tokens[i]
            print(
                f"    {plumbing.harmless(t['text']).strip() or '_':<12} student {t['student']:.3f}   partial {t['partial']:.3f}   "
                f"full {t['full']:.3f}   residual {t['residual']:+.2f}"
            )


VIEWS_INTRO = """Every token of the student's rollouts, scored by the student itself under three prompts: the plain one, with the first part of the
solution (partial), with all of it (full). Coloured by the residual log q_full - log q_part: green where the whole solution makes the
token likelier, red where it makes it less likely. Hover a token for its three probabilities. A blue frame marks a shortcut: a true value that
stands there before the values it is computed from (toy only)."""


def views_page(found, args):
    body = []
    for row, tokens, said, marked in found:
        spans = []
        for i, t in enumerate(tokens):
            tip = f"student {t['student']:.3f}, partial {t['partial']:.3f}, full {t['full']:.3f}; residual {t['residual']:+.2f} nats"
            colour = signed(t["residual"])
            style = "background:rgb({},{},{})".format(*colour) if colour else ""
            kind = " class=wrong" if i in marked else ""
            spans.append(f'<span style="{style}"{kind} title="{tip}">{html.escape(plumbing.harmless(t["text"]))}</span>')
        body.append(
            f'<h2>&nbsp;</h2><p class="prompt">{html.escape(plumbing.harmless(row["problem"]))}</p>'
            f'<p class="prompt">solution: {html.escape(plumbing.harmless(row["solution"]))}</p>'
            f'<p class="rollout">{"".join(spans)}</p><p class="said">{html.escape(said)}</p>'
        )
    scale = "".join(
        f'<span style="background:rgb({c[0]},{c[1]},{c[2]})">{x:+g}</span>'
        for x in (-2, -1, -0.5, 0.5, 1, 2)
        if (c := signed(x))
    )
    return PAGE.format(student=html.escape(args.student), intro=VIEWS_INTRO, scale=scale + " nats", body="".join(body))


# ============================================================================================ the credit of hindsight_sd


def credited(student, tokenizer, rows, count, args):
    """Failed rollouts with a peer, one a question, until there are `count`: (row, rollout's tokens, peer's text, tau, what was measured)."""
    chosen, found, ends = [], [], set(eos_ids(student, tokenizer))
    for step in range(1, 9):  # eight rounds are enough, or the model hardly ever fails, or hardly ever succeeds
        asked = [rows[i] for i in plumbing.prompts_of_step(step, max(4, count), len(rows), args.seed)]
        for r in asked:
            r["ids"] = prompt_ids(tokenizer, r["prompt"])
        drawn = hindsight_sd.rollouts(student, tokenizer, asked, args, step)
        right, peers, _ = hindsight_sd.build_contexts(asked, drawn, tokenizer, args, step)
        seen = set()
        for q, *rest in diagnostics.failures(drawn, right, peers, args.samples):
            if q not in seen and len(chosen) < count:
                seen.add(q)
                chosen.append((asked[q], *rest))
        if len(chosen) == count:
            break
    failed = [(i, *rest) for i, (_, *rest) in enumerate(chosen)]
    own_rows = [row for row, *_ in chosen]
    if not failed:
        return []
    scored = diagnostics.credits(student, student, tokenizer, own_rows, failed)
    rates = diagnostics.continuations(
        student, tokenizer, own_rows, failed, n=16, max_new_tokens=args.max_new_tokens, seed=args.seed
    )
    for (i, ids, peer, tau), s, own, theirs in zip(failed, scored, *rates):
        tokens = [
            {"text": tokenizer.decode([y]), "kl": 0.0, "credit": a, "answer": b}
            for y, a, b in zip(ids, s["credit"]["peer"].tolist(), s["credit"]["answer"].tolist())
        ]
        said = verdict(own_rows[i], tokens, ids[-1] not in ends)[0].split("; of ")[0]
        there = s["there"]
        note = (
            f"the peer wrote {plumbing.harmless(tokenizer.decode([peer[tau]])).strip()!r} there: probability {there['student']:.2f} before, "
            f"{there['answer']:.2f} shown the answer, {there['peer']:.2f} shown the peer; going on from there is right {100 * own:.0f} % "
            f"with its own token, {100 * theirs:.0f} % with the peer's (16 samples each)"
        )
        found.append((own_rows[i], tokens, [tokenizer.decode([y]) for y in peer], tau, said, note))
    return found


def credit_in_terminal(found):
    colours = plumbing.colours_wanted()
    print(
        "the failed rollout coloured by its credit log p - log s: green likelier once the peer was seen, red less likely; >>> where they part"
        if colours
        else f"[-token-] less likely by {RED_FROM / 2:g} nats and more once the peer was seen, [+token+] likelier; >>> where they part"
    )
    for row, tokens, peer, tau, said, note in found:
        print(f"\n{plumbing.harmless(row['problem'])}")
        print("peer:   " + plumbing.harmless("".join(peer[:tau])) + " >>>" + plumbing.harmless("".join(peer[tau:])).strip())
        line = ""
        for i, t in enumerate(tokens):
            piece, colour = plumbing.harmless(t["text"]), signed(t["credit"])
            line += " >>>" if i == tau else ""
            if colours:
                line += ("\x1b[38;5;16m\x1b[48;2;{};{};{}m".format(*colour) if colour else "") + piece + "\x1b[0m"
            else:
                sign = "-" if t["credit"] < -RED_FROM / 2 else "+" if t["credit"] > RED_FROM / 2 else ""
                line += f"[{sign}{piece}{sign}]" if sign else piece
        print(f"failed: {line}\n  {said}\n  {note}")


CREDIT_INTRO = """Failed rollouts of the student below a successful rollout of the same group (the peer). Every token of the failed one is coloured by its
credit A = log p - log s: how much likelier (green) or less likely (red) the same model finds it once it has seen answer and peer. A blue frame
marks where the two texts part. Hover a token for its credit under the peer and under the answer alone."""


def credit_page(found, args):
    body = []
    for row, tokens, peer, tau, said, note in found:
        spans = []
        for i, t in enumerate(tokens):
            colour = signed(t["credit"])
            style = "background:rgb({},{},{})".format(*colour) if colour else ""
            tip = f"credit {t['credit']:+.2f} nats with the peer, {t['answer']:+.2f} with the answer alone"
            kind = " class=wrong" if i == tau else ""
            spans.append(f'<span style="{style}"{kind} title="{tip}">{html.escape(plumbing.harmless(t["text"]))}</span>')
        theirs = [html.escape(plumbing.harmless(x)) for x in peer]
        theirs[tau] = f"<span class=wrong>{theirs[tau]}</span>"
        body.append(
            f'<h2>&nbsp;</h2><p class="prompt">{html.escape(plumbing.harmless(row["problem"]))}</p>'
            f'<p class="said">peer (right)</p><p class="rollout">{"".join(theirs)}</p>'
            f'<p class="said">failed</p><p class="rollout">{"".join(spans)}</p>'
            f'<p class="said">{html.escape(said)}; {html.escape(note)}</p>'
        )
    scale = "".join(
        f'<span style="background:rgb({c[0]},{c[1]},{c[2]})">{x:+g}</span>'
        for x in (-2, -1, -0.5, 0.5, 1, 2)
        if (c := signed(x))
    )
    return PAGE.format(student=html.escape(args.student), intro=CREDIT_INTRO, scale=scale + " nats", body="".join(body))


# ============================================================================================ main


def finish(page, args):
    if args.html:
        plumbing.write_text(args.html, page)
        print(f"wrote {args.html}")


def main(argv=None):
    p = plumbing.Parser(__doc__)
    p.add_argument("method", choices=["opd", "topd", "ar_opd", "hindsight_sd"], help="whose view")
    p.add_argument("--n", type=int, default=3, help="rollouts to show (default 3)")
    p.add_argument("--html", metavar="FILE", help="write a page instead of printing")
    p.add_argument("--student", help="model that writes (default toy/student; with ar_opd and hindsight_sd toy/reader)")
    p.add_argument("--teacher", default="toy/teacher", help="model that scores (default toy/teacher)")
    p.add_argument("--data", default="toy", help="problems: toy, gsm8k or a JSONL file (default toy; their test split)")
    p.add_argument("--seed", type=int, default=0, help="another seed shows other problems and rollouts")
    p.add_argument("--max_new_tokens", type=int, default=256, help="longest rollout (default 256)")
    p.add_argument("--window_size", type=int, help="of topd: tokens of a window (default 12 on the toy, else 50)")
    p.add_argument(
        "--rho", type=float, default=0.5, help="of ar_opd: share of the solution that the partial view shows (default 0.5)"
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    args = p.parse_args(argv)
    require(args.n >= 1, f"--n is {args.n}; it must be at least 1.")
    require(args.max_new_tokens >= 1, f"--max_new_tokens is {args.max_new_tokens}; it must be at least 1.")
    alone = args.method in ("ar_opd", "hindsight_sd")
    args.student = args.student or ("toy/reader" if alone else "toy/student")
    args.window_size = args.window_size or (12 if args.data.startswith("toy") else 50)
    require(0 < args.rho < 1, f"--rho is {args.rho}; it is a share and must lie in (0, 1).")
    require(args.window_size >= 2, f"--window_size is {args.window_size}; a window needs at least 2 tokens.")
    require(
        not args.html or Path(args.html).absolute().parent.is_dir(),
        f"There is no folder '{Path(args.html or '').absolute().parent}' to write the page into.",
    )
    device = plumbing.pick_device(args.device)
    rows, tokenizer = load_benchmark(args.data, "test"), plumbing.load_tokenizer(args.student)
    require(
        args.method != "ar_opd" or all(r.get("solution") for r in rows),
        f"'{args.data}' has rows without a solution for the views to show; use toy, gsm8k, or a JSONL file with problem, answer and solution.",
    )
    if not alone:
        plumbing.same_tokenizer(tokenizer, plumbing.load_tokenizer(args.teacher))
    chosen = [rows[i] for i in plumbing.prompts_of_step(1, args.n, len(rows), args.seed)]
    plumbing.check_prompts(tokenizer, [r["prompt"] for r in chosen], args.data)
    dtype = plumbing.compute_dtype("auto", device)
    student = plumbing.load_model(args.student, device, dtype)
    if args.method == "hindsight_sd":
        own = hindsight_sd.Args(max_new_tokens=args.max_new_tokens, seed=args.seed)
        found = credited(student, tokenizer, rows, args.n, own)
        require(
            found,
            "No failed rollout with a successful one beside it was found: the model nearly always fails, or never, on these problems.",
        )
        finish(credit_page(found, args) if args.html else credit_in_terminal(found), args)
        return
    prompts = [prompt_ids(tokenizer, r["prompt"]) for r in chosen]
    completions = sample(
        student,
        prompts,
        max_new_tokens=args.max_new_tokens,
        eos=eos_ids(student, tokenizer),
        vocabulary=len(tokenizer),
        keys=[("look", args.seed, i) for i in range(args.n)],
    )
    if alone:
        views = residuals(student, tokenizer, chosen, completions, ar_opd.Args(rho=args.rho))
        page = views_page(views, args) if args.html else views_in_terminal(views)
    else:
        teacher, ahead = plumbing.load_model(args.teacher, device, dtype), {}
        if args.method == "topd":
            ahead = futures(student, teacher, tokenizer, prompts, completions, args.window_size, args.seed)
        found = []
        for i, (row, prompt, c) in enumerate(zip(chosen, prompts, completions)):
            tokens = scored(student, teacher, tokenizer, prompt, c.ids)
            found.append((row["problem"], tokens, *verdict(row, tokens, c.truncated), ahead.get(i)))
        page = as_page(found, args, tokenizer) if args.html else in_terminal(found, tokenizer)
    finish(page, args)


if __name__ == "__main__":
    plumbing.run(main)
