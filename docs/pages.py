"""Writes docs/NAME.html for every method, docs/index.html and docs/equations.md.

Nothing is written twice. Prose, equations, notes, code and tests come from the files as
annotate.py reads them; only claims.txt adds a few facts that stand nowhere else.
"""

import functools
import html
import keyword
import re
import textwrap
from pathlib import Path

from docs.annotate import TAGS, Source, cited, cited_notes, equations, notes

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
METHODS = ["opd", "topd", "ar_opd", "hindsight_sd", "grpo"]
COLUMNS = {"paper says": ["paper"], "released code does": ["code"], "we do": ["inferred", "ours"]}
# What has a colour: a string (s), a comment (c), a keyword (k), a number (n), and the name of a
# function or class where it is defined (f).
TOKEN = re.compile(
    r"""(?P<s>(\b[bfru]{1,2})?(?P<quote>"{3}|'{3}|["'])(\\[\s\S]|[^\\])*?(?P=quote))"""
    r"|(?P<c>#.*)|(?P<f>(?<=\bdef )\w+|(?<=\bclass )\w+)"
    rf"|(?P<k>\b({'|'.join(keyword.kwlist)})\b)|(?P<n>\.?\b\d[\w.]*((?<=e)-\d+)?)"
)
# Indented lines (pictures, commands) or an example; or a paragraph.
BLOCK = re.compile(r"^(>>>(?:.+\n?)+|(?: {4}.+\n?)+)|^((?:(?! {4}).+\n?)+)", re.M)
escape = functools.partial(html.escape, quote=False)


def link(to, text, more=""):
    return f'<a href="{to}"{more}>{text}</a>'


def mark(tag):
    return f'<b class="mark {tag}" title="{TAGS[tag]}">{tag}</b>'


def citations(text):
    """Links from "(7)" to the equation, and from "note 17" to the note. `text` is HTML."""
    text = re.sub(r"\((\d{1,2})\)", link(r"#eq\1", r"(\1)", ' class="cite"'), text)
    note = link(r"#note\1", r"\1", ' class="cite"')
    return re.sub(r"\bnotes? \d+( and \d+)?", lambda m: re.sub(r"(\d+)", note, m[0]), text)


def inline(text):
    """Prose in one line as HTML, with links to equations, notes, papers and files."""

    def file(m):
        name = m[0].removesuffix(".py")
        to = f"{name}.html" if name in METHODS else f"../{m[0]}"
        return link(to, m[0]) if (ROOT / m[0]).exists() else m[0]

    text = citations(escape(text))
    text = re.sub(r"\b(\d{4}\.\d{5})\b", link(r"https://arxiv.org/abs/\1", r"\1"), text)
    text = re.sub(r"\b[\w/]+\.(?:py|md)\b", file, text)
    text = re.sub(r"`([^`]+)`|(?<![\w-])(--\w+)", r"<code>\1\2</code>", text)
    return re.sub(rf"\[({'|'.join(TAGS)})\]", lambda m: mark(m[1]), text)


def prose(text):
    """A list of paragraphs, and of pictures, commands and examples, which stay as they are."""
    out = []
    for raw, paragraph in BLOCK.findall(text):
        if raw:
            out.append(f'<pre class="raw">{citations(escape(textwrap.dedent(raw).rstrip()))}</pre>')
        else:
            out.append(f"<p>{inline(' '.join(paragraph.split()))}</p>")
    return out


def equation_box(n, method, tests, about=""):
    """An equation, and links to the lines that compute it, to its tests, and to notes about it."""
    equation, lines = method.equations[n], [link(f"#L{i}", i) for i in method.computed[n]]
    formula = "".join(f"<span>{escape(x)}\n</span>" for x in equation.formula)
    gloss = f'<p class="gloss">{escape(equation.gloss)}</p>' if equation.gloss else ""
    number = link(f"#eq{n}", f"({n})", ' class="number"')
    where = f"line{'s' * (len(lines) > 1)} {', '.join(lines)}"
    name, to = "", f'<p class="to">{where}; {tests}</p>'
    if about:  # only at the head of the page
        name = f' id="eq{n}"'
        to = f'<ul class="to"><li>{where}</li><li>{tests}</li><li>{about}</li></ul>'
    return f'<div class="eq"{name}>{number}<pre class="formula">{formula}</pre>{gloss}{to}</div>'


@functools.cache
def coloured(text):
    """The lines of a file as HTML. The class of an <i> is a name of TOKEN."""

    def colour(m):
        pieces = (citations(m[0]) if m["c"] else m[0]).split("\n")
        return "\n".join(f'<i class="{m.lastgroup}">{piece}</i>' for piece in pieces)

    return TOKEN.sub(colour, escape(text)).split("\n")


def row(chunk, source, method, checks):
    """Left: the equations and notes that are cited here, and the prose. Right: the code."""
    text, left = "\n".join(chunk.prose + chunk.comments), []
    unknown = {*cited(text)} - {*method.equations} | {*cited_notes(text)} - {*method.notes}
    if unknown:
        raise SystemExit(
            f"{source.path.name} cites the equations or notes {sorted(unknown)}, which "
            f"{method.path.name} does not have. Correct the numbers, or write them differently."
        )
    for n in cited(text):
        tests = [link(f"#{t.name}", k, f' title="{t.name}"') for k, t in enumerate(checks[n], 1)]
        left.append(equation_box(n, method, f"tests {', '.join(tests)}"))
    left += prose("\n".join(chunk.prose))
    for n in cited_notes(text):
        said = f"note {link(f'#note{n}', n)}: {inline(method.notes[n].text)}"
        left.append(f'<p class="aside">{mark(method.notes[n].tag)} {said}</p>')
    left = "\n".join(["<div>", *left, "</div>"]) if left else ""
    code, prefix = '<pre class="code">', "L" if source is method else "T"
    for i in chunk.code:
        indent = len(source.lines[i]) - len(source.lines[i].lstrip())
        line = link(f"#{prefix}{i}", i, ' tabindex="-1"') + coloured(source.text)[i - 1]
        code += f'<span class="l" id="{prefix}{i}" style="--i:{indent}">{line}\n</span>'
    return f'<section class="row">\n<div class="prose">{left}</div>\n{code}</pre>\n</section>'


def framed(title, body, contents=""):
    """The whole page. Above its body stand links to all pages, and its table of contents."""
    here = ' aria-current="page"'
    links = [link(f"{m}.html", f"{m}.py", here * (title == f"{m}.py")) for m in METHODS]
    tab = f"#tab={title.removesuffix('.py')}" if title.endswith(".py") else ""
    links.append(link(f"playground.html{tab}", "playground"))
    nav = f"<p>{link('index.html', 'all methods')} {' '.join(links)}</p>{contents}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{(DOCS / "style.css").read_text("utf-8")}</style>
</head>
<body>
<nav>
{nav}
</nav>
<main>
{body}
</main>
</body>
</html>
"""


def head(method, checks, claims):
    """The docstring: its equations with all their links, and beside them its notes."""
    out = ['<div class="idea">']
    for block in method.head.split("\n\n")[1:]:
        if found := equations(block):
            out.append('</div>\n<div class="beside">\n<div>')
            for n in found:
                # A narrow screen breaks the name of a test behind an underscore.
                tests = [link(f"#{t.name}", t.name.replace("_", "_<wbr>")) for t in checks[n]]
                tests = f"tests: {', '.join(tests)}"
                about = about_equation(method, n, claims).items()
                about = [f"{mark(x.tag)}&nbsp;{link(f'#note{k}', k)}" for k, x in about]
                out.append(equation_box(n, method, tests, f"notes: {', '.join(about) or '-'}"))
            out.append("</div>\n<div>")
        elif found := notes(block):
            out += [*prose(block.split("\n  [")[0]), '<ol class="notes">']
            for n, (tag, said) in found.items():
                out.append(f'<li id="note{n}">{mark(tag)} {inline(said)}</li>')
            out.append("</ol>")
        else:
            out += prose(block)
    return "\n".join([*out, "</div>\n</div>"])


def page(method, tests, claims):
    name, checks, contents = method.path.name, tests.tests, []
    body = [f'<header>\n<h1>{name}</h1>\n<p class="lead">{inline(method.title)}</p>']
    body += [head(method, checks, claims), "</header>"]
    for chunk in method.chunks():
        if chunk.title:
            to = f"s{len(contents) + 1}"
            contents.append(link(f"#{to}", escape(chunk.title)))
            body.append(f'<h2 id="{to}">{escape(chunk.title)}</h2>')
        else:
            body.append(row(chunk, method, method, checks))
    body.append(f'<h2 id="tests">tests of the equations ({tests.path.name})</h2>')
    for node in sorted({t for found in checks.values() for t in found}, key=lambda t: t.lineno):
        body.append(f'<h3 id="{node.name}">{node.name.replace("_", "_<wbr>")}</h3>')
        body += [row(c, tests, method, checks) for c in tests.chunks(node)]
    contents = " ".join([*contents, link("#tests", "tests")])
    return framed(name, "\n".join(body), f'\n<p class="contents">{contents}</p>')


def index(methods):
    items = ""
    for method in methods:
        name = link(f"{method.path.stem}.html", method.path.name)
        count = f"{len(method.equations)} equations, {len(method.lines) - 1} lines"
        items += f"<dt>{name}</dt>\n<dd>{inline(method.title)} <small>{count}</small></dd>\n"
    marks = "".join(f"<li>{mark(tag)} {said}</li>\n" for tag, said in TAGS.items())
    body = f"""<header>
<h1>Beside the paper</h1>
<p class="lead">Each method is one file. Its page shows what the file says on the left, and what it
does on the right.</p>
<p>Wherever the text or the code cites an equation, as in "(7)", the equation stands beside it. Each
equation has links to the lines that compute it and to the tests that check it. The line numbers
are those of the file.</p>
<dl>
{items}</dl>
<p><a href="equations.md">All equations</a> on one page: lines, tests, what the paper says, what
the released code does, what we do.</p>
<p><a href="playground.html">The playground</a>: the toy's models run in the page. Touch a token, \
move lambda.</p>
<p>The notes say where a statement comes from:</p>
<ul class="marks">
{marks}</ul>
</header>"""
    return framed("On-policy distillation, beside the papers", body)


def read_claims():
    """claims.txt: {(method, equation): notes, (method, equation or "all", column): text}"""
    pairs = re.findall(r"^([^#:\n]+): (.+)$", (DOCS / "claims.txt").read_text("utf-8"), re.M)
    return {tuple(key.split()): said for key, said in pairs}


def about_equation(method, n, claims):
    """{number: note} of the notes that are about equation n."""
    more = re.findall(r"\d+", claims.get((method.path.stem, str(n)), ""))
    return {k: x for k, x in method.notes.items() if n in cited(x.text) or str(k) in more}


def table(pairs, claims):
    """equations.md"""
    out = [
        "<!-- made by `python docs/build.py` from the method files; do not edit -->",
        "# From the equation to the line, and to the test",
        "Numbers in brackets are the notes of the file's docstring. `-`: nothing is said there.",
    ]
    for name, (method, tests) in zip(METHODS, pairs):
        out.append(f"## [{name}.py](../{name}.py)")
        for n, equation in method.equations.items():
            out.append("\n".join([f"### {name} ({n})\n\n```", *equation.lines, "```"]))
            code = [(i, method.lines[i].strip()) for i in method.computed[n]]
            code = [f"[{i}](../{name}.py#L{i}) `{text.split('  # ')[0]}`" for i, text in code]
            to, checks = f"../tests/{tests.path.name}", tests.tests[n]
            rows = [("line", code), ("test", [f"[{t.name}]({to}#L{t.lineno})" for t in checks])]
            about = about_equation(method, n, claims).items()
            for column, tags in COLUMNS.items():
                said = [claims.get((name, of, tags[0])) for of in (str(n), "all")]
                said += [f"{x.text} ({x.tag}, {k})" for k, x in about if x.tag in tags]
                rows.append((column, [x for x in said if x] or ["-"]))
            rows = [f"| {x} | " + "<br>".join(said).replace("|", r"\|") + " |" for x, said in rows]
            out.append("\n".join(["| | |", "|---|---|", *rows]))
    return "\n\n".join(out) + "\n"


def files():
    """{path: text} of everything that is made."""
    pairs = [(Source(ROOT / f"{m}.py"), Source(ROOT / f"tests/test_{m}.py")) for m in METHODS]
    claims = read_claims()
    made = {DOCS / f"{m}.html": page(*pair, claims) for m, pair in zip(METHODS, pairs)}
    made[DOCS / "index.html"] = index([method for method, _ in pairs])
    return {**made, DOCS / "equations.md": table(pairs, claims)}


def main():
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(text) // 1000} KB")
