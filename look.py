"""See what a method sees: rollouts of the student, token by token. Nothing is trained.

    python look.py opd                            # three rollouts in the terminal
    python look.py opd --n 5 --html look.html     # the same as a page: one file, no scripts
    python look.py topd --html look.html          # candidates and both futures
    python look.py ar_opd --html look.html        # the student that sees a solution
    python look.py hindsight_sd --html look.html  # failed rollouts beside a successful peer
    python look.py opd --student runs/opd-0/final --teacher toy/teacher --data toy

On a page the mouse over a token shows its numbers. On the toy a checker adds what no real
data set knows: where a rollout first goes wrong.

`opd` colours every token by KL(student || teacher) at its position. Pale is agreement. Red
is where a gradient would be large. On the toy it also says how much of the KL lies on words
and how much on substance.

`topd` adds what topd.py would do there. Its candidates (tokens with a high loss) are
underlined. The divergent points among them, whose futures differ, are numbered. For each of
these the teacher's and the student's window stand one above the other, with the strongest
links of the transport plan and the distance D. A candidate without a number is a false
alarm by TOPD's measure: the loss is high, but the futures are close to each other.

`ar_opd` has no second model. Every token is coloured by the residual of ar_opd.py, log
q_full - log q_part. It is green where the whole solution makes the student's token likelier
than the first half does, and red where it makes the token less likely. Shortcuts are
marked: true values that stand there before the values they are computed from.

`hindsight_sd` has no second model either. It draws groups of rollouts, and shows failed
ones beside the peer that hindsight_sd.py would give them. Every token is coloured by its
credit A = log p - log s: log-probability after the model has seen the peer, minus before.
The token at which the two texts part is marked. Is this token the mistake? To find out, the
model goes on from this token, and from the peer's token at the same place, several times each.
"""

from dataclasses import dataclass

# Imported before torch, which takes seconds to load: Ctrl-C meanwhile gives no traceback.
from common.arguments import Parser, harmless, require, run_script

# isort: split
import torch

import ar_opd
import hindsight_sd
import opd
import topd
from common import credit, diagnostics, page
from common.batches import Compute, log_probabilities, pack, prompts_of_step, states
from common.data import ask_in_known_words, check_prompts, load_benchmark, prompt_ids
from common.files import check_writable, write_text
from common.flags import at_least
from common.grading import grade, graded_answer
from common.models import compute_dtype, load_model, load_tokenizer, pick_device, same_tokenizer
from common.sampler import sample
from common.show import colours_wanted
from toy import world

# ======================================================================== 1. opd: KL of each token


@dataclass
class Rollout:
    """A rollout that student and teacher have scored."""

    problem: str
    tokens: list  # one dictionary per token, see `scored_tokens`
    verdict: str  # what became of the rollout, in one line
    first_wrong: int | None  # number of the first wrong token; only the toy knows it
    points: list | None = None  # topd: the candidates as topd.Points, see `add_futures`


def scored(student, teacher, tokenizer, rows, completions):
    """The completions as Rollouts."""
    rollouts = []
    for row, completion in zip(rows, completions):
        tokens = scored_tokens(student, teacher, tokenizer, row["ids"], completion.ids)
        verdict = answer_verdict(row, joined(tokens), completion.truncated)
        said, first_wrong = toy_verdict(row, tokens)
        rollouts.append(Rollout(row["problem"], tokens, verdict + said, first_wrong))
    return rollouts


@torch.no_grad()
def scored_tokens(student, teacher, tokenizer, prompt, response):
    """One dictionary per token of the response: its text, the KL, its probability under
    both models, and the teacher's three favourites."""
    ids, predicts, targets = pack([prompt], [response], student.device)
    student_logp, teacher_logp = (
        log_probabilities(model, states(model, ids, predicts)) for model in (student, teacher)
    )  # [N, V] each
    kl = opd.divergence(student_logp, teacher_logp)  # [N]
    best = teacher_logp.topk(min(3, student.vocabulary))  # [N, 3]
    tokens = []
    for i, (y, value) in enumerate(zip(targets.tolist(), kl.tolist())):
        words = [tokenizer.decode([v]) for v in best.indices[i].tolist()]
        tokens.append(
            {
                "text": tokenizer.decode([y]),
                "kl": value,
                "student": student_logp[i, y].exp().item(),
                "teacher": teacher_logp[i, y].exp().item(),
                "favourites": list(zip(words, best.values[i].exp().tolist())),
            }
        )
    return tokens


def rollouts_as_text(rollouts, tokenizer):
    """The rollouts for a terminal; also those of topd."""
    colours = colours_wanted()
    if colours:
        legend = f"tokens coloured by KL(student || teacher), red from {page.RED_FROM:g} nats"
    else:
        legend = f"tokens above {page.RED_FROM / 2:g} nats in [ ]"
    if any(r.points is not None for r in rollouts):
        how = "underlined" if colours else "between _ _"
        legend += f"; candidates {how}, divergent points numbered, drawn to = the plan's "
        legend += "strongest link"
    lines = [legend]
    for r in rollouts:
        divergent, candidates = numbered(r.points or []), {p.t for p in r.points or []}
        line = ""
        for i, token in enumerate(r.tokens):
            text = token["text"]
            if i == r.first_wrong:
                text = f" >>>{text.strip()}"
            if i in divergent:
                text += f"({divergent[i][0]})"
            line += page.kl_as_text(text, token["kl"], colours, i in candidates)
        mark = "" if r.first_wrong is None else "   (>>> marks it)"
        lines += [f"\n{harmless(r.problem)}", line, f"  {r.verdict}{mark}"]
        lines += [windows_as_text(n, point, tokenizer) for n, point in divergent.values()]
    return "\n".join(lines)


OPD_INTRO = """Coloured by KL(student || teacher), teacher {teacher}; hover a token for both
probabilities and the teacher's favourites. A blue frame marks where the text first goes
wrong (toy only)."""


def rollouts_as_page(rollouts, args, tokenizer):
    """The rollouts as a page; also those of topd."""
    body = []
    for r in rollouts:
        divergent, candidates = numbered(r.points or []), {p.t: p for p in r.points or []}
        spans = []
        for i, token in enumerate(r.tokens):
            favourites = ", ".join(f"{harmless(w)!r} {p:.2f}" for w, p in token["favourites"])
            tip = (
                f"KL {token['kl']:.2f}; student {token['student']:.2f}, teacher "
                f"{token['teacher']:.2f}; teacher's favourites: {favourites}"
            )
            if i in candidates:
                tip += f"; candidate, D {candidates[i].distance:.2f}"
            kinds = {"wrong": i == r.first_wrong, "candidate": i in candidates}
            mark = f' class="{" ".join(k for k, yes in kinds.items() if yes)}"'
            spans.append(page.span(token["text"], page.shade(token["kl"]), mark, tip))
            if i in divergent:
                spans.append(f"<sup>{divergent[i][0]}</sup>")
        body += [page.problem(r.problem), page.paragraph("rollout", "".join(spans))]
        body += [page.paragraph("said", page.escaped(r.verdict))]
        body += [windows_as_svg(n, point, tokenizer) for n, point in divergent.values()]
    intro = OPD_INTRO.format(teacher=page.escaped(args.teacher))
    if args.method == "topd":
        intro += TOPD_INTRO
    return page.document(args.student, intro, page.kl_scale(), body)


# ======================================================================== 2. topd: both futures


def add_futures(rollouts, student, teacher, rows, completions, args):
    """Sets rollout.points: what topd.py finds in the rollouts. All points are candidates.
    Those with weights are divergent points, and the weights are their soft targets."""
    run_args = topd.Args(window_size=args.window_size, seed=args.seed)
    compute = Compute(run_args, student.device, student.dtype, student.vocabulary)
    # As in topd.py, a window ends at an end token of either model.
    teacher.ends = sorted({*teacher.ends, *student.ends})
    batch = [row["ids"] for row in rows], [c.ids for c in completions]
    points, _, _ = topd.look_ahead(student, teacher, batch, run_args, compute)
    kept, _ = topd.divergent(points, run_args)
    topd.soft_targets(kept, run_args)
    for i, rollout in enumerate(rollouts):
        rollout.points = [p for p in points if p.row == i]


def numbered(points):
    """{position: (number, point)} of the divergent points of a rollout, in text order."""
    divergent = [p for p in points if p.weights is not None]
    return {p.t: (n, p) for n, p in enumerate(divergent, 1)}


def links(point, least=0.15):
    """The strong links of a plan: (student position, teacher position, weight).

    A row of weights is the target of one student position. If the target is spread over the
    whole window, no weight of the row is as high as `least`, and the position has no link.
    """
    strong = []
    for i, row in enumerate(point.weights.tolist()):
        limit = max(least, 0.5 * max(row))
        strong += [(i, j, weight) for j, weight in enumerate(row) if weight >= limit]
    return strong


def windows_as_text(number, point, tokenizer):
    """Both windows in columns, and below each student token where the plan draws it."""
    teacher, student = (
        [harmless(tokenizer.decode([y])).strip() or "_" for y in window]
        for window in (point.teacher, point.student)
    )
    drawn_to = ["spread"] * len(student)
    strongest = {}  # {student position: (weight, teacher position)}
    for i, j, weight in links(point):
        strongest[i] = max(strongest.get(i, (0.0, 0)), (weight, j))
    for i, (weight, j) in strongest.items():
        drawn_to[i] = f"{teacher[j]} {weight:.2f}"
    columns = [("teacher", "student", "drawn to"), *zip(teacher, student, drawn_to)]
    head = f"  ({number}) D {point.distance:.2f}, loss {point.loss:.2f} nats"
    return f"{head}\n{page.columns_as_text(columns)}"


TOPD_INTRO = """ Candidates (the highest losses) are underlined. Where the futures part they
are numbered: below, the teacher's window stands above the student's, both from the numbered
token on. A line is mass of the transport plan: the student's token is drawn to the
teacher's. D is the cost of the plan, 0 for the same tokens. An underlined token without a
number is a false alarm by this measure."""


def windows_as_svg(number, point, tokenizer):
    """Both windows as two rows of tokens, and the strong links of the plan between them."""
    teacher, student = (
        [tokenizer.decode([y]) for y in window] for window in (point.teacher, point.student)
    )
    picture = page.linked_rows(("teacher", teacher), ("student", student), links(point))
    return (
        f'<div class="windows"><sup>{number}</sup> D {point.distance:.2f}, '
        f"loss {point.loss:.2f} nats<br>{picture}</div>"
    )


# ======================================================================== 3. ar_opd: the views


@dataclass
class Viewed:
    """A rollout that the student has scored under three prompts."""

    row: dict  # the problem and its solution
    tokens: list  # one dictionary per token, see `residuals`
    verdict: str
    shortcuts: set  # numbers of the tokens in a shortcut; only the toy knows them


def residuals(student, tokenizer, rows, completions, rho):
    """The rollouts as Viewed. Their tokens hold the residual, and the token's probability
    under the plain prompt ("student") and under both views."""
    args = ar_opd.Args(rho=rho)
    for row in rows:
        turns = ar_opd.views(row, args)
        row.update({name: prompt_ids(tokenizer, user) for name, user in turns.items()})
    scores = diagnostics.score_views(student, student, rows, [c.ids for c in completions])
    viewed = []
    for row, completion, score in zip(rows, completions, scores):
        logp = score["own"]  # of the written tokens: {"student" or view: [N]}
        tokens = []
        for i, y in enumerate(completion.ids):
            token = {name: values[i].exp().item() for name, values in logp.items()}
            token["residual"] = (logp["full"][i] - logp["partial"][i]).item()
            tokens.append({"text": tokenizer.decode([y]), **token})
        verdict = answer_verdict(row, joined(tokens), completion.truncated)
        in_shortcuts, note = find_shortcuts(row, tokens)
        viewed.append(Viewed(row, tokens, verdict + note, in_shortcuts))
    return viewed


def find_shortcuts(row, tokens):
    """(numbers of the tokens that belong to shortcuts, what to say about it). Outside of
    the toy's language only words can tell, and no token is marked."""
    text = joined(tokens)
    try:
        steps = world.check(row["problem"], text).shortcuts
    except ValueError:  # not the toy's language
        appeals = diagnostics.shortcut(row["problem"], text)
        return set(), "; appeals to an unseen solution" if appeals else ""
    inside = {
        i
        for i, (start, end) in enumerate(offsets(tokens))
        if any(start < step.end and step.start < end for step in steps)
    }
    return inside, "; a shortcut" if inside else ""


def views_as_text(viewed):
    """The rollouts for a terminal. Below each stand its five strongest residuals."""
    colours = colours_wanted()
    if colours:
        legend = (
            "tokens coloured by the residual log q_full - log q_part: green likelier with the "
            "whole solution, red less likely; shortcuts underlined"
        )
    else:
        legend = (
            "[-token-] where the whole solution makes it less likely by "
            f"{page.RED_FROM / 2:g} nats and more, [+token+] likelier; shortcuts between _ _"
        )
    lines = [legend]
    for v in viewed:
        line = ""
        for i, token in enumerate(v.tokens):
            marked = i in v.shortcuts
            line += page.signed_as_text(token["text"], token["residual"], colours, marked)
        lines += [f"\n{harmless(v.row['problem'])}", line, f"  {v.verdict}"]
        by_size = sorted(range(len(v.tokens)), key=lambda i: -abs(v.tokens[i]["residual"]))
        for i in sorted(by_size[:5]):
            token = v.tokens[i]
            lines.append(
                f"    {harmless(token['text']).strip() or '_':<12} "
                f"student {token['student']:.3f}   partial {token['partial']:.3f}   "
                f"full {token['full']:.3f}   residual {token['residual']:+.2f}"
            )
    return "\n".join(lines)


VIEWS_INTRO = """Every token of the student's rollouts, scored by the student itself under
three prompts: the plain one, with the first part of the solution (partial), with all of it
(full). Coloured by the residual log q_full - log q_part: green where the whole solution
makes the token likelier, red where it makes it less likely. Hover a token for its three
probabilities. A blue frame marks a shortcut: a true value that stands there before the
values it is computed from (toy only)."""


def views_as_page(viewed, args):
    """The rollouts as a page, each below its problem and its solution."""
    body = []
    for v in viewed:
        spans = []
        for i, token in enumerate(v.tokens):
            tip = (
                f"student {token['student']:.3f}, partial {token['partial']:.3f}, "
                f"full {token['full']:.3f}; residual {token['residual']:+.2f} nats"
            )
            framed = i in v.shortcuts
            spans.append(page.signed_span(token["text"], token["residual"], framed, tip))
        solution = f"solution: {page.escaped(v.row['solution'])}"
        body += [page.problem(v.row["problem"]), page.paragraph("prompt", solution)]
        body += [page.paragraph("rollout", "".join(spans))]
        body += [page.paragraph("said", page.escaped(v.verdict))]
    return page.document(args.student, VIEWS_INTRO, page.signed_scale(), body)


# ======================================================================== 4. hindsight_sd: credit


@dataclass
class Failure:
    """A failed rollout and its successful peer."""

    row: dict  # the problem
    tokens: list  # per token: text, credit (shown peer and answer), answer (credit, shown it alone)
    peer: list  # the peer's tokens, as texts
    tau: int  # number of the first token at which the two differ
    verdict: str
    note: str  # what was measured at tau


# The search ends after so many rounds. If they bring too few failures with a peer, the model
# fails nearly always, or nearly never.
ROUNDS = 8
CONTINUATIONS = 16  # samples that go on from each of the two tokens at tau


def find_failures(student, tokenizer, rows, count, args):
    """Failed rollouts that have a peer, at most one per question, until there are `count`:
    [(row, token ids, the peer's token ids, tau)]."""
    chosen = []
    for step in range(1, ROUNDS + 1):
        numbers = prompts_of_step(step, max(4, count), len(rows), args.seed)
        asked = [rows[i] for i in numbers]
        for row in asked:
            row["ids"] = prompt_ids(tokenizer, row["prompt"])
        drawn = hindsight_sd.rollouts(student, asked, args, step)
        contexts = hindsight_sd.build_contexts(asked, drawn, tokenizer, args, step)
        failed = credit.failures(drawn, contexts.right, contexts.peers, args.samples)
        # One failure per question. More of them would show the same problem again.
        first = {}  # {question: its first failure}
        for question, *failure in failed:
            first.setdefault(question, (asked[question], *failure))
        chosen += first.values()
        if len(chosen) >= count:
            break
    return chosen[:count]


def credited(student, tokenizer, rows, count, args):
    """Up to `count` Failures, with the credit of their tokens and the numbers at tau."""
    chosen = find_failures(student, tokenizer, rows, count, args)
    if not chosen:
        return []
    # Below, the rows are those of the failures: one row per failure, in the same order.
    rows = [row for row, *_ in chosen]
    failed = [(i, *failure) for i, (_, *failure) in enumerate(chosen)]
    credits = credit.credits(student, student, tokenizer, rows, failed)
    own_shares, peer_shares = credit.continuations(
        student,
        tokenizer,
        rows,
        failed,
        n=CONTINUATIONS,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )
    failures = []
    for row, (_, ids, peer, tau), found, own_share, peer_share in zip(
        rows, failed, credits, own_shares, peer_shares
    ):
        by_context = zip(found["credit"]["peer"].tolist(), found["credit"]["answer"].tolist())
        tokens = [
            {"text": tokenizer.decode([y]), "credit": with_peer, "answer": with_answer}
            for y, (with_peer, with_answer) in zip(ids, by_context)
        ]
        verdict = answer_verdict(row, joined(tokens), ids[-1] not in student.ends)
        # The probability of the peer's token at tau, in three contexts.
        there = found["there"]
        note = (
            f"the peer wrote {harmless(tokenizer.decode([peer[tau]])).strip()!r} there: "
            f"probability {there['student']:.2f} before, {there['answer']:.2f} shown the answer, "
            f"{there['peer']:.2f} shown the peer; going on from there is right "
            f"{100 * own_share:.0f} % with its own token, {100 * peer_share:.0f} % with the "
            f"peer's ({CONTINUATIONS} samples each)"
        )
        texts = [tokenizer.decode([y]) for y in peer]
        failures.append(Failure(row, tokens, texts, tau, verdict, note))
    return failures


def credit_as_text(failures):
    """For a terminal: the peer, and below it the failed rollout."""
    colours = colours_wanted()
    if colours:
        legend = (
            "the failed rollout coloured by its credit log p - log s: green likelier once the "
            "peer was seen, red less likely; >>> where they part"
        )
    else:
        legend = (
            f"[-token-] less likely by {page.RED_FROM / 2:g} nats and more once the peer was "
            "seen, [+token+] likelier; >>> where they part"
        )
    lines = [legend]
    for f in failures:
        shared, rest = (harmless("".join(x)) for x in (f.peer[: f.tau], f.peer[f.tau :]))
        line = ""
        for i, token in enumerate(f.tokens):
            line += " >>>" if i == f.tau else ""
            line += page.signed_as_text(token["text"], token["credit"], colours)
        lines += [f"\n{harmless(f.row['problem'])}", f"peer:   {shared} >>>{rest.strip()}"]
        lines += [f"failed: {line}", f"  {f.verdict}", f"  {f.note}"]
    return "\n".join(lines)


CREDIT_INTRO = """Failed rollouts of the student below a successful rollout of the same
group (the peer). Every token of the failed one is coloured by its credit A = log p - log s:
how much likelier (green) or less likely (red) the same model finds it once it has seen
answer and peer. A blue frame marks where the two texts part. Hover a token for its credit
under the peer and under the answer alone."""


def credit_as_page(failures, args):
    """For a page: the peer, and below it the failed rollout."""
    body = []
    for f in failures:
        spans = []
        for i, token in enumerate(f.tokens):
            tip = (
                f"credit {token['credit']:+.2f} nats with the peer, {token['answer']:+.2f} with "
                "the answer alone"
            )
            framed = i == f.tau
            spans.append(page.signed_span(token["text"], token["credit"], framed, tip))
        peer = [page.escaped(text) for text in f.peer]
        peer[f.tau] = f"<span class=wrong>{peer[f.tau]}</span>"
        body += [page.problem(f.row["problem"]), page.paragraph("said", "peer (right)")]
        body += [page.paragraph("rollout", "".join(peer))]
        body += [page.paragraph("said", "failed"), page.paragraph("rollout", "".join(spans))]
        body += [page.paragraph("said", f"{page.escaped(f.verdict)}; {page.escaped(f.note)}")]
    return page.document(args.student, CREDIT_INTRO, page.signed_scale(), body)


# ======================================================================== what all methods share


def joined(tokens):
    return "".join(token["text"] for token in tokens)


def offsets(tokens):
    """(start, end) of every token in the joined text. Tokens are decoded one by one, which
    is exact for the toy and nearly exact for others."""
    places, end = [], 0
    for token in tokens:
        start, end = end, end + len(token["text"])
        places.append((start, end))
    return places


def answer_verdict(row, text, truncated):
    """Answer, gold, and whether the answer is right. Both texts come from strangers."""
    said, gold = graded_answer(text, row["answer"], truncated), row["answer"]
    outcome = "right" if grade(text, gold, truncated) else "wrong"
    cut = ", truncated" if truncated else ""
    return f"answer {harmless(str(said))}, gold {harmless(gold)}: {outcome}{cut}"


def toy_verdict(row, tokens):
    """What only the toy knows: (KL by kind of token and the first mistake as text, number
    of the token at which the text first leaves the truth). ("", None) for other data."""
    text, places = joined(tokens), offsets(tokens)
    try:
        wrong = world.check(row["problem"], text).first_wrong
    except ValueError:  # not the toy's language
        return "", None
    kinds = world.token_kinds(text, places)
    words = sum(t["kl"] for t, kind in zip(tokens, kinds) if kind == "surface")
    total = sum(t["kl"] for t in tokens)
    said = f"; of {total:.1f} nats of KL {words:.1f} lie on words, the rest on substance"
    if wrong is None:
        return said, None
    said += f"; first wrong: {wrong.fault}"
    if wrong.right:
        said += f", right would be {wrong.right!r}"
    inside = (i for i, (start, end) in enumerate(places) if start <= wrong.wrong_at < end)
    return said, next(inside, None)


# ======================================================================== main


def parse(argv):
    """The flags. What cannot work is refused before anything is loaded."""
    parser = Parser(__doc__)
    add = parser.add_argument
    methods = ["opd", "topd", "ar_opd", "hindsight_sd"]
    add("method", choices=methods, help="show what this method sees")
    add("--n", type=int, default=3, help="rollouts to show (default 3)")
    add("--html", metavar="FILE", help="write a page instead of printing")
    add("--student", help="model that writes (default toy/student; with ar_opd and hindsight_sd "
        "toy/reader)")
    add("--teacher", default="toy/teacher", help="model that scores (default toy/teacher)")
    add("--data", default="toy", help="problems: a benchmark, a file or a data set of the hub, as "
        "evaluate.py reads them (default toy); of a benchmark the test split")
    add("--seed", type=int, default=0, help="another seed shows other problems and rollouts")
    add("--max_new_tokens", type=int, default=256, help="longest rollout (default 256)")
    add("--window_size", type=int, help="of topd: tokens of a window (default 12 on the toy, "
        "else 50)")
    add("--rho", type=float, default=0.5, help="of ar_opd: share of the solution that the "
        "partial view shows (default 0.5)")
    add("--device", default="auto", help="auto, cpu, cuda ...")
    args = parser.parse_args(argv)
    at_least(args, 1, "n max_new_tokens")
    args.alone = args.method in ("ar_opd", "hindsight_sd")  # the student is its own teacher
    args.student = args.student or ("toy/reader" if args.alone else "toy/student")
    if args.window_size is None:
        args.window_size = 12 if args.data.startswith("toy") else 50
    require(0 < args.rho < 1, f"--rho is {args.rho}; it is a share and must lie in (0, 1).")
    require(
        args.window_size >= 2,
        f"--window_size is {args.window_size}; a window needs at least 2 tokens.",
    )
    if args.html:
        check_writable(args.html, "--html")
    return args


def main(argv=None):
    args = parse(argv)
    device = pick_device(args.device)
    rows, tokenizer = load_benchmark(args.data, "test"), load_tokenizer(args.student)
    require(
        args.method != "ar_opd" or all(r.get("solution") for r in rows),
        f"'{args.data}' has rows without a solution for the views to show; use toy, gsm8k, or a "
        "file with problem, answer and solution.",
    )
    if not args.alone:
        same_tokenizer(tokenizer, load_tokenizer(args.teacher))
    chosen = [rows[i] for i in prompts_of_step(1, args.n, len(rows), args.seed)]
    ask_in_known_words(tokenizer, rows)
    check_prompts(tokenizer, [r["prompt"] for r in chosen], args.data)
    dtype = compute_dtype("auto", device)
    student = load_model(args.student, device, dtype, tokenizer)

    if args.method == "hindsight_sd":  # draws groups of rollouts itself
        run_args = hindsight_sd.Args(max_new_tokens=args.max_new_tokens, seed=args.seed)
        failures = credited(student, tokenizer, rows, args.n, run_args)
        require(
            failures,
            "No failed rollout with a successful one beside it was found: the model nearly always "
            "fails, or never, on these problems.",
        )
        shown = credit_as_page(failures, args) if args.html else credit_as_text(failures)
    else:
        for row in chosen:
            row["ids"] = prompt_ids(tokenizer, row["prompt"])
        completions = sample(
            student,
            [row["ids"] for row in chosen],
            max_new_tokens=args.max_new_tokens,
            keys=[("look", args.seed, i) for i in range(args.n)],
        )
        if args.method == "ar_opd":
            viewed = residuals(student, tokenizer, chosen, completions, args.rho)
            shown = views_as_page(viewed, args) if args.html else views_as_text(viewed)
        else:
            teacher = load_model(args.teacher, device, dtype, tokenizer)
            rollouts = scored(student, teacher, tokenizer, chosen, completions)
            if args.method == "topd":
                add_futures(rollouts, student, teacher, chosen, completions, args)
            if args.html:
                shown = rollouts_as_page(rollouts, args, tokenizer)
            else:
                shown = rollouts_as_text(rollouts, tokenizer)

    if args.html:
        write_text(args.html, shown)
        print(f"wrote {args.html}")
    else:
        print(shown)


if __name__ == "__main__":
    run_script(main)
