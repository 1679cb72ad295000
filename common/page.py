"""A page that shows rollouts as several methods see them. No method is named here.

A page is one HTML file. It loads nothing from outside: look.css and look.js stand in it. Texts
from models and data are written by strangers. So every function here that takes such a text
removes control characters (`harmless`) and escapes it for HTML, and a browser runs no script in
the page but look.js.
"""

import base64
import hashlib
import html
import json
from pathlib import Path

from common.arguments import harmless, shorten
from common.seen import RED_FROM, share

HERE = Path(__file__).parent

# ======================================================================== the whole page

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hash}">
<link rel="icon" href="data:,"><title>{title}</title><style>{style}</style></head><body>
<header><h1>{title}</h1><p>{intro}</p>
<details {open}><summary>Contents: {count}</summary><ol>{contents}</ol></details></header>
<nav><fieldset><legend>Method</legend>{tabs}</fieldset>
<label><input type="checkbox" id="only-wrong" {disabled}> only wrong rollouts</label></nav>
<main>{main}</main><aside id="panel" aria-live="polite" hidden></aside>
<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>
"""
INTRO = (
    "Click or tap a token: for each model, or prompt, its five likeliest tokens and the one that "
    "was written. With the keyboard: Tab to a rollout, arrow keys from token to token, Enter "
    "opens, Escape closes."
)


def document(title, views, rollouts, first):
    """The whole file. views: {method: View}, one tab for each. first: the tab that is open."""
    style, script = ((HERE / f"look.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    wrong = sum(not r.right for r in rollouts)
    return PAGE.format(
        title=escaped(title),
        intro=INTRO,
        style=style,
        script=script,
        hash=f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'",
        open="open" if len(rollouts) <= 10 else "",
        count=f"{len(rollouts)} rollouts, {wrong} wrong",
        contents="".join(entry(r, n) for n, r in enumerate(rollouts, 1)),
        tabs="".join(tab(name, name == first) for name in views),
        disabled="" if wrong else "disabled",
        main="".join(about(name, view) for name, view in views.items())
        + "".join(article(r, n, views) for n, r in enumerate(rollouts, 1)),
        data=as_json([lists(r) for r in rollouts]),
    )


def tab(name, is_open):
    checked = " checked" if is_open else ""
    name = escaped(name)
    return f'<label><input type="radio" name="method" value="{name}"{checked}>{name}</label>'


def entry(rollout, n):
    """A line of the contents."""
    said = "right" if rollout.right else "wrong"
    problem = escaped(shorten(rollout.problem, 90))
    return f'<li class="{said}"><a href="#r{n}">{said}: {problem}</a></li>'


def about(name, view):
    """What a method shows, and its colours."""
    values = (-2, -1, -0.5, 0.5, 1, 2) if view.signed else (0.25, 0.5, 1, 1.5, RED_FROM)
    scale = "".join(
        f'<span {look_of(view, x)}>{x:{"+g" if view.signed else "g"}}</span>' for x in values
    )
    marks = f" Underlined: {view.marked}." if view.marked else ""
    return (
        f'<section class="pane about" data-method="{escaped(name)}"><p>{escaped(view.about)}</p>'
        f'<p class="scale">{escaped(view.value)}: {scale}{marks} Blue frame: {view.framed}.'
        "</p></section>"
    )


def as_json(value):
    """JSON inside of a script element. With a "<" it could end that element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def lists(rollout):
    """What the panel of a token shows: {method: {reader: [tokens of its list] per token}}."""
    return {
        name: {
            reader: [[[harmless(w), round(p, 4), int(y)] for w, p, y in words] for words in tokens]
            for reader, tokens in seen.readers.items()
        }
        for name, seen in rollout.seen.items()
        if not isinstance(seen, str)
    }


# ======================================================================== a rollout


def article(rollout, n, views):
    """A rollout below its problem, as each method sees it."""
    said = "right" if rollout.right else "wrong"
    parts = [f'<article class="{said}" id="r{n}"><h2>{n}. {said}</h2>']
    parts.append(paragraph("prompt", escaped(rollout.problem)))
    for name, view in views.items():
        inside = pane(rollout, rollout.seen[name], view)
        parts.append(f'<section class="pane" data-method="{escaped(name)}">{inside}</section>')
    return "".join([*parts, "</article>"])


def pane(rollout, seen, view):
    """One rollout as one method sees it. seen: a Seen, or a sentence."""
    if isinstance(seen, str):
        return paragraph("lacks", escaped(seen))
    parts = []
    for label, tokens, framed in seen.beside:
        texts = [
            f'<b class="framed">{escaped(t)}</b>' if i == framed else escaped(t)
            for i, t in enumerate(tokens)
        ]
        parts += [paragraph("said", escaped(label)), paragraph("beside", "".join(texts))]
    if parts:
        parts.append(paragraph("said", "right" if rollout.right else "failed"))
    spans = []
    for i, (text, value, note) in enumerate(zip(rollout.tokens, seen.values, seen.notes)):
        marks = "marked " * (i in seen.marked) + "framed" * (i == seen.framed)
        spans.append(
            f'<span {look_of(view, value, marks)} data-i="{i}" title="{escaped(note)}" '
            f'{reachable(i)}>{escaped(text)}</span>'
        )
        if i in seen.numbers:
            spans.append(f"<sup>{seen.numbers[i]}</sup>")
    parts.append(f'<p class="rollout" data-group>{"".join(spans)}</p>')
    parts += [paragraph("said", escaped(text)) for text in (rollout.verdict, *seen.said)]
    return "".join([*parts, *(picture for _, picture in seen.more)])


def look_of(view, value, marks=""):
    """Class and style of a token: look.css makes a colour of them."""
    strength = share(value) if view.signed else share(max(0.0, value))
    colour = "good" if strength > 0 and view.signed else "hot"
    return f'class="t {colour if strength else ""} {marks}" style="--v:{abs(strength):.2f}"'


def reachable(i):
    """A token is a button. Tab stops at the first one of a group, and arrow keys go on."""
    return f'role="button" tabindex="{-1 if i else 0}"'


def escaped(text):
    """A text from a model or from data, as HTML."""
    return html.escape(harmless(text), quote=True)


def paragraph(kind, content):
    """kind: a class of look.css. content: HTML."""
    return f'<p class="{kind}">{content}</p>'


# ======================================================================== two linked rows

LEFT = 80  # pixels for the names of the rows


def linked_rows(upper, lower, links, first):
    """An SVG picture: two rows of tokens and lines between them.

    upper, lower: (name, texts). links: (number in lower, number in upper, weight). A line
    is wider and darker for a higher weight. A token that the other row lacks is red.
    first: the number in the rollout of lower's first token. A click on a token shows its lines.
    """
    (upper_name, upper_texts), (lower_name, lower_texts) = upper, lower
    upper_texts, lower_texts = ([harmless(t) for t in x] for x in (upper_texts, lower_texts))
    upper_centres, upper_end = centres(upper_texts)
    lower_centres, lower_end = centres(lower_texts)
    ends = [(first + i, j, lower_centres[i], upper_centres[j], w) for i, j, w in links]
    drawn_here = ["" for _ in upper_texts]  # what the plan draws to each token of the upper row
    for i, j, weight in links:
        drawn_here[j] += f" {lower_texts[i].strip() or '_'} {weight:.2f}"
    above = [
        f'data-to="{j}" data-note="{escaped("drawn here:" + (here or " nothing strongly"))}"'
        for j, here in enumerate(drawn_here)
    ]
    below = [f'data-i="{first + i}"' for i in range(len(lower_texts))]
    width = max(upper_end, lower_end) + 10
    return "".join(
        [
            f'<svg width="{width:.0f}" height="118" role="group" '
            f'aria-label="{lower_name} to {upper_name}: strong links of the plan">',
            *(line(*end) for end in ends),
            row_of_texts(24, upper_name, upper_texts, upper_centres, lower_texts, above),
            row_of_texts(108, lower_name, lower_texts, lower_centres, upper_texts, below),
            "</svg>",
        ]
    )


def centres(texts):
    """Where the middle of each text stands, in pixels, and where the row ends."""
    middles, x = [], LEFT
    for text in texts:
        width = 8 * max(1, len(text)) + 12
        middles.append(x + width / 2)
        x += width
    return middles, x


def line(i, j, lower_x, upper_x, weight):
    """A link between token i of the rollout and token j of the upper row."""
    return (
        f'<line data-i="{i}" data-to="{j}" x1="{lower_x:.0f}" y1="92" x2="{upper_x:.0f}" y2="32" '
        f'stroke-width="{0.5 + 3 * weight:.1f}" stroke-opacity="{0.2 + 0.6 * weight:.2f}">'
        f"<title>{weight:.2f}</title></line>"
    )


def row_of_texts(y, name, texts, middles, other_row, data):
    """data: attributes of each token."""
    parts = [f'<g data-group><text x="0" y="{y}" class="name">{name}</text>']
    for i, (text, x, more) in enumerate(zip(texts, middles, data)):
        lacking = "" if text in other_row else " lacking"
        parts.append(
            f'<text x="{x:.0f}" y="{y}" class="t{lacking}" {more} {reachable(i)}>'
            f"{escaped(text.strip() or '_')}</text>"
        )
    return "".join([*parts, "</g>"])
