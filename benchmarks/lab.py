"""The laboratory: does each method do what its paper says, at a fair setting?

    python benchmarks/lab.py                 make the next missing runs, one after the other
    python benchmarks/lab.py --jobs 2        two at a time, one thread each
    python benchmarks/lab.py --status        what is done, what is missing
    python benchmarks/lab.py --times         the time of an update of every arm, on a quiet machine
    python benchmarks/lab.py --report        write RESULTS.md and its pictures from the lines
    python benchmarks/lab.py --quick         the machinery in ten minutes: two arms, two seeds

A finished run is one line in benchmarks/results/. Nothing else is needed for the report. The
queue can be stopped at any time (Ctrl-C) and goes on where it was. Several machines can share
it: `--share 1/3` takes every third run. Put their lines into the same files afterwards.

THE PROTOCOL, written on 24 November 2026, before the first line of results.

1. Splits. Training problems to learn from; toy-validation (1,002 problems) to choose settings;
   toy (2,001 problems) and toy-heldout (1,002 longer ones) for the verdict. No setting is chosen
   on the last two. A run of the stage `pilot` never sees them.
2. Pilots, one budget for all arms: at most ten runs with the first pilot seed, and three with the
   second. First three learning rates, a factor of three apart, at the paper's value of the knob.
   Then the other values of the knob at the best of these rates. (The knob is what the paper leaves
   open or what is known to matter; the paper's own value is among its values.) Then the best
   setting so far gets the learning rates beside it, until both of them have been tried: the chosen
   rate must not lie at the edge. The two best settings, and the best one with the paper's value,
   run with the second seed, too. The setting with the best mean validation accuracy after the last
   update is the tuned one. "The paper's setting" is the paper's value of the knob with the best
   learning rate for it. (The learning rates of the papers are for models a thousand times as
   large.)
   [28 November] What is chosen after the second seed gets the rates beside it, too, while the ten
   pilots last. A pilot that ends without a finite loss counts as 0 %. TOPD's paper gives no
   lambda: "the paper's setting" is our default there, and so it is for DAPO's reuse.
   [29 November] The program did not keep the limit of three runs with the second seed: "answer
   only" made six and "GRPO + answer" four. Now it does.
   A run makes 80 updates of 32 rollouts: 8 prompts x 4 (T), 32 x 1 (A), 4 questions x 8 (H).
3. Confirmation. Eight fresh seeds on the shipped models for the arms of the headline claims, four
   for the others; four on the second set of models (toy/pair1). Every arm at the paper's setting
   and at the tuned one. All arms of a seed see the same problems in the same order, so differences
   are paired by seed.
   [29 November, before the first such line] The second set comes from the first seed of
   toy/build.py, counted from 1, whose models are what their names say: greedy, the teacher at least
   95 % on the test problems and 80 % on the longer ones, student and reader 15 to 35 %, reader2 at
   least 25 %. Seed 1 is not: its teacher has 29 % on the longer problems, its student 14 %, its
   reader2 14 % (the table of that command, 1,000 problems; reader2: evaluate.py --limit 200).
   [29 November, after seed 2 was built and before any run on it] Seed 2 meets all of this but one:
   its student has 39 %, above the 35 %. (Teacher 97 and 87 %, reader 31 %, reader2 54 %.) We take
   it all the same. There is room enough above 39 %, and no method had been run on these models.
   [29 November, after the first such lines] TOPD's runs are made again, because one rule of topd.py
   had changed. A line with "again" takes the place of the older line with the same key.
4. Verdicts. A claim "A is better than B" is judged by the paired difference of test accuracies,
   A - B, with its 95 % interval by Student's t over the eight seeds:
   holds            if the whole interval lies above 0,
   does not hold    if the whole interval lies below half of the difference that the paper reports,
                    or below 1 point where the paper reports no number,
   cannot be told   otherwise; then the half-width of the interval says what could have been seen.
   [28 November, before the first such line] A claim "A does not hurt, compared with B" holds if the
   whole interval lies above -1 point, and does not hold if it lies below 0. Headline claims have no
   verdict before all eight seeds are there, the others none before four. Only the headline family
   is corrected for being several.
   [29 November, after the lines of A2] Where the base has less than one point to be gained, the
   rule of 1 point says nothing, and there is no verdict.
   The headline family is T5, A1 (AR-OPD against Full), H4 (HSD against GRPO, and against answer
   only). Its p values (paired t) are corrected by Holm's method; "holds" needs the corrected
   p < .05.
   Both verdicts are printed, at the paper's setting and at the tuned one.
5. Equal time. Beside equal updates, arms are compared at the time at which the base arm has made
   its updates. The time of an update comes from runs side by side (`--times`), not from the
   seconds of the queue. [28 November] The curve along a run has 300 problems only. So the headline
   arms also run with as many updates as fit into that time (stage `time`, tuned setting).
6. Controls run at the tuned setting of their arm, with four seeds. They change one thing.
   [29 November, before the first such line] Controls that a paper's claim names also run at the
   paper's setting. The two controls of HSD with a wrong peer have eight seeds, because HSD gains
   little here.
7. The long budget: the best arms of each family with three times the updates, four seeds. A method
   that is ahead at the end of the short budget and behind at the end of the long one has not won.
8. Null results and failures stand where they fall.
9. [29 November, before the first such line] The scripts as they are: eight seeds of `python
   ar_opd.py` and `python hindsight_sd.py` with no other flag, before and after.
10. [29 November] Verdicts are on greedy accuracy, as ever. Beside them stand the same differences
   at temperature 1 (100 test problems x 8) and on the longer problems. They were in the lines from
   the beginning, but nobody had looked at them. They are without a verdict.
11. [29 November, after half of the controls] To save time, controls and runs on the second set of
   models look at 20 validation problems instead of 300, and only before the first and after the
   last update. So do the runs of the stage `time`. These looks change no weight and are in no
   verdict. The health of a self-teacher is still measured at both ends.
12. [29 November, after the lines of H7] HSD's pilots chose the teacher and the rate, and kept the
   answer as fallback. In H7 the control without this fallback was better, at the paper's setting.
   So "HSD (mask)" is an arm of its own: --fallback mask, with pilots like every other arm, and
   eight seeds. It is there because of test results, and HSD has had two sets of pilots by it, the
   other arms one. So none of its claims is a headline.
13. [29 November, after the lines] T4 is one comparison in the paper: damping the low-D candidates
   against damping as many high-D ones. It has a row now, beside its two halves. A6's row ".6 is
   better than 1" is gone, since in the paper .6 is not better: ".8 is better than 1" takes its
   place. The paper has a number for A2 (0.46 and 0.36 % of the responses), so the rule that was
   added to point 4 for it is not needed. Where a whole interval lies below 0, the verdict says so.
   The two controls with eight seeds (point 6) have no verdict before all eight are there.
14. [29 November, after the pilots of "HSD (mask)"] These pilots ended higher than HSD's. So the
   toy's defaults of hindsight_sd.py are theirs now: --fallback mask, the current student as the
   teacher, a rate of 1e-4. Its eight runs of point 9 are made again. Until then the table has those
   with "again" only.
15. [29 November, before any of these lines but three] What is left out, so that the queue ends.
   Other starts: HSD, HSD (mask) and GRPO run from them, at the tuned setting only. Equal time: HSD
   does not run, since it is behind GRPO at equal updates, and an update of it takes longer. The
   long budget: "answer only" does not run, since its weights hardly move. The dial of rho compares
   AR-OPD with Full, and not with Partial. (One run of HSD from toy/reader and two of Partial with
   rho .25 had been made. They stay in the files.)
16. [29 November, before the first such line] Point 14 was too quick: its pilots have a third of the
   rollouts that `python hindsight_sd.py` makes. Five of the eight runs of point 9, made again, end
   at 34.3 % on average, with the older defaults it had been 36.4 %. So the script gets pilots with
   its own budget (SCRIPT_PILOTS in lab_arms.py, the older and the newer defaults among them): the
   first pilot seed, then the second one for the best two. The best mean validation accuracy decides
   the toy's defaults, and the eight runs of point 9 are those of this setting.
   `python grpo.py` runs as it is, too. Its defaults have no pilots with this budget, so the two
   scripts side by side say what a user sees, and are no verdict. (The older lines of point 9 have
   the name of their defaults now, where "as it is" or "again" stood. Nothing else in them changed.)
"""

import contextlib
import hashlib
import importlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from lab_arms import (  # noqa: E402
    ARMS,
    CLAIMED,
    CONTROLS,
    EIGHT_SEEDS,
    EQUAL_TIME,
    HEADLINE,
    LONG,
    SCRIPT_PILOTS,
    STARTS,
)

from common.arguments import Mistake, Parser, require, run_script  # noqa: E402
from common.files import lock, read_json, read_jsonl, unlock, write_json, write_text  # noqa: E402
from common.flags import at_least  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PILOT_SEEDS, SEEDS, FEW = [1001, 1002], range(101, 109), range(101, 105)
TESTS, HEALTH = ["toy", "toy-heldout"], 100  # problems for the health of a self-teacher
# Half of the scripts' own batch: hundreds of runs of some minutes fit two cores.
UPDATES, PROMPTS = 80, {"T": 8, "A": 32, "H": 4}
DEFAULT_UPDATES = 120  # --steps of the scripts on the toy
PILOTS = "pilot", "script pilot"  # the second: with the budget of the script
AS_IT_IS = "script", "script pilot"

# ======================================================================== a run


@dataclass
class Job:
    """One run: everything that its line needs to be told apart from others."""

    stage: str  # start, confirm, script, control, time, long; PILOTS see no test problem
    arm: str  # of the stage start: nothing, since nothing is trained
    knob: str
    rate: float
    seed: int
    start: str
    pair: int = 0  # 0: the shipped models; 1: toy/pair1
    updates: int = UPDATES
    control: str = ""
    flags: list = field(default_factory=list)

    @property
    def key(self):
        """Equal for equal runs. A confirmation at the paper's setting that is also the tuned
        setting is one run."""
        split = "validation" if self.stage in PILOTS else "test"
        parts = [split, self.control or self.arm, self.knob, f"lr {self.rate:g}", self.start]
        return " / ".join([*parts, f"pair {self.pair}", f"{self.updates}", f"seed {self.seed}"])

    @property
    def folder(self):
        name = hashlib.sha256(self.key.encode()).hexdigest()[:16]
        return ROOT / "runs" / "lab" / name


def model(name, pair):
    return f"toy/{'pair1/' if pair else ''}{name}"


def command(job):
    """The script and its flags, as somebody would type them."""
    if "--data" in job.flags:
        write_style(job.flags[job.flags.index("--data") + 1])
    arm = ARMS[job.arm]
    if job.stage in AS_IT_IS:  # but without the looks along the way, to save time
        few = ["--benchmark", "toy-validation", "--eval_every", "0", "--eval_n", "20"]
        flags = ["--seed", str(job.seed), "--device", "cpu", *few, "--show_every", "0"]
        flags += ["--lr", f"{job.rate:g}", *job.flags] if job.stage == "script pilot" else []
        return arm.script, flags
    flags = [*arm.flags, *arm.knobs.get(job.knob, []), "--lr", f"{job.rate:g}"]
    flags += ["--student", model(job.start, job.pair)]
    if arm.family == "T":
        flags += ["--teacher", model("teacher", job.pair)]
    # The curve along the way is validation accuracy, too. Only the runs of the figure need one.
    curve = ["--eval_n", "20", "--eval_every", "0"]
    if job.stage in ("confirm", "long") and job.pair == 0:
        curve = ["--eval_n", "300", "--eval_every", str(job.updates // 4)]
    flags += ["--prompts", str(PROMPTS[arm.family])] if "--prompts" not in flags else []
    flags += ["--data", "toy", "--benchmark", "toy-validation", *curve]
    flags += ["--show_every", "0"]
    flags += ["--steps", str(job.updates), "--seed", str(job.seed), "--device", "cpu"]
    flags += job.flags  # of two equal flags the last one counts
    script = "topd.py" if "--guidance" in job.flags else arm.script
    if script == "topd.py" and arm.script == "opd.py":
        flags = [f for f in flags if f not in ("--divergence", job.knob)]
    return script, flags


def write_style(path):
    """The training problems of one style: runs/lab/terse.jsonl or runs/lab/verbose.jsonl."""
    path = ROOT / path
    rows = [r for r in read_jsonl(ROOT / "toy" / "train.jsonl") if r["style"] == path.stem]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(r) + "\n" for r in rows))


@contextlib.contextmanager
def prepared(module, job):
    """Inside of the block, the method's module is that of the arm or the control, and the health
    of a self-teacher is written down."""
    from lab_swaps import SWAPS, swapped

    swap = CONTROLS[job.control][2] if job.control else ARMS[job.arm].swap
    if job.stage in AS_IT_IS:
        yield
        return
    with swapped(module, SWAPS[swap][1] if swap else {}):
        with swapped(module.Run, {"log": watchful(module, job)}):
            yield


def execute(job):
    """Train, evaluate the final model, and return the line."""
    import torch

    torch.set_num_threads(1)
    os.chdir(ROOT)  # the names of models and data files begin there
    if job.stage == "start":
        splits = [*TESTS, "toy-validation"]  # the last one to compare the pilots with
        found = {s: final_accuracy(ROOT / model(job.start, job.pair), s) for s in splits}
        return {"key": job.key, **asdict(job), **ORIGIN, "course": {}, **found, "seconds": 0}
    script, flags = command(job)
    module = importlib.import_module(script.removesuffix(".py"))
    out, began = job.folder, time.time()
    resume = ["--resume"] if (out / "config.json").exists() else []
    commits = commits_of(out)
    line = {"key": job.key, **asdict(job), "command": " ".join([script, *flags]), **ORIGIN}
    line["commit"] = "+".join(commits)
    if not (out / "final").exists():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "commits.json", {"commits": commits})
        try:
            with prepared(module, job):
                module.main([*flags, "--out", str(out), *resume])
        except Mistake as error:  # for example three updates without a finite loss
            nothing = {"accuracy": 0.0, "failed": str(error)}
            if job.stage not in PILOTS or "not finite" not in str(error):
                raise
            return line | {"toy-validation": nothing, "seconds": round(time.time() - began)}
    rows = read_jsonl(out / "metrics.jsonl")
    line["curve"] = [[r["step"], r["eval"]["accuracy"]] for r in rows if "eval" in r]
    for split in ["toy-validation"] if job.stage in PILOTS else TESTS:
        line[split] = final_accuracy(out / "final", split)
    line["course"] = course([r for r in rows if "tokens" in r])
    if (out / "health.jsonl").exists():
        line["health"] = read_jsonl(out / "health.jsonl")
    line["seconds"] = round(time.time() - began)
    return line


def commits_of(out):
    """The commit that began the run in this folder, and others that went on with it."""
    file = out / "commits.json"
    before = json.loads(file.read_text()) if file.exists() else []
    before = before["commits"] if isinstance(before, dict) else before  # older folders: a list
    return list(dict.fromkeys([*before, ORIGIN["commit"]]))


def watchful(module, job):
    """Run.log, which at every evaluation also looks at the self-teacher. A run that falls is
    explained by what falls first. Pilots are left out: they are for choosing."""
    original = module.Run.log

    def log(run, step, **row):
        original(run, step, **row)
        if "eval" in row and job.stage not in PILOTS:
            found = health(run, module)
            if found:
                with open(run.out / "health.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, **found}) + "\n")

    return log


def health(run, module):
    """Greedy accuracy of the teacher's weights on the first training problems: under the
    privileged view of the run, and under the same view of another problem. (A peer comes from the
    data file here.) None if nothing is shown to anybody."""
    from lab_swaps import frozen

    from common.data import privileged_prompt
    from common.gate import gate, other_rows

    args, rows = run.args, run.rows[:HEALTH]
    others = [rows[o] for o in other_rows(rows)]
    if module.__name__ == "ar_opd" and args.target != "sft":
        view = "partial" if args.target == "partial" else "full"
        stranger = [{**o, "prompt": r["prompt"]} for r, o in zip(rows, others)]
        right = [module.views(r, args)[view] for r in rows]
        wrong = [module.views(s, args)[view] for s in stranger]
    elif module.__name__ == "hindsight_sd":
        peers = [(r["peer"], o["peer"]) if args.context == "peer" else (None, None)
                 for r, o in zip(rows, others)]
        right = [module.context(r, own, args) for r, (own, _) in zip(rows, peers)]
        wrong = [privileged_prompt(r["prompt"], theirs, o["answer"])
                 for r, o, (_, theirs) in zip(rows, others, peers)]
    else:
        return None
    weights = run.student if args.teacher == "current" else run.average
    weights = frozen(args.student) if weights is None else weights
    found = gate(run, weights, rows, {"right": right, "wrong": wrong})
    return {name: round(summary["accuracy"], 4) for name, summary in found.items()}


def final_accuracy(folder, split):
    """Accuracy of a final model, with the verdict on every problem as a bit (1: right)."""
    import torch

    from common.data import checker, load_benchmark
    from common.diagnostics import shortcut_share
    from common.evaluation import evaluate
    from common.models import load_model, load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    student = load_model(str(folder), torch.device("cpu"), torch.float32, tokenizer)
    rows = load_benchmark(split)[: 1002 if split == "toy-heldout" else None]
    summary, records = evaluate(student, tokenizer, rows, max_new_tokens=256, bar=False)
    found = {k: round(summary[k], 5) for k in ("accuracy", "mean_tokens", "truncated")}
    # A2: responses in which a true value stands before the values it is computed from
    found["shortcuts"] = round(shortcut_share(records, rows, checker(split)), 5)
    bits = "".join(str(int(r["correct"])) for r in records)
    found |= {"n": len(records), "right": f"{int(bits, 2):x}"}
    if split == "toy-heldout":
        return found
    sampled, _ = evaluate(
        student, tokenizer, rows[:100], n=8, k=8, temperature=1.0, max_new_tokens=256, bar=False
    )
    return found | {k: round(sampled[k], 5) for k in ("pass@1", "pass@8", "distinct")}


def course(rows):
    """Every number of metrics.jsonl, as means over sixths of the run."""
    names = [k for k, v in rows[-1].items() if isinstance(v, (int, float)) and k != "step"]
    size = max(1, math.ceil(len(rows) / 6))
    means = {}
    for name in names:
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        known = [[r[name] for r in part if r.get(name) is not None] for part in parts]
        means[name] = [float(f"{mean(k):.5g}") if k else None for k in known]
    return means


def origin():
    """The commit and the versions of this process."""
    import torch
    import transformers

    def git(*words):
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    code = ["*.py", "common", "toy", "benchmarks/*.py"]
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    commit = git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    return {"commit": commit, "torch": torch.__version__, "transformers": transformers.__version__}


ORIGIN = origin()  # now: a long queue imports its modules once, whatever is committed later

# ======================================================================== choosing


def accuracy(line):
    return line["toy-validation"]["accuracy"]


def settings(lines, arm):
    """{(knob, rate): {seed: validation accuracy}} of the pilots of an arm."""
    found = {}
    for x in lines:
        if x["stage"] == "pilot" and x["arm"] == arm:
            found.setdefault((x["knob"], x["rate"]), {})[x["seed"]] = accuracy(x)
    return found


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def best(found):
    """The settings that have run with both pilot seeds, the best first. Ties go to the smaller
    rate."""
    pool = {s: of for s, of in found.items() if len(of) == len(PILOT_SEEDS)}
    return sorted(pool, key=lambda s: (-mean(pool[s].values()), s[1], s[0]))


def pilots(lines, arm):
    """The pilots that are missing for an arm and can be named now: [(knob, rate, seed)]. Empty:
    it is tuned."""
    spec, found, (one, two) = ARMS[arm], settings(lines, arm), PILOT_SEEDS
    first = {s: of[one] for s, of in found.items() if one in of}
    ranked = sorted(first, key=lambda s: (-first[s], s[1], s[0]))

    def missing(wanted):
        return [(*s, one) for s in wanted if s not in first]

    main = spec.paper if spec.paper in spec.knobs else next(iter(spec.knobs))
    rates = missing((main, rate) for rate in spec.rates)
    if rates:
        return rates
    middle = next(s for s in ranked if s[0] == main and s[1] in spec.rates)[1]
    others = missing((knob, middle) for knob in spec.knobs)
    if others:
        return others
    knob, rate = ranked[0]
    beside = missing((knob, r) for r in (next_rate(rate, -1), next_rate(rate, +1)))
    if beside and len(first) < 10:
        return beside[: 10 - len(first)]
    again = [*ranked[:2], *[s for s in ranked if s[0] == spec.paper][:1]]
    again = [(*s, two) for s in dict.fromkeys(again) if two not in found[s]]
    left = max(0, 3 - sum(two in of for of in found.values()))
    if again[:left]:
        return again[:left]
    ends = chosen_of(found, spec).values()
    beside = missing((k, next_rate(r, way)) for k, r in ends for way in (-1, +1))
    return list(dict.fromkeys(beside))[: max(0, 10 - len(first))]


def next_rate(rate, way):
    """The next learning rate on the scale ... 1e-4, 3e-4, 1e-3, 3e-3 ..."""
    exponent = round(2 * math.log10(rate)) + way
    return float(f"{1 if exponent % 2 == 0 else 3}e{exponent // 2}")


def chosen(lines, arm):
    """{"tuned": (knob, rate), "paper": (knob, rate)} of an arm whose pilots are done."""
    return chosen_of(settings(lines, arm), ARMS[arm])


def chosen_of(found, spec):
    ranked = best(found)
    papers = [s for s in ranked if s[0] == spec.paper]
    return {"tuned": ranked[0]} | ({"paper": papers[0]} if papers else {})


# ======================================================================== the queue


def confirmations(lines, arm, pair, seeds):
    spec, two = ARMS[arm], chosen(lines, arm)
    for seed in seeds:
        for knob, rate in dict.fromkeys(two.values()):
            yield Job("confirm", arm, knob, rate, seed, spec.start, pair)


def queue(lines):
    """All runs that the protocol asks for and that can be named now, in their order. A run whose
    setting is not chosen yet is not in it."""
    order = [*HEADLINE, *(a for a in ARMS if a not in HEADLINE)]
    jobs = [Job("start", "", "", 0.0, 0, s, pair, 0) for pair, s in starts()]
    for arms in (HEADLINE[:6], order[6:]):
        for arm in arms:
            jobs += [
                Job("pilot", arm, knob, rate, seed, ARMS[arm].start)
                for knob, rate, seed in pilots(lines, arm)
            ]
        for arm in [a for a in arms if not pilots(lines, a)]:
            jobs += confirmations(lines, arm, 0, SEEDS if arm in HEADLINE else FEW)
    jobs += script_pilots(lines)
    jobs += [
        Job("script", arm, label, 0.0, s, ARMS[arm].start, updates=DEFAULT_UPDATES)
        for arm, label in (
            ("HSD", script_chosen(lines)), ("AR-OPD", "as it is"), ("GRPO", "as it is")
        )
        for s in SEEDS
        if label
    ]
    tuned = [a for a in order if not pilots(lines, a)]
    for name, (arm, flags, _) in CONTROLS.items():
        if arm in tuned:
            two, start = chosen(lines, arm), ARMS[arm].start
            for knob, rate in dict.fromkeys(two.values() if name in CLAIMED else [two["tuned"]]):
                jobs += [
                    Job("control", arm, knob, rate, s, start, control=name, flags=flags)
                    for s in (SEEDS if name in EIGHT_SEEDS else FEW)
                ]
    for arm in tuned:
        if complete(1):
            jobs += confirmations(lines, arm, 1, FEW)
        if arm in STARTS:  # a dial: how often the student is right at the start
            knob, rate = chosen(lines, arm)["tuned"]
            others = [s for s in ("reader", "reader3") if (ROOT / model(s, 0)).is_dir()]
            jobs += [Job("confirm", arm, knob, rate, s, o) for o in others for s in FEW]
    for arm in [a for a in LONG if a in tuned]:
        knob, rate = chosen(lines, arm)["tuned"]
        jobs += [
            Job("long", arm, knob, rate, s, ARMS[arm].start, updates=3 * UPDATES) for s in FEW
        ]
    for arm, base in EQUAL_TIME:
        updates = fitting_updates(arm, base)
        if arm in tuned and updates:
            knob, rate = chosen(lines, arm)["tuned"]
            jobs += [
                Job("time", arm, knob, rate, s, ARMS[arm].start, updates=updates) for s in SEEDS
            ]
    return jobs


def script_pilots(lines):
    """Point 16: every setting with the first pilot seed, then the best two with the second."""
    found = script_settings(lines)
    first = {label: of[PILOT_SEEDS[0]] for label, of in found.items() if PILOT_SEEDS[0] in of}
    ranked = sorted(first, key=lambda label: (-first[label], label))
    second = ranked[:2] if len(first) == len(SCRIPT_PILOTS) else []
    return [
        Job("script pilot", "HSD", label, rate, seed, "reader2", updates=DEFAULT_UPDATES,
            flags=flags)
        for label, (rate, flags) in SCRIPT_PILOTS.items()
        for seed in PILOT_SEEDS[: 2 if label in second else 1]
    ]


def script_chosen(lines):
    """The best mean of two seeds: what the toy's defaults of hindsight_sd.py are. None: not yet."""
    whole = {k: of for k, of in script_settings(lines).items() if len(of) == len(PILOT_SEEDS)}
    if any(job.key not in {x["key"] for x in lines} for job in script_pilots(lines)):
        return None
    return min(whole, key=lambda label: (-mean(whole[label].values()), label), default=None)


def script_settings(lines):
    """{label: {seed: validation accuracy}} of the pilots with the script's own budget."""
    found = {}
    for x in lines:
        if x["stage"] == "script pilot":
            found.setdefault(x["knob"], {})[x["seed"]] = accuracy(x)
    return found


def known_times(which="times"):
    """{arm: time of an update}, relative to the arm's base, or in `seconds` on one core; `ranges`:
    the smallest and the largest ratio of a round."""
    file = RESULTS / "times.json"
    return read_json(file).get(which, {}) if file.exists() else {}


def fitting_updates(arm, base):
    """So many updates of an arm take the time of UPDATES updates of its base. None: not known."""
    times = known_times()
    return round(UPDATES * times[base] / times[arm]) if {arm, base} <= set(times) else None


def starts():
    """(pair, name) of the models that are there."""
    names = ("student", "teacher", "reader", "reader2", "reader3")
    return [
        (p, n) for p in (0, 1) for n in names if complete(p) and (ROOT / model(n, p)).is_dir()
    ]


def complete(pair):
    """Are the models of a pair there? It takes most of an hour to build them, one by one."""
    names = ("student", "teacher", "reader", "reader2")
    return all((ROOT / model(name, pair)).is_dir() for name in names)


def all_lines(folder=RESULTS):
    # Beside them lies words.jsonl, which has lines of another kind.
    files = [Path(folder) / f"{family}.jsonl" for family in ("A", "H", "T", "start")]
    found = [x for file in files if file.exists() for x in read_jsonl(file)]
    return list({x["key"]: x for x in found}.values())


def missing(lines, share=(1, 1), only=None):
    have, (number, of) = {x["key"] for x in lines}, share
    for job in {j.key: j for j in queue(lines)}.values():
        mine = int(hashlib.sha256(job.key.encode()).hexdigest(), 16) % of == number - 1
        if mine and job.key not in have and (only is None or job.arm in only):
            yield job


def claim(job):
    """True if no other process of this machine works on the run. A killed process leaves no claim
    behind."""
    place = job.folder / "claimed"
    place.mkdir(parents=True, exist_ok=True)
    try:
        lock(place)
    except Mistake:
        return False
    return True


def append(line, family):
    """One line more, written at once, so that two processes cannot mix theirs."""
    RESULTS.mkdir(exist_ok=True)
    handle = os.open(RESULTS / f"{family}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(handle, (json.dumps(line) + "\n").encode())
    os.close(handle)


def work(share, only, most):
    """Make missing runs until none is left, one after the other."""
    made = 0
    while made < most:
        job = next((j for j in missing(all_lines(), share, only) if claim(j)), None)
        if job is None:
            return
        if job.key in {x["key"] for x in all_lines()}:  # finished between reading and claiming
            unlock(job.folder / "claimed")
            continue
        print(f"{time.strftime('%H:%M')} {job.key}", flush=True)
        log = job.folder / "log"
        with open(log, "a") as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
            line = execute(job)
        append(line, ARMS[job.arm].family if job.arm else "start")
        unlock(job.folder / "claimed")
        split = "toy-validation" if job.stage in PILOTS else "toy"
        print(f"      {100 * line[split]['accuracy']:.1f} % after {line['seconds']} s", flush=True)
        made += 1


def status(lines):
    stages = "start", *PILOTS, "confirm", "script", "control", "long", "time"
    for stage in stages:
        done = sum(x["stage"] == stage for x in lines)
        left = sum(j.stage == stage for j in missing(lines))
        print(f"{stage:<12} {done} done, {left} that can be named now are missing")
    for arm in ARMS:
        if not pilots(lines, arm):
            print(f"{arm:<16} {chosen(lines, arm)}")


# ======================================================================== times, and a quick look


BASES = {"T": "OPD", "A": "Full", "H": "GRPO"}


def times(updates=6, rounds=6):
    """The time of an update, relative to the base of the arm's family. All arms make a few updates
    in turn, so whatever else the machine does slows all of them alike. Every round has a ratio of
    its own. Their median counts, and their range says how far to trust it."""
    seconds = {arm: [] for arm in ARMS}
    for number in range(rounds):
        for arm, spec in ARMS.items():
            knob = spec.paper or next(iter(spec.knobs))
            job = Job("pilot", arm, knob, spec.rates[0], number, spec.start, updates=updates)
            script, flags = command(job)
            module = importlib.import_module(script.removesuffix(".py"))
            flags += ["--eval_every", "0", "--eval_n", "1", "--save_every", "0"]
            with tempfile.TemporaryDirectory() as out, open(os.devnull, "w") as nothing:
                with prepared(module, job), contextlib.redirect_stdout(nothing):
                    module.main([*flags, "--out", f"{out}/run"])
                rows = [r for r in read_jsonl(Path(out, "run", "metrics.jsonl")) if "tokens" in r]
            # The first update warms up.
            seconds[arm].append(statistics.median(r["seconds"]["total"] for r in rows[1:]))
        print(f"round {number + 1} of {rounds} done", flush=True)
    found = summary_of_times(seconds)
    write_json(RESULTS / "times.json", {**found, **origin()})
    for arm, (low, high) in found["ranges"].items():
        ratio = f"{found['times'][arm]:.2f} ({low:.2f} to {high:.2f})"
        print(f"{arm:<16} {found['seconds'][arm]:.2f} s  {ratio}")


def summary_of_times(seconds):
    """From {arm: one number of seconds per round}: the ratios to the base arms, their ranges over
    the rounds, and the seconds."""
    ratios = {
        arm: [own / base for own, base in zip(of, seconds[BASES[ARMS[arm].family]])]
        for arm, of in seconds.items()
    }
    return {
        "times": {arm: round(statistics.median(of), 3) for arm, of in ratios.items()},
        "ranges": {arm: [round(min(of), 3), round(max(of), 3)] for arm, of in ratios.items()},
        "seconds": {arm: round(statistics.median(of), 3) for arm, of in seconds.items()},
    }


def quick():
    """Two arms, two seeds, few updates. It tests the machinery, and writes no line. Its numbers say
    nothing about the methods."""
    from lab_report import interval, paired, table

    found = {}
    for arm in ("OPD", "TOPD"):
        for seed in (1, 2):
            spec = ARMS[arm]
            job = Job("quick", arm, spec.paper, 1e-3, seed, spec.start, updates=8)
            shutil.rmtree(job.folder, ignore_errors=True)
            with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
                line = execute(job)
            found.setdefault(arm, {})[seed] = 100 * line["toy"]["accuracy"]
            print(f"{job.key}: {found[arm][seed]:.1f} % after {line['seconds']} s", flush=True)
    rows = [[arm, interval(of.values())] for arm, of in found.items()]
    print(table(["arm", "accuracy after 8 updates"], rows))
    print("TOPD - OPD", interval(paired(found["TOPD"], found["OPD"]), signed=True))


def main():
    p = Parser(__doc__)
    p.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    p.add_argument("--share", default="1/1", help="K/N: every N-th run, of N machines this is K")
    p.add_argument("--only", help='arms, as in --only "AR-OPD,Full" (default: all)')
    p.add_argument("--most", type=int, default=10**9, help="stop after so many runs")
    p.add_argument("--status", action="store_true", help="what is done, what is missing")
    p.add_argument("--times", action="store_true", help="measure the time of an update")
    p.add_argument("--report", action="store_true", help="write RESULTS.md from the lines")
    p.add_argument("--quick", action="store_true", help="only try the machinery")
    args = p.parse_args()
    only = args.only.split(",") if args.only else None
    require(only is None or set(only) <= set(ARMS), f"--only: the arms are {', '.join(ARMS)}.")
    at_least(args, 1, "jobs most")
    which, _, of = args.share.partition("/")
    right = which.isdecimal() and of.isdecimal() and 1 <= int(which) <= int(of)
    require(right, f"--share is {args.share}; it must be K/N with 1 <= K <= N, such as 1/3.")
    if args.status:
        return status(all_lines())
    if args.times:
        return times()
    if args.quick:
        return quick()
    if args.report:
        from lab_report import report

        return report()
    if args.jobs == 1:
        return work((int(which), int(of)), only, args.most)
    again = [sys.executable, __file__, "--share", args.share, "--most", str(args.most)]
    again += ["--only", args.only] if args.only else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen(again, env=environment) for _ in range(args.jobs)]
    for worker in workers:
        worker.wait()


if __name__ == "__main__":
    run_script(main)
