"""Writes docs/NAME.html for every method, docs/index.html and docs/equations.md.

Nothing is written twice. Prose, equations, notes, code and tests come from the files as
annotate.py reads them; only claims.txt adds a few facts that stand nowhere else.
"""

import html
import itertools
import re
from pathlib import Path

from docs.annotate import TAGS, Source, cited, cited_notes, equations, notes

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
METHODS = ["opd", "topd", "ar_opd", "hindsight_sd", "grpo"]
COLUMNS = {
    "paper says": ["paper"],
    "released code does": ["code"],
    "we do": ["inferred", "ours"],
}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
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

# ======================================================================== pieces of a page


def escape(text):
    return html.escape(text, quote=False)


def link(to, text, more=""):
    return f'<a href="{to}"{more}>{text}</a>'


def breakable(name):
    """The name of a test, which a narrow screen breaks behind an underscore."""
    return name.replace("_", "_<wbr>")


def mark(tag):
    return f'<b class="mark {tag}" title="{TAGS[tag]}">{tag}</b>'


def citations(text, method):
    """Links from "(7)" to the equation, and from "note 17" to the note. `text` is HTML."""

    def equation(m):
        known = int(m[1]) in method.equations
        return link(f"#eq{m[1]}", m[0], ' class="cite"') if known else m[0]

    def note(m):
        return re.sub(r"\d+", lambda n: link(f"#note{n[0]}", n[0], ' class="cite"'), m[0])

    text = re.sub(r"\((\d{1,2})\)", equation, text)
    return re.sub(r"\bnotes? \d+( and \d+)?", note, text) if method.notes else text


def inline(text, method):
    """Prose in one line as HTML, with links to equations, notes, papers and files."""

    def file(m):
        if m[1] in METHODS:
            return link(f"{m[1]}.html", m[0])
        exists = (ROOT / m[0]).exists() and "/" in m[0] + "/" * (m[2] == "py")
        return link(f"../{m[0]}", m[0]) if exists else m[0]

    text = citations(escape(text), method)
    text = re.sub(r"\b(\d{4}\.\d{5})\b", link(r"https://arxiv.org/abs/\1", r"\1"), text)
    text = re.sub(r"\b([\w/]+)\.(py|md)\b", file, text)
    text = re.sub(r"`([^`]+)`|(?<![\w-])(--\w+)", r"<code>\1\2</code>", text)
    return re.sub(r"\[(\w+)\](?!\()", lambda m: mark(m[1]) if m[1] in TAGS else m[0], text)


def prose(lines, method):
    """Paragraphs. Indented lines (pictures, commands) and examples stay as they are."""
    out = []
    for empty, part in itertools.groupby(lines, lambda line: not line.strip()):
        part = [] if empty else list(part)
        groups = itertools.groupby(part, lambda x: x.startswith("    "))
        if part and part[0].startswith(">>>"):
            groups = [(True, part)]
        for raw, some in groups:
            some = list(some)
            if raw:
                margin = min(len(x) - len(x.lstrip()) for x in some)
                text = citations(escape("\n".join(x[margin:] for x in some)), method)
                out.append(f'<pre class="raw">{text}</pre>')
            else:
                out.append(f"<p>{inline(' '.join(x.strip() for x in some), method)}</p>")
    return "\n".join(out)


def formula(equation, number):
    lines = "".join(f"<span>{escape(x)}\n</span>" for x in equation.formula)
    gloss = f'<p class="gloss">{escape(equation.gloss)}</p>' if equation.gloss else ""
    number = link(f"#eq{number}", f"({number})", ' class="number"')
    return f'{number}<pre class="formula">{lines}</pre>{gloss}'


def where(number, method):
    """Links from an equation to the lines that compute it."""
    lines = [link(f"#L{i}", i) for i in method.computed.get(number, [])]
    return f"line {', '.join(lines)}" if len(lines) == 1 else f"lines {', '.join(lines)}"


def line_of_code(i, source, method, prefix):
    text, done, out = source.lines[i], 0, ""
    for first, last, kind in source.colours.get(i, []):
        last = len(text) if last is None else last
        piece = escape(text[first:last])
        piece = citations(piece, method) if kind == "c" else piece
        out, done = f'{out}{escape(text[done:first])}<i class="{kind}">{piece}</i>', last
    out += escape(text[done:])
    indent = len(text) - len(text.lstrip())
    number = link(f"#{prefix}{i}", i, ' tabindex="-1"')
    return f'<span class="l" id="{prefix}{i}" style="--i:{indent}">{number}{out}\n</span>'


def row(chunk, source, method, checks, prefix="L"):
    """Left: the equations and notes that are cited here, and the prose. Right: the code."""
    text, left = "\n".join([*chunk.prose, chunk.comments]), []
    for n in cited(text):
        if n in method.equations:
            tests = enumerate([t.name for t in checks.get(n, [])], 1)
            tests = [link(f"#{name}", k, f' title="{name}"') for k, name in tests]
            to = f'<p class="to">{where(n, method)}; tests {", ".join(tests)}</p>'
            left.append(f'<div class="eq">{formula(method.equations[n], n)}{to}</div>')
    left.append(prose(chunk.prose, method))
    for n in cited_notes(text):
        if n in method.notes:
            note = method.notes[n]
            said = f"{mark(note.tag)} note {link(f'#note{n}', n)}: {inline(note.text, method)}"
            left.append(f'<p class="aside">{said}</p>')
    left = "\n".join(x for x in left if x)
    left = f"<div>\n{left}\n</div>" if left else ""
    code = "".join(line_of_code(i, source, method, prefix) for i in chunk.code)
    return (
        f'<section class="row">\n<div class="prose">{left}</div>\n'
        f'<pre class="code">{code}</pre>\n</section>'
    )


# ======================================================================== a method's page


def head(method, checks, claims):
    """The docstring: its equations with all their links, and beside them its notes."""
    out = []
    for block in method.head.split("\n\n")[1:]:
        if found := equations(block):
            out.append('</div>\n<div class="beside">\n<div>')
            for n, equation in found.items():
                names = [link(f"#{t.name}", breakable(t.name)) for t in checks.get(n, [])]
                about = [about_note(method, k) for k in about_equation(method, n, claims)]
                links = [where(n, method), f"tests: {', '.join(names)}"]
                links += [f"notes: {', '.join(about)}"] * bool(about)
                links = f'<ul class="to">{"".join(f"<li>{x}</li>" for x in links)}</ul>'
                out.append(f'<div class="eq" id="eq{n}">{formula(equation, n)}{links}</div>')
            out.append("</div>\n<div>")
        elif notes(block):
            intro = itertools.takewhile(lambda x: not x.startswith("  "), block.split("\n"))
            out.append(f"<p>{inline(' '.join(intro), method)}</p>\n<ol class=\"notes\">")
            for n, note in method.notes.items():
                text = f"{mark(note.tag)} {inline(note.text, method)}"
                out.append(f'<li id="note{n}">{text}</li>')
            out.append("</ol>")
        else:
            out.append(prose(block.split("\n"), method))
    return "\n".join(['<div class="idea">', *out, "</div>\n</div>"])


def about_note(method, n):
    return f"{mark(method.notes[n].tag)}&nbsp;{link(f'#note{n}', n)}"


def page(name):
    method, tests = Source(ROOT / f"{name}.py"), Source(ROOT / "tests" / f"test_{name}.py")
    title = " ".join(method.head.split("\n\n")[0].split())
    body = [f"<header>\n<h1>{name}.py</h1>\n<p class=\"lead\">{inline(title, method)}</p>"]
    checks, sections = tests.tests, []
    body += [head(method, checks, read_claims()), "</header>"]
    for chunk in method.chunks():
        if chunk.title:
            sections.append(chunk.title)
            body.append(f'<h2 id="s{len(sections)}">{escape(chunk.title)}</h2>')
        else:
            body.append(row(chunk, method, method, checks))
    body.append(f'<h2 id="tests">tests of the equations ({tests.path.name})</h2>')
    nodes = {node.lineno: node for found in checks.values() for node in found}
    for _, node in sorted(nodes.items()):
        body.append(f'<h3 id="{node.name}">{breakable(node.name)}</h3>')
        body += [row(c, tests, method, checks, "T") for c in tests.chunks(tests.lines_of(node))]
    contents = [link(f"#s{i}", escape(t)) for i, t in enumerate(sections, 1)]
    contents += [link("#tests", "tests")]
    menu = f'{menu_of(name)}\n<p class="contents">{" ".join(contents)}</p>'
    return PAGE.format(title=f"{name}.py", style=style(), nav=menu, body="\n".join(body))


def menu_of(name):
    links = [link("index.html", "all methods")]
    for m in METHODS:
        links.append(link(f"{m}.html", f"{m}.py", ' aria-current="page"' * (m == name)))
    return f"<p>{' '.join(links)}</p>"


def style():
    return (DOCS / "style.css").read_text(encoding="utf-8")


# ======================================================================== index and table


def index():
    marks = "\n".join(f"<li>{mark(tag)} {said}</li>" for tag, said in TAGS.items())
    items = []
    for name in METHODS:
        method = Source(ROOT / f"{name}.py")
        title = " ".join(method.head.split("\n\n")[0].split())
        count = f"{len(method.equations)} equations, {len(method.lines) - 1} lines"
        name = link(f"{name}.html", f"{name}.py")
        items.append(f"<dt>{name}</dt>\n<dd>{inline(title, method)} <small>{count}</small></dd>")
    playground = ""
    if (DOCS / "build_playground.py").exists():
        to = link("playground.html", "The playground")
        playground = f"\n<p>{to}: the toy's models run in the page. Touch a token, move lambda.</p>"
    body = f"""<header>
<h1>Beside the paper</h1>
<p class="lead">Each method is one file. Its page shows what the file says on the left, and what it
does on the right.</p>
<p>Wherever the text or the code cites an equation, as in "(7)", the equation stands beside it. Each
equation has links to the lines that compute it and to the tests that check it. The line numbers
are those of the file.</p>
<dl>
{chr(10).join(items)}
</dl>
<p>{link("equations.md", "All equations")} on one page: lines, tests, what the paper says, what
the released code does, what we do.</p>{playground}
<p>The notes say where a statement comes from:</p>
<ul class="marks">
{marks}
</ul>
</header>"""
    title = "On-policy distillation, beside the papers"
    return PAGE.format(title=title, style=style(), nav=menu_of("index"), body=body)


def read_claims():
    """claims.txt: ({(method, equation): notes}, {(method, equation or "all", column): text})"""
    numbers, texts = {}, {}
    for line in (DOCS / "claims.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            key, _, said = line.partition(": ")
            method, equation, *column = key.split()
            if column:
                texts[method, equation, column[0]] = said
            else:
                numbers[method, equation] = [int(n) for n in said.split(",")]
    return numbers, texts


def about_equation(method, n, claims):
    """Numbers of the notes that are about equation n."""
    found = {k for k, note in method.notes.items() if n in cited(note.text)}
    return sorted(found | set(claims[0].get((method.path.stem, str(n)), [])))


def table():
    """equations.md"""
    out = [
        "<!-- made by `python docs/build.py` from the method files; do not edit -->",
        "# From the equation to the line, and to the test",
        "Numbers in brackets are the notes of the file's docstring. `-`: nothing is said there.",
    ]
    claims = read_claims()
    for name in METHODS:
        method, tests = Source(ROOT / f"{name}.py"), Source(ROOT / "tests" / f"test_{name}.py")
        out.append(f"## [{name}.py](../{name}.py)")
        for n, equation in method.equations.items():
            lines = "\n".join(equation.lines)
            out.append(f"### {name} ({n})\n\n```\n{lines}\n```")
            rows = [("line", computed(method, n)), ("test", checked(tests, n))]
            for column, tags in COLUMNS.items():
                said = [claims[1].get((name, of, tags[0])) for of in (str(n), "all")]
                said = [x for x in said if x]
                for k in about_equation(method, n, claims):
                    note = method.notes[k]
                    said += [f"{note.text} ({note.tag}, {k})"] if note.tag in tags else []
                rows.append((column, [x.replace("|", "\\|") for x in said] or ["-"]))
            rows = [f"| {name} | {'<br>'.join(said)} |" for name, said in rows]
            out.append("\n".join(["| | |", "|---|---|", *rows]))
    return "\n\n".join(out) + "\n"


def computed(method, n):
    found = []
    for i in method.computed.get(n, []):
        text = method.lines[i].strip().split("  # ")[0].replace("|", "\\|")
        found.append(f"[{i}](../{method.path.name}#L{i}) `{text}`")
    return found


def checked(tests, n):
    to = f"../tests/{tests.path.name}"
    return [f"[{t.name}]({to}#L{t.lineno})" for t in tests.tests.get(n, [])]


def files():
    """{path: text} of everything that is made."""
    made = {DOCS / f"{name}.html": page(name) for name in METHODS}
    return {**made, DOCS / "index.html": index(), DOCS / "equations.md": table()}


def main():
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(text) // 1000} KB")
