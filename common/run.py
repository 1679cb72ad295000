"""One training run: its models, problems, metrics and checkpoints. No loss and no method.

A method says WHAT is sampled, scored and minimised. A Run does what no paper talks about. The
method calls the Run. The Run never calls the method, has no hooks and is never subclassed.
"""

import signal
import sys

import torch
from safetensors.torch import load_file

from common import checkpoints, fits, models, show, weights
from common.arguments import Mistake, require, shorten
from common.batches import Compute, context_of, fitting_prompts, prompts_of_step
from common.data import (
    BENCHMARKS,
    ask_in_known_words,
    check_prompts,
    checker,
    prompt_ids,
    training_and_tests,
)
from common.evaluation import evaluate
from common.memory import peak_memory
from common.origin import TRAINED_ON, hash_of
from common.processes import connect, gather
from common.size import check_machine
from common.views import print_views, say_margin


def attach_vllm(model, tokenizer, args, dtype):
    """From here on vLLM draws the samples of this model. Other models are not affected."""
    print("starting vLLM, which takes a while ...")
    from common.vllm import attach  # imported only here, because few people have the package

    try:
        attach(model, tokenizer, args, dtype)
    except Mistake:
        raise
    except Exception as error:  # too little memory, an unknown model, no kernel for the machine
        why = f"{type(error).__name__}: {shorten(error, 200)}"
        raise Mistake(f"vLLM could not be started ({why}); use --sampler own.") from None


# ======================================================================== a run


class Run:
    """In the order of a script's main: Run(args, script), load_student, load, begin, the loop
    over updates, finish."""

    def __init__(self, args, script):
        self.args, self.script = args, f"{script}.py"
        self.device = models.pick_device(args.device)
        connect(self.device)
        self.out, self.checkpoint = checkpoints.open_run(args, self.script)
        self.dtype = models.compute_dtype(args.dtype, self.device)
        fits.choose(args, self.device, self.dtype)
        self.tokenizer = models.load_tokenizer(args.student)
        check_machine(args, self.device, self.dtype)
        rows, tests = training_and_tests(args.data, args.benchmark, args.resume)
        self.rows, self.tests = rows, tests[: args.eval_n]
        trained_on = hash_of(rows, TRAINED_ON)
        hashes = {"trained_on": trained_on, "tested_on": hash_of(self.tests)}
        checkpoints.check_problems(self.out, hashes)
        computed_in = str(self.dtype).removeprefix("torch.")
        self.about = {**hashes, "computed_in": computed_in, "sampled_by": args.sampler}
        ask_in_known_words(self.tokenizer, [*rows, *tests])
        # The toy knows the truth about a response. Other data have no check.
        self.check = checker(args.benchmark) or checker(args.data)
        vocabulary = models.vocabulary_size(self.tokenizer)
        self.compute = Compute(args, self.device, self.dtype, vocabulary)
        self.phase, self.autocast = self.compute.phase, self.compute.autocast
        self.check_words("prompt")

    def check_words(self, column):
        """Refuse problems or solutions with words that the tokenizer does not have. The benchmarks
        are alike from their first row to their last. Own data need not be."""
        parts = [(self.rows, self.args.data)]
        parts += [(self.tests, self.args.benchmark)] if column == "prompt" else []
        for rows, name in parts:
            checked = rows[:50] if name in BENCHMARKS else rows
            check_prompts(self.tokenizer, [r[column] for r in checked], name)

    # -------------------------------------------------------------- models

    def load_student(self):
        """The model that learns. Its weights are float32 even if it computes in bfloat16: a step
        of 1e-6 on a bfloat16 weight mostly rounds to nothing. With --lora the weights stay frozen
        in the computation's type, and float32 adapters learn."""
        args = self.args
        if args.lora:
            torch.manual_seed(args.seed)  # an adapter starts as a random matrix times a zero matrix
            frozen = models.load_model(args.student, self.device, self.dtype, self.tokenizer)
            student = weights.adapt(frozen, args.lora)
            if self.checkpoint:
                self._load_adapter(student)
            student.eval()
        else:
            name = self.checkpoint or args.student
            student = models.load_model(name, self.device, torch.float32, self.tokenizer)
        require(
            getattr(student.config, "quantization_config", None) is None,
            f"'{args.student}' has quantised weights, which cannot learn; use the model as it was "
            "before.",
        )
        if fits.with_checkpointing(args, self.device):
            weights.checkpoint_layers(student)
        return student

    def _load_adapter(self, student):
        try:
            state = load_file(self.checkpoint / "adapter.safetensors")
            weights.load_trained(student, state)
        except Exception as error:
            sentence = models.missing_model(self.checkpoint, "adapter", error)
            raise Mistake(sentence) from None

    def load(self, name):
        """A model that never learns, in the computation's type."""
        models.same_tokenizer(self.tokenizer, models.load_tokenizer(name))
        model = models.load_model(name, self.device, self.dtype, self.tokenizer)
        return model.requires_grad_(False)

    # -------------------------------------------------------------- begin

    def begin(
        self, student, optimizer, *, teacher=None, more=(), longest=None, margin=0,
        teacher_cache=False, average=None,
    ):
        """Everything between loading and the first update.

        teacher: a second model, whose memory counts, too. more: other models in memory.
        longest(row): ids of the longest prompt of a row (default: its prompt); rows that do not
        fit are left out. margin: further tokens that must fit. teacher_cache: the teacher keeps
        keys and values of what it reads. average: a moving average, stored in checkpoints.
        """
        args, tokenizer = self.args, self.tokenizer
        self.student, self.optimizer, self.average = student, optimizer, average
        same_prompt = longest is None

        def plain(row):
            return prompt_ids(tokenizer, row["prompt"])

        most = args.max_new_tokens + margin
        readers = [student, *([] if teacher is None else [teacher]), *more]
        self.rows = fitting_prompts(self.rows, longest or plain, readers, most)
        # An evaluation may write more than a rollout, or less, if the context leaves no choice.
        lengths, most = sorted(len(plain(row)) for row in self.tests), args.max_new_tokens
        places = 0, (len(lengths) - 1) // 2, -1
        context = min(context_of(model.config) for model in readers)
        short, middle, long = (context - lengths[i] for i in places)
        if long >= most:
            most = min(max(256, most), long)
        elif short < most:
            most = max(1, middle)  # none fits otherwise; half of them do now
        self.longest_response = most
        self.tests = fitting_prompts(self.tests, plain, readers, most, "test prompts")
        self.start = 0
        if self.checkpoint:
            state = checkpoints.load_state(self.checkpoint, optimizer, self.device)
            self.start = state["step"]
            scale = self.compute.loss_scale
            if scale and "loss_scale" in state:  # not if another type was used until now
                scale.factor, scale.good = state["loss_scale"]
            if average is not None:
                # An average that restarts from the student would be another teacher.
                weights.load_trained(average, state["teacher"])
        resumed_step = self.start if args.resume else None
        self.metrics = checkpoints.Metrics(self.out, resumed_step)
        self.fresh = self.start == 0 and not self.metrics.rows
        show.announce(self.script, self, teacher, more, teacher_cache)
        fits.check_disk(self.out, student, args.adam_bits, average)
        if same_prompt:  # a self-teacher's script prints what its views show
            names = ("student",) if teacher is None else ("student", "teacher")
            print_views(self.rows[0], **dict.fromkeys(names, self.rows[0]["prompt"]))
        if args.sampler == "vllm":
            attach_vllm(student, tokenizer, args, self.dtype)
        # Nothing can be refused any more: from here on the folder holds a run.
        checkpoints.write_config(self.out, args, self.script, self.about)

    # -------------------------------------------------------------- the loop

    def updates(self):
        """The numbers of the updates that are left. Sets the learning rate before each of them,
        and writes checkpoints after them."""
        args, name = self.args, self.script.removesuffix(".py")
        bar = show.progress(args.steps, name, "update", initial=self.start)
        with Stopper() as stopper, bar as self.bar:
            for step in range(self.start + 1, args.steps + 1):
                self.compute.clock.start()
                warm_up = min(1.0, step / max(1, round(0.05 * args.steps)))  # the first 5 %
                for group in self.optimizer.param_groups:
                    group["lr"] = args.lr * warm_up
                self.before = weights.first_numbers(self.student)
                yield step
                bar.update()
                stop, last = stopper.asked(), step == args.steps
                if last or stop or (args.save_every and step % args.save_every == 0):
                    self._save(step)
                if stop and not last:
                    bar.close()
                    command = checkpoints.resume_command(self.script, args)
                    print(f"stopped after update {step}; continue with: {command}")
                    raise SystemExit(0)

    def _save(self, step):
        extra, scale = {}, self.compute.loss_scale
        if scale:  # with another factor float16 rounds other numbers to 0
            extra["loss_scale"] = scale.factor, scale.good
        if self.average is not None:
            extra["teacher"] = weights.trained(self.average)
        out, student, tokenizer = self.out, self.student, self.tokenizer
        checkpoints.save_checkpoint(out, step, student, tokenizer, self.optimizer, extra)

    def problems(self, step):
        """The rows of an update. The same seed gives all methods the same rows."""
        numbers = prompts_of_step(step, self.args.prompts, len(self.rows), self.args.seed)
        return [self.rows[i] for i in numbers]

    def evaluates(self, step):
        every = self.args.eval_every
        return step == self.args.steps or (every and step % every == 0)

    def evaluate(self, model, share=1.0, **more):
        """(summary, records) on the same test problems every time: greedily, unless `more` says
        otherwise. share: only the first part of the problems."""
        tests = self.tests[: max(1, int(len(self.tests) * share + 1e-9))]
        longest = self.longest_response
        return evaluate(
            model, self.tokenizer, tests, max_new_tokens=longest, autocast=self.autocast(), **more
        )

    def kept(self, summary):
        """What metrics.jsonl keeps of a greedy evaluation."""
        names = "accuracy interval n no_answer truncated mean_tokens".split()
        return {k: summary[k] for k in names}

    def accuracy(self, model):
        return self.kept(self.evaluate(model)[0])

    def accuracy_and_variety(self, model):
        """Greedy accuracy, and G samples at temperature 1 for a fifth of the problems. They show
        whether the model still tries different ways: pass@G and the share of distinct ways."""
        G = max(2, self.args.samples)
        sampled, _ = self.evaluate(model, share=1 / 5, n=G, k=G, temperature=1.0)
        names = ("pass@1", f"pass@{G}", "distinct", "distinct_right")
        return self.accuracy(model) | {k: sampled[k] for k in names}

    def compare_with_teacher(self, student, teacher):
        """Before the first update: the accuracy of both, the teacher's being the ceiling, and how
        much likelier the teacher finds worked solutions."""
        if self.fresh:
            ceiling = self.accuracy(teacher)["accuracy"]
            self.log(0, eval=self.accuracy(student), teacher_accuracy=ceiling)
            say_margin(self, student, teacher)

    def log(self, step, **row):
        """One line of metrics.jsonl. For an update it also holds time and memory, and the
        progress bar shows it. For an evaluation the accuracy is printed."""
        if "eval" not in row:
            row["lr"] = self.optimizer.param_groups[0]["lr"]
            row["seconds"] = self.compute.clock.stop()
            if "tokens" in row:
                row["tokens_per_second"] = row["tokens"] / row["seconds"]["total"]
                row["changed"] = weights.share_changed(self.student, self.before)
                if self.compute.loss_scale:
                    row["loss_scale"] = self.compute.loss_scale.factor
                row["peak_memory"] = peak_memory(self.device)
        self.metrics.add({"step": step, **row})
        if "eval" in row:
            self._print_evaluation(step, row)
        elif "tokens" in row:
            shown = ("loss", "kl", "traj", "reward", "signal", "length")
            numbers = [f"{k} {row[k]:.3g}" for k in shown if k in row]
            speed = f"{row['tokens_per_second']:,.0f} tokens/s"
            self.bar.set_postfix_str(", ".join([*numbers, speed]))

    def _print_evaluation(self, step, row):
        measured = row["eval"]
        text = show.percent(measured)
        if "shortcuts" in measured:
            text += f"  shortcuts {100 * measured['shortcuts']:.1f} %"
        names = [k for k in measured if k.startswith("pass@") or k == "distinct"]
        sampled = ", ".join(f"{k} {100 * measured[k]:.1f} %" for k in names)
        sampled = f"   at temperature 1: {sampled}" if names else ""
        if step > 0:
            self.bar.write(f"update {step:4d}  accuracy {text}{sampled}")
            return
        teacher = row.get("teacher_accuracy")
        text += "" if teacher is None else f"   teacher {100 * teacher:.1f} %"
        tests = f"greedy, {measured['n']} problems of {self.args.benchmark}"
        print(f"before:  student {text}   ({tests}){sampled}")
        if teacher is not None:
            show.warn_small_gap(measured["accuracy"], teacher)

    def show(self, step, ids, values, what="KL", notes=()):
        """Every --show_every updates: one rollout, its tokens coloured by `values` (nats), and
        further lines below it. what: the name of the values."""
        if self.args.show_every and step % self.args.show_every == 0:
            show.show_rollout(self.bar, step, self.tokenizer, ids, values, what=what)
            for note in notes:
                self.bar.write(note)

    def draw(self, title, what="KL(student || teacher) on own rollouts", key="kl"):
        """curve.png: accuracy, and beside it the metric `key`. what: what this metric is."""
        show.draw_curve(self.metrics.rows, self.out / "curve.png", title, what, key)

    def finish(self, baseline):
        """baseline: the command of the method to compare this one with."""
        checkpoints.save_final(self.out, self.student, self.tokenizer)
        show.conclude(self, baseline)


class Stopper:
    """Ctrl-C and SIGTERM end a run after the update in progress, with a checkpoint. A second
    Ctrl-C ends it at once."""

    def __enter__(self):
        self.noticed = False
        signals = (signal.SIGINT, signal.SIGTERM)
        self.before = {s: signal.signal(s, self._notice) for s in signals}
        return self

    def _notice(self, number, frame):
        if self.noticed:
            raise KeyboardInterrupt
        self.noticed = True
        print(
            "\nfinishing this update, then saving (press Ctrl-C again to leave at once, without "
            "saving)",
            file=sys.stderr,
        )

    def asked(self):
        """Asked once per update. A signal may reach only one of several processes."""
        return any(gather(self.noticed))

    def __exit__(self, *_):
        for s, handler in self.before.items():
            signal.signal(s, handler)
