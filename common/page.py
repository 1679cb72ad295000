"""Tokens as colours, in a terminal and on a page. No method is named here.

A page is one HTML file. It has no script and loads nothing from outside. Texts from models
and data are written by strangers. So every function here that takes such a text removes
control characters (`harmless`), and the functions for the page also escape it for HTML.
"""

import html

from common.arguments import harmless
from common.show import paint

RED_FROM = 2.0  # nats at which a token is fully red, or fully green

# ======================================================================== colours


def shade(kl):
    """The style of a token with this KL on a page: from white at 0 to red at RED_FROM."""
    share = max(0.0, min(1.0, kl / RED_FROM))
    if share <= 0.02:
        return ""
    return background((255, 255 - int(150 * share), 255 - int(190 * share)))


def signed(nats):
    """The colour of a number that can be negative, as (red, green, blue): green above 0,
    red below 0, None near 0."""
    share = max(-1.0, min(1.0, nats / RED_FROM))
    if abs(share) < 0.05:
        return None
    if share < 0:
        return 255, 255 - int(150 * -share), 255 - int(190 * -share)
    return 255 - int(150 * share), 255 - int(20 * share), 255 - int(150 * share)


def background(colour):
    """The style of a token on a page. colour: (red, green, blue), or None."""
    return "background:rgb({},{},{})".format(*colour) if colour else ""


# ======================================================================== in a terminal


def kl_as_text(text, kl, colours, marked):
    """A token on a background from yellow to red. Without colours it stands in brackets if
    its KL is above half of RED_FROM. A marked token is underlined, or stands in _ _."""
    if colours:
        return ("\x1b[4m" if marked else "") + paint([text], [kl], RED_FROM) + "\x1b[0m"
    text = harmless(f"[{text}]" if kl > RED_FROM / 2 else text)
    return f"_{text}_" if marked else text


def signed_as_text(text, nats, colours, marked=False):
    """A token on a green or a red background. Without colours, and if it is beyond half of
    RED_FROM, it is written as [+token+] or [-token-]. A marked token: see `kl_as_text`."""
    text, colour = harmless(text), signed(nats)
    if colours:
        # Black letters (16): a terminal's own could be too pale for these backgrounds.
        start = "\x1b[38;5;16m\x1b[48;2;{};{};{}m".format(*colour) if colour else ""
        return ("\x1b[4m" if marked else "") + start + text + "\x1b[0m"
    sign = "-" if nats < -RED_FROM / 2 else "+" if nats > RED_FROM / 2 else ""
    text = f"[{sign}{text}{sign}]" if sign else text
    return f"_{text}_" if marked else text


def columns_as_text(columns, width=110, indent=6):
    """Columns of words side by side. If the line is full, the next columns stand below it.
    columns: lists of equally many words."""
    blocks, used = [], width
    for column in columns:
        size = max(map(len, column)) + 2
        if used + size > width:
            blocks.append([" " * indent] * len(column))
            used = indent
        blocks[-1] = [line + word.ljust(size) for line, word in zip(blocks[-1], column)]
        used += size
    return "\n".join(line.rstrip() for block in blocks for line in block)


# ======================================================================== on a page

STYLE = """\
body{font:16px/1.7 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
.prompt{color:#666;white-space:pre-wrap}
.rollout{white-space:pre-wrap;background:#fff;border:1px solid #ddd;border-radius:6px;padding:.7em}
.rollout span{border-radius:3px;cursor:help} .wrong{outline:2px solid #1f6fb4}
.said{color:#444;font-size:.9em} .candidate{border-bottom:3px solid #555}
sup{color:#7a1fa2;font-weight:bold} .windows{overflow-x:auto;margin:.3em 0 1em}
.scale span{padding:0 .6em} svg text{font:13px ui-monospace,monospace}"""

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>rollouts</title><style>
{style}</style>
<h1>Rollouts of {student}</h1><p>{intro}</p>
<p class="scale">{scale}</p>{body}</html>
"""


def document(student, intro, scale, body):
    """The whole file. student: a name. The other three are HTML already."""
    return PAGE.format(
        style=STYLE, student=escaped(student), intro=intro, scale=scale, body="".join(body)
    )


def escaped(text):
    """A text from a model or from data, as HTML."""
    return html.escape(harmless(text), quote=True)


def problem(text):
    """The beginning of a rollout's part of the page."""
    return f"<h2>&nbsp;</h2>{paragraph('prompt', escaped(text))}"


def paragraph(kind, content):
    """kind: prompt, rollout or said, see STYLE. content: HTML."""
    return f'<p class="{kind}">{content}</p>'


def span(text, style, mark, tip):
    """A token. mark: one more attribute, or "". tip: what the mouse shows over it."""
    return f'<span style="{style}"{mark} title="{escaped(tip)}">{escaped(text)}</span>'


def signed_span(text, nats, framed, tip):
    """A token on a green or a red background, with or without a blue frame."""
    return span(text, background(signed(nats)), " class=wrong" if framed else "", tip)


def kl_scale():
    """The colours of `shade`, as HTML."""
    values = (0, 0.25, 0.5, 1, 1.5, RED_FROM)
    return "".join(f'<span style="{shade(x)}">{x:g}</span>' for x in values) + " nats and more"


def signed_scale():
    """The colours of `signed`, as HTML."""
    values = (-2, -1, -0.5, 0.5, 1, 2)
    spans = [f'<span style="{background(signed(x))}">{x:+g}</span>' for x in values]
    return "".join(spans) + " nats"


# ======================================================================== two linked rows

TEXT, PURPLE, RED, GREY = "#222", "#7a1fa2", "#b3261e", "#666"
LEFT = 80  # pixels for the names of the rows


def linked_rows(upper, lower, links):
    """An SVG picture: two rows of tokens and lines between them.

    upper, lower: (name, texts). links: (number in lower, number in upper, weight). A line
    is wider and darker for a higher weight. A token that the other row lacks is red.
    """
    (upper_name, upper_texts), (lower_name, lower_texts) = upper, lower
    upper_texts, lower_texts = ([harmless(t) for t in x] for x in (upper_texts, lower_texts))
    upper_centres, upper_end = centres(upper_texts)
    lower_centres, lower_end = centres(lower_texts)
    lines = [line(lower_centres[i], upper_centres[j], w) for i, j, w in links]
    picture = "".join(
        [
            *lines,
            row_of_texts(24, upper_name, upper_texts, upper_centres, lower_texts),
            row_of_texts(108, lower_name, lower_texts, lower_centres, upper_texts),
        ]
    )
    width = max(upper_end, lower_end) + 10
    return f'<svg width="{width}" height="118" role="img">{picture}</svg>'


def centres(texts):
    """Where the middle of each text stands, in pixels, and where the row ends."""
    middles, x = [], LEFT
    for text in texts:
        width = 8 * max(1, len(text)) + 12
        middles.append(x + width / 2)
        x += width
    return middles, x


def line(lower_x, upper_x, weight):
    return (
        f'<line x1="{lower_x:.0f}" y1="92" x2="{upper_x:.0f}" y2="32" stroke="{PURPLE}" '
        f'stroke-width="{0.5 + 3 * weight:.1f}" stroke-opacity="{0.2 + 0.6 * weight:.2f}">'
        f"<title>{weight:.2f}</title></line>"
    )


def row_of_texts(y, name, texts, middles, other_row):
    parts = [f'<text x="0" y="{y}" fill="{GREY}">{name}</text>']
    for text, x in zip(texts, middles):
        colour = TEXT if text in other_row else RED
        parts.append(
            f'<text x="{x:.0f}" y="{y}" text-anchor="middle" fill="{colour}">'
            f"{escaped(text.strip() or '_')}</text>"
        )
    return "".join(parts)
