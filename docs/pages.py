"""Writes docs/NAME.html for every method, docs/index.html, docs/equations.html and the same table
in Markdown, docs/equations.md.

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
# What the table of the equations says, from which notes, and what stands there if there are none.
COLUMNS = {
    "paper says": (["paper"], "-"),
    "released code does": (["code"], "not compared"),
    "we do": (["inferred", "ours"], "-"),
}
TITLE = "From the equation to the line, and to the test"
ABOUT_TABLE = (
    'A note is one of the file\'s docstring. "-": no note adds something to the equation. "not '
    'compared": we did not look at what released code does there.'
)
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


def box(n, equation, below="", name=""):
    """An equation, and what stands below it. name: its id."""
    formula = "".join(f"<span>{escape(x)}\n</span>" for x in equation.formula)
    gloss = f'<p class="gloss">{escape(equation.gloss)}</p>' if equation.gloss else ""
    name, number = f' id="{name}"' * bool(name), link(f"#eq{n}", f"({n})", ' class="number"')
    return f'<div class="eq"{name}>{number}<pre class="formula">{formula}</pre>{gloss}{below}</div>'


def equation_box(n, method, tests, about=""):
    """An equation, and links to the lines that compute it, to its tests, and to notes about it."""
    lines = [link(f"#L{i}", i) for i in method.computed[n]]
    where = f"line{'s' * (len(lines) > 1)} {', '.join(lines)}"
    if not about:
        return box(n, method.equations[n], f'<p class="to">{where}; {tests}</p>')
    to = f'<ul class="to"><li>{where}</li><li>{tests}</li><li>{about}</li></ul>'
    return box(n, method.equations[n], to, f"eq{n}")  # at the head of the page


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
    links += [link("equations.html", "equations"), link(f"playground.html{tab}", "playground")]
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
<p class="lead">Each method is one file. Its page shows what the file says beside what it does. On a
narrow screen the words stand above their code.</p>
<p>Wherever the text or the code cites an equation, as in "(7)", the equation stands beside it. Each
equation has links to the lines that compute it and to the tests that check it. The line numbers
are those of the file.</p>
<dl>
{items}</dl>
<p><a href="equations.html">All equations</a> on one page: lines, tests, what the paper says, what
the released code does, what we do. (The same <a href="equations.md">in Markdown</a>.)</p>
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


def facts(method, n, claims):
    """{column: [(text, number and tag of its note)]}: what is said about an equation. A text
    without a note comes from claims.txt."""
    name, found = method.path.stem, {}
    for column, (tags, nothing) in COLUMNS.items():
        said = [claims.get((name, of, tags[0])) for of in (str(n), "all")]
        said = [(text, 0, "") for text in said if text]
        about = about_equation(method, n, claims).items()
        said += [(x.text, k, x.tag) for k, x in about if x.tag in tags]
        found[column] = said or [(nothing, 0, "")]
    return found


def code_of(method, n):
    """The lines that compute an equation: [(number, code without its comment)]."""
    return [(i, method.lines[i].strip().split("  # ")[0]) for i in method.computed[n]]


def table(pairs, claims):
    """equations.md"""
    out = [
        "<!-- made by `python docs/build.py` from the method files; do not edit -->",
        f"# {TITLE}",
        ABOUT_TABLE,
    ]
    for name, (method, tests) in zip(METHODS, pairs):
        out.append(f"## [{name}.py](../{name}.py)")
        for n, equation in method.equations.items():
            out.append("\n".join([f"### {name} ({n})\n\n```", *equation.lines, "```"]))
            code = [f"[{i}](../{name}.py#L{i}) `{text}`" for i, text in code_of(method, n)]
            to, checks = f"../tests/{tests.path.name}", tests.tests[n]
            rows = [("line", code), ("test", [f"[{t.name}]({to}#L{t.lineno})" for t in checks])]
            for column, said in facts(method, n, claims).items():
                rows.append((column, [f"{x} ({tag}, note {k})" if k else x for x, k, tag in said]))
            rows = [f"| {x} | " + "<br>".join(said).replace("|", r"\|") + " |" for x, said in rows]
            out.append("\n".join(["| | |", "|---|---|", *rows]))
    return "\n\n".join(out) + "\n"


def table_page(pairs, claims):
    """equations.html: the same table, with links into the pages of the methods."""
    body = [f'<header>\n<h1>{TITLE}</h1>\n<p class="lead">{ABOUT_TABLE}</p>\n</header>']
    for name, (method, tests) in zip(METHODS, pairs):
        out = [f'<h2 id="{name}">{link(f"{name}.html", f"{name}.py")}</h2>']
        for n, equation in method.equations.items():
            code = [f"{link(f'#L{i}', i)} <code>{escape(x)}</code>" for i, x in code_of(method, n)]
            checks = [link(f"#{t.name}", t.name.replace("_", "_<wbr>")) for t in tests.tests[n]]
            rows = [("line", code), ("test", checks)]
            for column, said in facts(method, n, claims).items():
                note = "{} note {}: ".format
                notes = [note(mark(t), link(f"#note{k}", k)) if k else "" for _, k, t in said]
                rows.append((column, [a + inline(x) for a, (x, *_) in zip(notes, said)]))
            out += ['<section class="facts">', box(n, equation, name=f"{name}-{n}"), "<table>"]
            for label, said in rows:
                said = "<br>".join(said)
                out.append(f'<tr><th scope="row">{label}</th><td>{said}</td></tr>')
            out.append("</table>\n</section>")
        # The lines, tests and notes are on the page of the method.
        body.append("\n".join(out).replace('href="#', f'href="{name}.html#'))
    contents = " ".join(link(f"#{name}", f"equations of {name}.py") for name in METHODS)
    return framed(TITLE, "\n".join(body), f'\n<p class="contents">{contents}</p>')


def files():
    """{path: text} of everything that is made."""
    pairs = [(Source(ROOT / f"{m}.py"), Source(ROOT / f"tests/test_{m}.py")) for m in METHODS]
    claims = read_claims()
    made = {DOCS / f"{m}.html": page(*pair, claims) for m, pair in zip(METHODS, pairs)}
    made[DOCS / "index.html"] = index([method for method, _ in pairs])
    made[DOCS / "equations.html"] = table_page(pairs, claims)
    return {**made, DOCS / "equations.md": table(pairs, claims)}


def main():
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(text) // 1000} KB")
