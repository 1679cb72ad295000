"""See what a method sees: rollouts of the student, token by token. Nothing is trained.

    python look.py opd                            # three rollouts in the terminal
    python look.py opd --html look.html           # a page: one file, one tab for each method
    python look.py topd                           # candidates and both futures
    python look.py ar_opd                         # the student that sees a solution
    python look.py hindsight_sd                   # failed rollouts beside a successful peer
    python look.py grpo                           # a group and its advantages
    python look.py mine.py --html look.html       # your fork of a method, beside all of them
    python look.py opd --student runs/opd-0/final --teacher toy/teacher --data toy

A page shows the same rollouts as all methods see them. A click on a token, or Enter, shows the
likeliest next tokens of every model, or view, that the method uses. On the toy a checker knows
where a rollout first goes wrong.

Every token has a colour: in opd and topd its loss, in ar_opd the residual log q_full - log q_part,
in hindsight_sd the credit log p - log s, in grpo the advantage of its rollout.

topd underlines the candidates, and numbers those that are kept. Dropped are those whose D is among
the lowest 30 % of the rollouts shown here. Below stand the two windows of each kept one, with the
strongest links of the transport plan and the distance D.

hindsight_sd shows failed rollouts. Is the token at which a rollout leaves its peer the mistake?
To find out, the model goes on from this token, and from the peer's, several times each.

This script calls the following names of a method. A fork must keep them, with the same arguments
and results:
    opd           Args, token_loss
    topd          Args, look_ahead, divergent, soft_targets
    ar_opd        Args, views, anchored_target
    hindsight_sd  Args, build_contexts
    grpo          Args, check, verdicts, advantages
Its other flags have their defaults. These must stay: window_size, rho, lam, clip, advantage,
samples, max_new_tokens.
"""

# This comes first: from here on Ctrl-C gives no traceback, also while torch is loaded.
from common.arguments import SUPPRESS, Mistake, Parser, harmless, require, run_script, shorten

# isort: split
import contextlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import ar_opd
import grpo
import hindsight_sd
import opd
import topd
from common import credit, diagnostics, page
from common.batches import Compute, prompts_of_step
from common.data import (
    ask_in_known_words,
    check_prompts,
    is_toy,
    load_benchmark,
    opened_thinking,
    privileged_prompt,
    prompt_ids,
)
from common.files import check_writable, write_text
from common.flags import at_least
from common.grading import grade, graded_answer
from common.models import compute_dtype, load_model, load_tokenizer, pick_device, same_tokenizer
from common.sampler import sample
from common.seen import (
    Rollout,
    Seen,
    View,
    as_text,
    columns_as_text,
    favourites,
    of_written,
    offsets,
    score,
)
from toy import world

# ======================================================================== the rollouts


@dataclass
class Case:
    """A question, the student's rollouts, and the one of them that is shown."""

    row: dict
    group: list  # Completions
    shown: int  # number of the one that is shown
    ids: list  # and its token ids
    texts: list  # and its tokens as texts
    text: str  # as it is graded, without its end token
    report: object  # what the toy's checker says about it; None for other data
    wrong: int | None  # number of the token at which it first goes wrong; only the toy knows it


@dataclass
class Setting:
    """What every method is given."""

    student: object
    teacher: object  # None if there is none
    tokenizer: object
    args: object

    def texts(self, ids):
        return [self.tokenizer.decode([y]) for y in ids]


# The search for failures with a peer ends after so many rounds. If they bring too few, the model
# fails nearly always, or nearly never.
ROUNDS = 8


def draw(setting, rows, method, find_failures):
    """`--n` Cases, one per question. find_failures: only failed rollouts that have a peer."""
    args, cases = setting.args, []
    for step in range(1, 1 + (ROUNDS if find_failures else 1)):
        count = max(4, args.n) if find_failures else args.n
        asked = [rows[i] for i in prompts_of_step(step, count, len(rows), args.seed)]
        for row in asked:
            row["ids"] = prompt_ids(setting.tokenizer, row["prompt"])
        G, questions = args.samples, range(len(asked))
        drawn = sample(
            setting.student,
            [row["ids"] for row in asked],
            n=G,
            max_new_tokens=args.max_new_tokens,
            keys=[("look", args.seed, step, q, j) for q in questions for j in range(G)],
        )
        for q, row in enumerate(asked):
            group, shown = drawn[q * G : (q + 1) * G], 0
            if find_failures:
                shown = first_failure(method, row, group, setting)
            if shown is not None:
                cases.append(case_of(row, group, shown, setting))
        if len(cases) >= args.n:
            break
    return cases[: args.n]


def answer_verdict(row, text, truncated):
    """Answer, gold, and whether the answer is right. Both texts come from strangers."""
    said, gold = graded_answer(text, row["answer"], truncated), row["answer"]
    outcome = "right" if grade(text, gold, truncated) else "wrong"
    cut = ", truncated" if truncated else ""
    return f"answer {harmless(str(said))}, gold {harmless(gold)}: {outcome}{cut}"


def case_of(row, group, shown, setting):
    ids = group[shown].ids
    texts, report, wrong = setting.texts(ids), None, None
    with contextlib.suppress(ValueError):  # not the toy's language
        report = world.check(row["problem"], "".join(texts))
    if report and report.first_wrong:
        at = report.first_wrong.wrong_at
        wrong = next((i for i, (a, b) in enumerate(offsets(texts)) if a <= at < b), None)
    text = setting.tokenizer.decode(ids, skip_special_tokens=True).strip()
    text = opened_thinking(setting.tokenizer) + text  # it is graded as the scripts grade it
    return Case(row, group, shown, ids, texts, text, report, wrong)


def as_rollout(case, seen):
    """The Case as something to be shown. seen: {method: its Seen, or a sentence}."""
    text, end = case.text, case.group[case.shown].truncated
    verdict = answer_verdict(case.row, text, end)
    wrong = case.report and case.report.first_wrong
    if wrong:
        verdict += f"; first wrong: {wrong.fault}"
        verdict += f", right would be {wrong.right!r}" if wrong.right else ""
    right = grade(text, case.row["answer"], end)
    return Rollout(case.row["problem"], case.texts, right, verdict, seen)


# ======================================================================== 1. opd: the loss


def see_opd(method, cases, setting):
    """The loss of every token, with the method's default flags."""
    if setting.teacher is None:
        return [NO_TEACHER] * len(cases)
    seen, args = [], method.Args()
    for case in cases:
        ids, prompt = case.ids, case.row["ids"]
        models = {"student": setting.student, "teacher": setting.teacher}
        logp = {name: score(model, prompt, ids) for name, model in models.items()}  # [N, V] each
        targets = torch.tensor(ids, device=logp["student"].device)  # [N]
        own = torch.zeros_like(targets, dtype=torch.bool)  # no token is off-policy
        with torch.no_grad():
            loss = method.token_loss(logp["student"], logp["teacher"], targets, own, args)  # [N]
        written = {name: of_written(x, ids).exp().tolist() for name, x in logp.items()}
        notes = [
            f"loss {value:.2f} nats; student {s:.3f}, teacher {t:.3f}"
            for value, s, t in zip(loss.tolist(), written["student"], written["teacher"])
        ]
        readers = {name: favourites(setting.tokenizer, x, ids) for name, x in logp.items()}
        s = Seen(loss.tolist(), notes, readers, case.wrong)
        if case.report:
            kinds = world.token_kinds("".join(case.texts), offsets(case.texts))
            words = sum(value for value, kind in zip(s.values, kinds) if kind == "surface")
            s.said = [f"{words:.1f} of {loss.sum():.1f} nats lie on words, the rest on substance"]
        seen.append(s)
    return seen


NO_TEACHER = "This method needs a teacher, and none was named: --teacher FOLDER_OR_NAME."

# ======================================================================== 2. topd: both futures


def see_topd(method, cases, setting):
    """What opd sees, and in the same rollouts candidates, windows and plans."""
    if setting.teacher is None:
        return [NO_TEACHER] * len(cases)
    student, teacher, args = setting.student, setting.teacher, setting.args
    run_args = method.Args(window_size=args.window_size, seed=args.seed)
    compute = Compute(run_args, student.device, student.dtype, student.vocabulary)
    # As in topd.py, a window ends at an end token of either model.
    teacher.ends = sorted({*teacher.ends, *student.ends})
    batch = [case.row["ids"] for case in cases], [case.ids for case in cases]
    points, _, _ = method.look_ahead(student, teacher, batch, run_args, compute)
    kept, _ = method.divergent(points, run_args)
    method.soft_targets(kept, run_args)  # sets the weights of the divergent points
    seen = see_opd(opd, cases, setting)
    for i, s in enumerate(seen):
        mine = [p for p in points if p.row == i]
        s.marked = {p.t for p in mine}
        for p in mine:
            kept = "kept" if p.weights is not None else "dropped"
            s.notes[p.t] += f"; candidate, D {p.distance:.2f}, {kept}"
        for n, p in enumerate((p for p in mine if p.weights is not None), 1):
            s.numbers[p.t] = n
            windows = setting.texts(p.teacher), setting.texts(p.student)
            for k, j, weight in links(p):
                drawn_to = windows[0][j].strip() or "_"
                s.notes[p.t + k] += f"; window {n} draws it to {drawn_to} {weight:.2f}"
            s.more.append((windows_as_text(n, p, *windows), windows_as_svg(n, p, *windows)))
    return seen


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


def windows_as_text(number, point, teacher, student):
    """Both windows in columns, and below each student token where the plan draws it."""
    teacher, student = ([harmless(t).strip() or "_" for t in x] for x in (teacher, student))
    drawn_to = ["spread"] * len(student)
    strongest = {}  # {student position: (weight, teacher position)}
    for i, j, weight in links(point):
        strongest[i] = max(strongest.get(i, (0.0, 0)), (weight, j))
    for i, (weight, j) in strongest.items():
        drawn_to[i] = f"{teacher[j]} {weight:.2f}"
    head = f"  ({number}) D {point.distance:.2f}, loss {point.loss:.2f} nats"
    columns = list(zip(teacher, student, drawn_to))
    return f"{head}\n{columns_as_text(('teacher', 'student', 'drawn to'), columns)}"


def windows_as_svg(number, point, teacher, student):
    """Both windows as two rows of tokens, and the strong links of the plan between them."""
    rows = ("teacher", teacher), ("student", student)
    picture = page.linked_rows(*rows, links(point), point.t)
    return (
        f'<div class="windows"><sup>{number}</sup> D {point.distance:.2f}, '
        f"loss {point.loss:.2f} nats<br>{picture}</div>"
    )


# ======================================================================== 3. ar_opd: the views


def see_ar_opd(method, cases, setting):
    """The residual of every token, from the student under three prompts."""
    seen, args = [], method.Args(rho=setting.args.rho)
    for case in cases:
        if not case.row["solution"]:
            seen.append("This method needs a worked solution to show, and this row has none.")
            continue
        ids = case.ids
        prompts = {
            name: prompt_ids(setting.tokenizer, turn)
            for name, turn in method.views(case.row, args).items()
        }
        logp = {name: score(setting.student, p, ids) for name, p in prompts.items()}  # [N, V] each
        target, _ = method.anchored_target(logp["partial"], logp["full"], args.lam, args.clip)
        own = {name: of_written(x, ids) for name, x in logp.items()}  # [N] each
        residuals = (own["full"] - own["partial"]).tolist()
        shown = zip(*(own[name].exp().tolist() for name in ("plain", "partial", "full")), residuals)
        notes = [
            f"student {s:.3f}   partial {p:.3f}   full {f:.3f}   residual {r:+.2f}"
            for s, p, f, r in shown
        ]
        named = {
            "student": logp["plain"],
            "shown a part of the solution": logp["partial"],
            "shown all of it": logp["full"],
            "target": target,
        }
        readers = {name: favourites(setting.tokenizer, x, ids) for name, x in named.items()}
        s = Seen(residuals, notes, readers, case.wrong)
        s.beside.append(("solution", [case.row["solution"]], None))
        s.marked, note = find_shortcuts(case)
        s.said += note
        s.more.append((strongest(case.texts, s), ""))
        seen.append(s)
    return seen


def find_shortcuts(case):
    """(numbers of the tokens that belong to shortcuts, lines about it). Outside of the toy's
    language only words can tell, and no token is marked."""
    if case.report is None:
        appeals = diagnostics.shortcut(case.row["problem"], "".join(case.texts))
        return set(), ["appeals to an unseen solution"] if appeals else []
    inside = {
        i
        for i, (start, end) in enumerate(offsets(case.texts))
        if any(start < step.end and step.start < end for step in case.report.shortcuts)
    }
    return inside, ["a shortcut"] if inside else []


def strongest(texts, seen):
    """For a terminal: the five strongest tokens."""
    by_size = sorted(range(len(texts)), key=lambda i: -abs(seen.values[i]))[:5]
    words = {i: harmless(texts[i]).strip() or "_" for i in sorted(by_size)}
    return "\n".join(f"    {word:<12} {seen.notes[i]}" for i, word in words.items())


# ======================================================================== 4. hindsight_sd: credit

CONTINUATIONS = 16  # samples that go on from each of the two tokens at tau


def peers_of(method, row, group, setting):
    """(verdicts of the group, number of each one's peer or None, token ids of its prompt)."""
    seed, longest = setting.args.seed, setting.args.max_new_tokens
    run_args = method.Args(max_new_tokens=longest, samples=len(group), seed=seed)
    found = method.build_contexts([row], group, setting.tokenizer, run_args, 1)
    return found.right, found.peers, found.prompts


def first_failure(method, row, group, setting):
    """Number of the first failed rollout that leaves its peer, or None."""
    right, peers, _ = peers_of(method, row, group, setting)
    for _, ids, _, _ in credit.failures(group, right, peers, len(group)):
        return next(i for i, c in enumerate(group) if c.ids is ids)
    return None


def see_hindsight_sd(method, cases, setting):
    """The credit of every token, from the student before and after it has seen a peer."""
    seen, failed = [], []  # failed: what credit.continuations needs, and the Seen
    for q, case in enumerate(cases):
        found = peers_of(method, case.row, case.group, setting)
        right, peer, prompt = (x[case.shown] for x in found)
        if prompt is None:
            seen.append("This rollout has no peer, and this method leaves it out.")
            continue
        ids, row = case.ids, case.row
        alone = prompt_ids(setting.tokenizer, privileged_prompt(row["prompt"], None, row["answer"]))
        after = "shown the answer alone" if peer is None else "shown answer and peer"
        logp = {"student": row["ids"], "shown the answer alone": alone, after: prompt}
        logp = {name: score(setting.student, p, ids) for name, p in logp.items()}  # [N, V] each
        own = {name: of_written(x, ids) for name, x in logp.items()}  # [N] each
        credits = {name: (x - own["student"]).tolist() for name, x in own.items()}
        notes = [
            f"credit {a:+.2f} nats, {b:+.2f} with the answer alone"
            for a, b in zip(credits[after], credits["shown the answer alone"])
        ]
        readers = {name: favourites(setting.tokenizer, x, ids) for name, x in logp.items()}
        s = Seen(credits[after], notes, readers)
        seen.append(s)
        if peer is None:
            s.said.append("no other rollout of its group is right, so it has no peer")
            continue
        peer = case.group[peer].ids
        s.framed = tau = credit.leaves(ids, peer)
        s.beside.append(("peer (right)", setting.texts(peer), tau))
        if tau is not None:
            there = [x[tau, peer[tau]].exp().item() for x in logp.values()]
            token = harmless(setting.tokenizer.decode([peer[tau]])).strip()
            s.said.append(
                f"the peer wrote {token!r} there: probability {there[0]:.2f} before, "
                f"{there[1]:.2f} shown the answer, {there[2]:.2f} shown the peer"
            )
            failed += [] if right else [((q, ids, peer, tau), s)]
    if failed and setting.args.kind == "hindsight_sd":  # it takes time
        go_on(cases, failed, setting)
    return seen


def go_on(cases, failed, setting):
    """Was the token at tau the cause? Says how often the student is right from there."""
    own_shares, peer_shares = credit.continuations(
        setting.student,
        setting.tokenizer,
        [case.row for case in cases],
        [failure for failure, _ in failed],
        n=CONTINUATIONS,
        max_new_tokens=setting.args.max_new_tokens,
        seed=setting.args.seed,
    )
    for (_, s), own_share, peer_share in zip(failed, own_shares, peer_shares):
        s.said.append(
            f"going on from there is right {100 * own_share:.0f} % with its own token, "
            f"{100 * peer_share:.0f} % with the peer's ({CONTINUATIONS} samples each)"
        )


# ======================================================================== 5. grpo: the group


def see_grpo(method, cases, setting):
    """The advantage of the rollout, which is that of each of its tokens, and of its group."""
    seen = []
    for case in cases:
        G, ids = len(case.group), case.ids
        if G < 2:
            seen.append("This method compares the rollouts of a group: --samples 2 or more.")
            continue
        args = method.check(method.Args(samples=G))
        _, right = method.verdicts(setting.tokenizer, [case.row], case.group, G)
        advantages = method.advantages([float(r) for r in right], G, args.advantage).tolist()
        own = advantages[case.shown]
        logp = score(setting.student, case.row["ids"], ids)  # [N, V]
        readers = {"student": favourites(setting.tokenizer, logp, ids)}
        s = Seen([own] * len(ids), [f"advantage {own:+.2f}"] * len(ids), readers, case.wrong)
        s.said.append(f"{sum(right)} of {G} rollouts of its group are right")
        if len(set(right)) == 1:
            s.said[0] += ": no advantage, so nothing is learned from this group"
        lines = []  # (is it shown?, advantage and verdict, text)
        for i, (ok, advantage, c) in enumerate(zip(right, advantages, case.group)):
            text = "".join(setting.texts(c.ids)).strip()
            lines.append((i == case.shown, f"{advantage:+.2f} {'right' if ok else 'wrong'}", text))
        s.more.append((group_as_text(lines), group_as_html(lines)))
        seen.append(s)
    return seen


def group_as_text(lines):
    cut = ((">" if shown else " ", a, shorten(harmless(t), 90)) for shown, a, t in lines)
    return "\n".join(f"    {mark} {a}  {t}" for mark, a, t in cut)


def group_as_html(lines):
    items = (f"<li><b>{a}</b>{' (this one)' * shown} {page.escaped(t)}" for shown, a, t in lines)
    return f'<ol class="group">{"".join(items)}</ol>'


# ======================================================================== all methods, and forks

# {name: (module, what it sees, names that are called here)}. A fork has the names of the method
# that it was copied from. The first line that fits decides.
METHODS = {
    "opd": (opd, see_opd, "Args token_loss"),
    "topd": (topd, see_topd, "Args look_ahead divergent soft_targets"),
    "ar_opd": (ar_opd, see_ar_opd, "Args views anchored_target"),
    "hindsight_sd": (hindsight_sd, see_hindsight_sd, "Args build_contexts"),
    "grpo": (grpo, see_grpo, "Args check verdicts advantages"),
}
OPD = (
    "Every token has the loss of its position: how far the student's distribution is from the "
    "teacher's. Pale is agreement. Red is where a gradient would be large."
)
SELF = (
    "There is no second model. What is seen here says something only if the student reads what it "
    "is shown. On the toy use toy/reader: behind its own mistakes toy/student mixes both texts."
)
VIEWS = {
    "opd": View(OPD, "the loss, in opd.py KL(student || teacher)"),
    "topd": View(
        f"{OPD} An underlined token is a candidate. D is the cost of carrying the teacher's next "
        "tokens onto the student's, 0 for the same tokens. A candidate without a number is "
        "dropped, because its D is among the lowest 30 % of the rollouts shown here (in training: "
        "of the batch). A candidate with a number is kept: its D is among the others. Its two "
        "windows stand below the text. A line is mass of the transport plan: the student's token "
        "is drawn to the teacher's.",
        "the loss, in opd.py KL(student || teacher)",
        marked="a candidate",
    ),
    "ar_opd": View(
        "The student itself scores its rollout under three prompts: the plain one, with the first "
        f"part of the solution, with all of it. {SELF}",
        "the residual log q_full - log q_part",
        signed=True,
        marked="a shortcut, a true value before the values it is computed from (toy only)",
    ),
    "hindsight_sd": View(
        "The credit of a token: how much likelier (green) or less likely (red) the same model "
        "finds it once it has seen the answer and a peer, another rollout of the group that is "
        f"right. {SELF}",
        "the credit log p - log s",
        signed=True,
        framed="where rollout and peer part",
    ),
    "grpo": View(
        "Only the verdicts of the group count. So all tokens of a rollout have the same advantage, "
        "the good ones together with the bad ones.",
        "the advantage",
        signed=True,
    ),
}


def load_fork(path):
    """(name, module, the method it was copied from) of a file."""
    require(Path(path).is_file(), f"There is no file '{path}'.")
    name = Path(path).stem
    require(
        name not in sys.modules,
        f"There is another '{name}' already; rename '{path}', so that both can be told apart.",
    )
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    for kind, (_, _, names) in METHODS.items():
        if all(hasattr(module, n) for n in names.split()):
            return name, module, kind
    known = "; ".join(f"{kind}: {names}" for kind, (_, _, names) in METHODS.items())
    raise Mistake(
        f"'{path}' lacks what look.py calls. A fork keeps these names of the file that it copied "
        f"({known})."
    )


# ======================================================================== main


def parse(argv):
    """The flags. What cannot work is refused before any model is loaded."""
    parser = Parser(__doc__)
    add = parser.add_argument
    one = parser.add_mutually_exclusive_group(required=True)
    said = f"{', '.join(METHODS)}, or the path of a fork, which ends in .py"
    one.add_argument("method", nargs="?", default=SUPPRESS, help=said)
    one.add_argument("--method", help="the same as a flag")
    add("--n", type=int, default=3, help="rollouts to show (default 3)")
    add("--samples", type=int, default=8, help="rollouts of a question, among which hindsight_sd "
        "and grpo compare (default 8)")
    add("--html", metavar="FILE", help="write a page with all methods instead of printing")
    add("--student", help="model that writes (default toy/student; with ar_opd, hindsight_sd and "
        "grpo toy/reader)")
    add("--teacher", help="model that scores in opd and topd (default toy/teacher)")
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
    at_least(args, 1, "n samples max_new_tokens")
    require(0 < args.rho < 1, f"--rho is {args.rho}; it is a share and must lie in (0, 1).")
    if args.window_size is None:
        args.window_size = 12 if is_toy(args.data) else 50
    require(
        args.window_size >= 2,
        f"--window_size is {args.window_size}; a window needs at least 2 tokens.",
    )
    if args.html:
        check_writable(args.html, "--html")
    if args.method.endswith(".py"):
        args.method, args.module, args.kind = load_fork(args.method)
    else:
        known = f"use {', '.join(METHODS)}, or the path of a fork, as in mine.py"
        require(args.method in METHODS, f"'{args.method}' is no method; {known}.")
        args.module, args.kind = METHODS[args.method][0], args.method
    needs_teacher = args.kind in ("opd", "topd")
    args.student = args.student or ("toy/student" if needs_teacher else "toy/reader")
    if not args.html and not needs_teacher:
        args.teacher = None
    elif needs_teacher or is_toy(args.student):  # it knows the toy's words only
        args.teacher = args.teacher or "toy/teacher"
    require(
        args.samples > 1 or args.kind not in ("hindsight_sd", "grpo"),
        f"--samples is 1, and {args.method} compares the rollouts of a question; use 2 or more.",
    )
    return args


def main(argv=None):
    args = parse(argv)
    device = pick_device(args.device)
    rows, tokenizer = load_benchmark(args.data, "test"), load_tokenizer(args.student)
    require(
        args.kind != "ar_opd" or all(r["solution"] for r in rows),
        f"'{args.data}' has rows without a solution for the views to show; use toy, gsm8k, or a "
        "file with problem, answer and solution.",
    )
    if args.teacher:
        same_tokenizer(tokenizer, load_tokenizer(args.teacher))
    chosen = [rows[i] for i in prompts_of_step(1, args.n, len(rows), args.seed)]
    ask_in_known_words(tokenizer, rows)
    check_prompts(tokenizer, [r["prompt"] for r in chosen], args.data)
    dtype = compute_dtype("auto", device)
    student = load_model(args.student, device, dtype, tokenizer)
    teacher = load_model(args.teacher, device, dtype, tokenizer) if args.teacher else None
    setting = Setting(student, teacher, tokenizer, args)

    # A page shows all methods. The terminal shows one, and only two of them need a whole group.
    asked = {args.method: (args.kind, args.module)}
    if args.html:
        asked = {name: (name, of[0]) for name, of in METHODS.items()} | asked
    elif args.kind not in ("hindsight_sd", "grpo"):
        args.samples = 1
    cases = draw(setting, rows, args.module, args.kind == "hindsight_sd")
    require(
        cases,
        "No failed rollout with a successful one beside it was found: the model nearly always "
        "fails, or never, on these problems.",
    )
    seen = {}  # {method: what it sees in each Case}
    for name, (kind, module) in asked.items():
        seen[name] = METHODS[kind][1](module, cases, setting)
    rollouts = [
        as_rollout(case, {name: of_all[i] for name, of_all in seen.items()})
        for i, case in enumerate(cases)
    ]

    views = {name: VIEWS[kind] for name, (kind, _) in asked.items()}
    if args.html:
        text = page.document(f"Rollouts of {args.student}", views, rollouts, args.method)
        write_text(args.html, text)
        print(f"wrote {args.html}")
    else:
        print(as_text(views[args.method], args.method, rollouts))


if __name__ == "__main__":
    run_script(main)
