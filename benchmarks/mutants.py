"""Do the tests notice mistakes? One line of the code is made wrong at a time, and the tests that
should see it are run.

    python benchmarks/mutants.py                    all mutants: killed / made, and who survived
    python benchmarks/mutants.py --only topd.py     those of one file
    python benchmarks/mutants.py --list             without running

A mutant is (file, the line as it is, the line made wrong, the test files that should fail). A
mutant that survives shows a mistake which nobody would notice: it needs a test, or a reason.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from common.arguments import Parser, require, run_script  # noqa: E402

OPD, TOPD, AR, HSD, GRPO = "opd.py", "topd.py", "ar_opd.py", "hindsight_sd.py", "grpo.py"
BATCHES, SAMPLER, BRANCHES = "common/batches.py", "common/sampler.py", "common/branches.py"
WEIGHTS, GRADING, EVALUATION = "common/weights.py", "common/grading.py", "common/evaluation.py"
ANSWERS, EXPRESSIONS = "common/answers.py", "common/expressions.py"
RANGES = "common/ranges.py"
ALGEBRA, COMPARE = "common/algebra.py", "common/compare.py"
RESULTS = "common/results.py"
VLLM, DIAGNOSTICS = "common/vllm.py", "common/diagnostics.py"

MUTANTS = [
    # ---- opd.py
    (OPD, "return (student_logp.exp() * (student_logp - teacher_logp)).sum(-1)",
     "return (teacher_logp.exp() * (teacher_logp - student_logp)).sum(-1)", "opd"),
    (OPD, "return (student_logp.exp() * (student_logp - teacher_logp)).sum(-1)",
     "return (student_logp.exp() * (student_logp - teacher_logp)).mean(-1)", "opd"),
    (OPD, "teacher_logp + math.log(beta), student_logp + math.log(1 - beta)",
     "teacher_logp + math.log(1 - beta), student_logp + math.log(beta)", "opd divergence"),
    (OPD, "return beta * teacher_part + (1 - beta) * student_part",
     "return (1 - beta) * teacher_part + beta * student_part", "opd divergence"),
    (OPD, "pair.append(torch.cat([logp.gather(1, chosen), rest], 1))",
     "pair.append(logp.gather(1, chosen))", "opd divergence"),
    (OPD, 'weights = student_logp if kind == "reverse" else teacher_logp',
     'weights = teacher_logp if kind == "reverse" else student_logp', "opd divergence"),
    (OPD, "advantage = (teacher_written - written).detach()",
     "advantage = teacher_written - written", "opd divergence"),
    (OPD, "loss = -advantage * written", "loss = advantage * written", "opd divergence"),
    (OPD, "return torch.where(off_policy, -written, loss)",
     "return torch.where(off_policy, loss, -written)", "opd"),
    (OPD, "compute.backward(loss / tokens)", "compute.backward(loss / len(responses))", "opd"),
    (OPD, "[*ids, student.turn_end][: args.max_new_tokens]", "ids[: args.max_new_tokens]",
     "opd"),
    (OPD, "args, step, args.temperature)", "args, step)", "opd"),
    (OPD, "log_probabilities(teacher, teacher_hidden, args.temperature)",
     "log_probabilities(teacher, teacher_hidden)", "opd"),
    (SAMPLER, "keys = [(args.seed, step, i, j) for", "keys = [(args.seed, i, j) for",
     "sampler opd topd ar_opd hindsight_sd grpo"),
    (OPD, "optimizer.zero_grad(set_to_none=True)", "pass", "opd"),
    (OPD, "if math.isfinite(norm):", "if True:", "opd degenerate mistakes"),
    # ---- topd.py
    (TOPD, "return (student_logp.exp() * (student_logp - teacher_logp)).sum(-1)",
     "return (teacher_logp.exp() * (teacher_logp - student_logp)).sum(-1)", "topd"),
    (TOPD, "count = min(max(2, round(", "count = min(max(1, round(", "topd"),
    (TOPD, "max(1, N // 10))", "max(1, N))", "topd"),
    (TOPD, "early.topk(min(count, len(early))).indices",
     "early.topk(min(count, len(early)), largest=False).indices", "topd"),
    (TOPD, "args.window_size / 2) + 1)]", "args.window_size / 2))]", "topd"),
    (TOPD, "[responses[i][t : t + K] for", "[responses[i][t + 1 : t + 1 + K] for", "topd"),
    (TOPD, "len(prompts[i]) + t) for i, t, _ in spots]",
     "len(prompts[i]) + t + 1) for i, t, _ in spots]", "topd"),
    (BRANCHES, "last = hidden[rows, prefix - 1]", "last = hidden[rows, prefix - 2]", "topd"),
    (BRANCHES, "position = length + k  #", "position = length + k + 1  #", "topd"),
    (BRANCHES, "itself = torch.eye(most, dtype=torch.bool, device=device)",
     "itself = torch.ones(most, most, dtype=torch.bool, device=device)", "topd"),
    (BRANCHES, "return [w[:end] for w, end in zip(windows, ends)], vectors",
     "return windows, vectors", "topd"),
    (TOPD, "cost = (1 - u @ v.transpose(1, 2)).clamp(min=0)",
     "return (1 + u @ v.transpose(1, 2)).clamp(min=0)", "topd"),
    (TOPD, "] = 1 / len(cost)", "] = 1.0", "topd"),
    (TOPD, "per_student = gamma.T", "per_student = gamma", "topd"),
    (TOPD, "per_student / per_student.sum(1, keepdim=True)",
     "per_student / per_student.sum(0, keepdim=True)", "topd"),
    (TOPD, "return order[count:], order[:count]", "return order[:count], order[count:]", "topd"),
    (TOPD, "count = int(args.drop_share * len(order) + 0.5)",
     "count = int(args.drop_share * len(order))", "topd"),
    (TOPD, "weights[p.row][p.t + i].extend(row)", "weights[p.row][p.t + i].extend(row[::-1])",
     "topd"),
    (TOPD, "enumerate((p.weights / len(p.weights)).tolist())", "enumerate(p.weights.tolist())",
     "topd"),
    (TOPD, "max(1, len(guiding))", "max(1, len(points))", "topd"),
    (TOPD, "traj = -(target_weights * at_targets).sum()",
     "traj = (target_weights * at_targets).sum()", "topd"),
    (TOPD, "args.lam / count * traj)", "1 / count * traj)", "topd"),
    (TOPD, '"low": dropped, "high": others', '"low": others, "high": dropped', "topd"),
    (TOPD, "= -c / epsilon, -math.log(n)", "= -c, -math.log(n)", "topd"),
    (TOPD, "sizes = [min(len(w_t), len(w_s)) for", "sizes = [len(w_t) for", "topd"),
    (TOPD, "teacher.ends = sorted({*teacher.ends, *student.ends})", "pass", "topd scripts"),
    # ---- ar_opd.py
    (AR, "residual = full_logp - partial_logp", "residual = partial_logp - full_logp", "ar_opd"),
    (AR, "residual = residual.clamp(-clip, clip)", "residual = residual.clamp(max=clip)", "ar_opd"),
    (AR, "(partial_logp + lam * residual).log_softmax(-1)", "partial_logp + lam * residual",
     "ar_opd"),
    (AR, "return (target_logp.exp() * (target_logp - student_logp)).sum(-1)",
     "return (student_logp.exp() * (student_logp - target_logp)).sum(-1)", "ar_opd"),
    (AR, "weight = 1 / (sequences * c) if c else 0.0", "weight = 1 / sum(counted) if c else 0.0",
     "ar_opd"),
    (AR, "counted = [max(0, len(r) - skip_first) for r in responses]",
     "counted = [len(r) for r in responses]", "ar_opd"),
    (AR, "follow(teacher, student, args.ema)", "follow(teacher, student, 1 - args.ema)", "ar_opd"),
    (AR, "int(len(word_ends) * rho)", "int(len(word_ends) * rho / 2)", "ar_opd"),
    (AR, 'if args.partial_answer == "keep" else None', 'if args.partial_answer != "keep" else None',
     "ar_opd"),
    (AR, "with torch.no_grad():  # the target", "with torch.enable_grad():  # the target",
     "ar_opd"),
    (AR, '[r["plain"] for r in rows]', '[r["full"] for r in rows]', "ar_opd"),
    (AR, 'compute.pack(prompts["plain"], responses, chosen)',
     'compute.pack(prompts["partial"], responses, chosen)', "ar_opd"),
    # ---- hindsight_sd.py
    (HSD, "if ok and j != i]", "if ok]", "hindsight_sd"),
    (HSD, 'if args.context == "peer" and args.fallback == "mask":',
     'if args.context == "peer" and args.fallback != "mask":', "hindsight_sd"),
    (HSD, "return (teacher_logp.exp() * (teacher_logp - student_logp)).sum(-1)",
     "return (student_logp.exp() * (student_logp - teacher_logp)).sum(-1)", "hindsight_sd"),
    (HSD, "spread = R.std(1, correction=0, keepdim=True)",
     "spread = R.std(1, correction=1, keepdim=True)", "hindsight_sd"),
    (HSD, "token = 1 / (n * len(c.ids))", "token = 1 / n", "hindsight_sd"),
    (HSD, "else (1 - args.rl_weight) * token", "else token", "hindsight_sd"),
    (HSD, 'args.train == "failures" and contexts.right[i]',
     'args.train == "failures" and not contexts.right[i]', "hindsight_sd"),
    (HSD, "- weight[:, 2] * written", "+ weight[:, 2] * written", "hindsight_sd"),
    (HSD, "+ weight[:, 1] * drift", "+ weight[:, 1] * drift.detach()", "hindsight_sd"),
    (HSD, "drift = (student_logp.exp() * (student_logp - start_logp)).sum(-1)",
     "drift = (start_logp.exp() * (start_logp - student_logp)).sum(-1)", "hindsight_sd"),
    (HSD, "group = slice(q * G, (q + 1) * G)", "group = slice(0, G)", "hindsight_sd"),
    (HSD, "key = args.seed, step, q, own", "key = args.seed, step, q", "hindsight_sd"),
    (DIAGNOSTICS, "return (1 - p) * (1 - (1 - p) ** (G - 1))",
     "return (1 - p) * (1 - (1 - p) ** G)", "diagnostics"),
    (HSD, "teacher_logp = log_probabilities(teacher, teacher_hidden)",
     "teacher_logp = log_probabilities(student, teacher_hidden)", "hindsight_sd"),
    # ---- grpo.py
    (GRPO, "centred = R - R.mean(1, keepdim=True)", "centred = R - R.mean()", "grpo"),
    (GRPO, "return -torch.minimum(free, bounded), bounded < free",
     "return -torch.maximum(free, bounded), bounded < free", "grpo"),
    (GRPO, "ratio.clamp(1 - low, 1 + high)", "ratio.clamp(1 - high, 1 + low)", "grpo"),
    (GRPO, "return [ok / (n * length) for", "return [ok / length for", "grpo"),
    (GRPO, "for ok, length in zip(counted, lengths) if ok)",
     "for ok, length in zip(counted, lengths))", "grpo"),
    (GRPO, "[ok / (n * args.max_new_tokens) for ok in counted]",
     "[ok / (n * max(lengths)) for ok in counted]", "grpo"),
    (GRPO, "buffer = args.overlong_share * args.max_new_tokens",
     "buffer = (1 - args.overlong_share) * args.max_new_tokens", "grpo"),
    (GRPO, "has_signal = 0 < sum(verdict[group]) < G", "has_signal = 0 < sum(verdict[group])",
     "grpo"),
    (GRPO, 'seed = args.seed if turn == 0 else f"{args.seed}, round {turn}"', "seed = args.seed",
     "grpo"),
    (GRPO, "old_logp = logp.detach() if old_logp is None else old_logp", "old_logp = logp.detach()",
     "grpo"),
    (GRPO, "kl_weights = [args.beta / (n * len(r)) for r in responses]",
     "kl_weights = [args.beta / n for r in responses]", "grpo"),
    (GRPO, "args.max_rounds if args.no_signal ==", "1 if args.no_signal ==", "grpo"),
    # ---- common/
    (BATCHES, "predicts[i, len(p) - 1 : len(p) + len(r) - 1] = True",
     "predicts[i, len(p) : len(p) + len(r)] = True", "batches"),
    (BATCHES, "logits = logits[:, : model.vocabulary].float()", "logits = logits.float()",
     "batches mistakes models"),
    (BATCHES, "return values.repeat_interleave(lengths, 0)",
     "return values.repeat_interleave(lengths.flip(0), 0)", "batches opd grpo"),
    (SAMPLER, "logp = filtered(logits, temperature, top_p, top_k)",
     "logp = filtered(logits, 1.0, top_p, top_k)", "sampler"),
    (SAMPLER, "late = best.cumsum(-1) - best >= top_p", "late = best.cumsum(-1) >= top_p",
     "sampler"),
    (SAMPLER, "target, right=True)", "target, right=False)", "sampler"),
    (SAMPLER, "position = rows.prompt_length[:, None] + t",
     "position = rows.prompt_length[:, None] + t + 1", "sampler"),
    (SAMPLER, "return Completion(ids[:stop], stop is None, logprobs[:stop])",
     "return Completion(ids[:stop], stop is not None, logprobs[:stop])", "sampler"),
    (SAMPLER, "(i + 1 for i, token in enumerate(ids) if token in ends)",
     "(i for i, token in enumerate(ids) if token in ends)", "sampler"),
    (SAMPLER, "causal & real[:, None]", "causal", "sampler"),
    (WEIGHTS, "p.grad /= loss_scale.factor", "p.grad /= 1.0", "half"),
    (WEIGHTS, "self.factor / 2, 0", "self.factor / 1, 0", "half"),
    (WEIGHTS, "weight_decay=0.0, fused=fused)", "weight_decay=0.1, fused=fused)", "weights"),
    (EVALUATION, "free = len(values) - 1  #", "free = len(values)  #", "evaluation"),
    (EVALUATION, "return 1 - math.comb(n - correct, k) / math.comb(n, k)",
     "return 1 - (1 - correct / n) ** k", "evaluation"),
    (EVALUATION, "Z = 1.959964", "Z = 1.644854", "evaluation"),
    (GRADING, "full[-1].end()", "full[0].end()", "grading"),
    (GRADING, "if said is None and not truncated and", "if said is None and", "grading"),
    # ---- whether two answers are equal
    (ANSWERS, "return said_number == gold_number", "return abs(said_number - gold_number) < 1e-6",
     "grading"),
    (ANSWERS, 'return re.sub(r"(?<!\\d) | (?!\\d)", "", text)',
     'return text.replace(" ", "")', "grading"),
    (RANGES, 'closing = "]" if "e" in sign else ")"', 'closing = ")"', "grading"),
    (ANSWERS, 'ordered=gold_match[1] != "\\\\{")', "ordered=False)", "grading"),
    (ANSWERS, "unmatched.remove(match)", "pass", "grading"),
    (ANSWERS, "digits == gold_match[1] and base in", "digits == gold_match[1] or base in",
     "grading"),
    (EXPRESSIONS, "known = not any(isinstance(atom, tuple) for atom in atoms(left) | atoms(right))",
     "known = True", "expressions"),
    (EXPRESSIONS, "return {product: c / first for product, c in above.items()}, ONE",
     "return above, ONE", "expressions"),
    (EXPRESSIONS, "if divided:", "if False:", "expressions"),
    (EXPRESSIONS, "fixed is not None and fixed < 0 and degree % 2:",
     "fixed is not None and fixed < 0:", "expressions"),
    (ALGEBRA, "factor = -factor if exponent // 2 % 2 else factor", "pass", "expressions"),
    (ALGEBRA, "if len(others) == 1 and others[0][1] == 1:", "if len(others) == 1:",
     "expressions"),
    (ALGEBRA, "factors.get(p, 0) + sign, n // p", "factors.get(p, 0) + 1, n // p",
     "expressions"),
    # ---- whether one arm is better
    (RESULTS, "if k not in NOT_COMPARED and not (k in NEUTRAL and NEUTRAL[k] == v)",
     "if k not in NOT_COMPARED", "compare"),
    (COMPARE, "pairs = [(run.final, by_seed[run.seed]) for run in group",
     "pairs = [(by_seed[run.seed], run.final) for run in group", "compare"),
    (COMPARE, "shared = set.intersection(*", "shared = set.union(*", "compare"),
    (RESULTS, 'unfinished=unfinished if curve[-1][0] < steps else "",', 'unfinished="",',
     "compare"),
    (VLLM, "self.synchronise()", "pass", "vllm"),
    (VLLM, "self.check(prompts[k // n], completions[k], temperature)", "pass", "vllm"),
]  # fmt: skip

# A mutant that no test can see, with the reason: {(file, the line made wrong): why}.
REASONS = {}


def prepare(folder):
    """A copy of the repository, with links to what is large."""
    for name in ("common", "tests", "benchmarks", "toy"):
        kept = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.png")
        shutil.copytree(ROOT / name, folder / name, ignore=kept)
    for path in (ROOT / "toy").glob("*/*.safetensors"):
        os.symlink(path, folder / path.relative_to(ROOT))
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.ini")]:
        shutil.copy(path, folder / path.name)


def run_tests(folder, names):
    """pytest in a forked child, which has torch already. True if a test failed."""
    files = [f"tests/test_{name}.py" for name in names.split()]
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.path[:] = [str(folder)] + [p for p in sys.path if Path(p or ".").resolve() != ROOT]
        for name in [m for m in sys.modules if m.split(".")[0] in ("common", "toy", "opd", "grpo")]:
            del sys.modules[name]
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        import pytest

        # pytest warns of modules that were imported before it, and warnings are errors here.
        flags = "-x -q -p no:cacheprovider -n 0 -W".split()
        flags += ["ignore::pytest.PytestAssertRewriteWarning", "-m", "not slow"]
        os._exit(pytest.main([*flags, *files]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def main():
    p = Parser(__doc__)
    p.add_argument("--only", help="mutants of this file")
    p.add_argument("--list", action="store_true", help="only say which mutants there are")
    args = p.parse_args()
    chosen = [m for m in MUTANTS if args.only in (None, m[0])]
    require(chosen, f"There is no mutant of '{args.only}'.")
    sources = {name: (ROOT / name).read_text(encoding="utf-8") for name, *_ in chosen}
    for name, right, _, _ in chosen:
        require(right in sources[name], f"{name} has no '{right}': mend benchmarks/mutants.py.")
    if args.list:
        print("\n".join(f"{n:<22} {right}  ->  {wrong}" for n, right, wrong, _ in chosen))
        return
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    import scipy.optimize  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    survivors = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve() / "copy"
        folder.mkdir()
        prepare(folder)
        tests = " ".join(dict.fromkeys(" ".join(m[3] for m in chosen).split()))
        require(not run_tests(folder, tests), "The tests fail without any mutant: mend them first.")
        for k, (name, right, wrong, files) in enumerate(chosen, 1):
            (folder / name).write_text(sources[name].replace(right, wrong, 1), encoding="utf-8")
            killed = run_tests(folder, files)
            (folder / name).write_text(sources[name], encoding="utf-8")
            word = "killed" if killed else "SURVIVED"
            print(f"{k:3d} of {len(chosen)}  {word:<9} {name}: {wrong}", flush=True)
            if not killed and (name, wrong) not in REASONS:
                survivors.append((name, right, wrong))
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were killed or have a reason")
    if survivors:
        print("\n".join(f"SURVIVED {n}: {right}  ->  {wrong}" for n, right, wrong in survivors))
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
