"""The gate: before the first update a self-teacher GENERATES with each view's prompt. A view that
does not help it there has nothing to teach. No method and no loss."""

import torch

from common.data import privileged_prompt, prompt_ids
from common.evaluation import evaluate, verdicts
from common.sampler import draw
from common.show import percent

# ======================================================================== before training: the gate


def other_rows(rows):
    """For each row the number of another row with another answer: the next one that there is."""
    numbers = list(range(len(rows)))
    return [
        next((o for o in numbers[i + 1 :] + numbers[:i] if rows[o]["answer"] != r["answer"]), i - 1)
        for i, r in enumerate(rows)
    ]


def gate(run, model, rows, users):
    """{view: summary}: greedy accuracy when the model GENERATES with each view's prompt.

    users: {view: the user's turn for each row}. A self-teacher that cannot use what it sees has
    nothing to teach. One that is as good with another row's solution does not read it.
    """
    longest = max(256, run.args.max_new_tokens)
    summaries = {}
    for name, turns in users.items():
        asked = [{**r, "prompt": turn} for r, turn in zip(rows, turns)]
        summaries[name], _ = evaluate(
            model, run.tokenizer, asked, max_new_tokens=longest, autocast=run.autocast()
        )
    return summaries


def say_gate(answered, without, right, wrong, what):
    """Print the gate, and warn if the views cannot teach. without, right, wrong: names of views.
    what: what the right view shows."""
    if not answered:
        print(
            "warning: fewer than two of the first questions were solved even once; there will "
            "hardly be a peer to learn from"
        )
        return
    texts = [f"{name}: {percent(summary)}" for name, summary in answered.items()]
    n = answered[without]["n"]
    print(f"generating, shown {', '.join(texts)}   (greedy, {n} training problems)")
    if answered[right]["interval"][0] <= answered[without]["accuracy"]:
        print(
            f"warning: the student is hardly better with {what} in its prompt than without; "
            "expect no gain from teaching itself"
        )
    if answered[wrong]["accuracy"] >= answered[right]["accuracy"] - 0.02:
        print(
            f"warning: {what}, taken from another problem, helps as much as the problem's own: the "
            "model does not read what it is shown"
        )


def masses_at_mistakes(run, model, cases, users, most=300):
    """Print the probability of the right token at the first mistake of failed rollouts, in each
    view. cases: (number of the row in users, row, token ids of a failed rollout). Only the toy
    knows where a mistake is. Returns {view: [probabilities]}."""
    if run.check is None:
        return {}
    _, rows, responses = zip(*cases) if cases else ((), (), ())
    mistakes = first_mistakes(run.tokenizer, rows, responses, run.check)[:most]
    masses = {}
    for name, turns in users.items():
        ids = [prompt_ids(run.tokenizer, turns[cases[k][0]]) for k, _, _ in mistakes]
        texts = [p + cases[k][2][:at] for p, (k, at, _) in zip(ids, mistakes)]
        masses[name] = mass(model, [(t, token) for t, (_, _, token) in zip(texts, mistakes)])
    if mistakes:
        means = [f"{name}: {sum(v) / len(v):.2f}" for name, v in masses.items()]
        print(
            f"probability of the right token at the first mistake, shown {', '.join(means)}   "
            f"({len(mistakes)} failed rollouts)"
        )
    return masses


def solution_gate(run, student, views_of):
    """Print what the views of a solution can teach. views_of(row): {view: the user's turn}, with
    "plain" and "full" among them. Returns {view: [accuracy, its interval]}."""
    rows = run.rows[: min(run.args.eval_n, 200)]  # training problems: their solutions are known
    views = [views_of(row) for row in rows]
    shown = {name: [v[name] for v in views] for name in views[0]}
    # A control: if another problem's solution helps as much, the model does not read it.
    wrong = [rows[o]["solution"] for o in other_rows(rows)]
    shown["wrong"] = [privileged_prompt(r["prompt"], z) for r, z in zip(rows, wrong)]
    answered = gate(run, student, rows, shown)
    say_gate(answered, "plain", "full", "wrong", "the whole solution")
    return {k: [v["accuracy"], *v["interval"]] for k, v in answered.items()}


def users_by_context(rows, peers):
    """For the gate: {name: the user's turn for each row}, with nothing, the answer, a peer, both,
    and both of another question."""
    prompts, answers = [r["prompt"] for r in rows], [r["answer"] for r in rows]
    wrong = [(peers[o], answers[o]) for o in other_rows(rows)]
    return {
        "nothing": prompts,
        "answer": [privileged_prompt(q, answer=a) for q, a in zip(prompts, answers)],
        "peer": [privileged_prompt(q, p) for q, p in zip(prompts, peers)],
        "peer and answer": [privileged_prompt(*qpa) for qpa in zip(prompts, peers, answers)],
        "wrong peer": [privileged_prompt(q, p, a) for q, (p, a) in zip(prompts, wrong)],
    }


def peer_gate(run, student):
    """Print what each context can teach: accuracy when GENERATING with it, on questions that the
    student solves at least once in G. On the toy also the probability of the right token at the
    first mistake of the student's failed rollouts. Returns the accuracies."""
    args = run.args
    G, rows = args.samples, run.rows[: min(200, max(2, args.eval_n // 2))]
    with run.autocast():
        drawn = draw(student, [r["ids"] for r in rows], args, 0)
    texts, right = verdicts(run.tokenizer, rows, drawn, G)
    # Reversed, so that the first right rollout of a question is the one that stays.
    first_right = {i // G: texts[i] for i in reversed(range(len(drawn))) if right[i]}
    solved = sorted(first_right)  # questions with a peer
    if len(solved) < 2:
        say_gate({}, "", "", "", "")  # warns that there is hardly a peer
        return {}
    users = users_by_context([rows[q] for q in solved], [first_right[q] for q in solved])
    answered = gate(run, student, [rows[q] for q in solved], users)
    failed = [i for i, ok in enumerate(right) if not ok and i // G in first_right]
    cases = [(solved.index(i // G), rows[i // G], drawn[i].ids) for i in failed]
    say_gate(answered, "nothing", "peer and answer", "wrong peer", "a successful peer")
    masses_at_mistakes(run, student, cases, users)
    return {k: [v["accuracy"], *v["interval"]] for k, v in answered.items()}


# ======================================================================== the first mistake (toy)


def token_at(tokenizer, ids, character):
    """Number of the token of `ids` that holds this character of the decoded text."""
    end = 0
    for i, token in enumerate(ids):
        end += len(tokenizer.decode([token]))
        if character < end:
            return i
    return len(ids) - 1


def first_mistakes(tokenizer, rows, responses, check):
    """Where failed responses first leave the truth: [(number of the response, number of the
    token, the token that would be right)]. Responses to problems that `check` does not know are
    left out, and mistakes without a single right token."""
    cases = []
    for k, (row, ids) in enumerate(zip(rows, responses)):
        text = tokenizer.decode(ids)
        try:
            wrong = check(row["problem"], text).first_wrong
        except ValueError:  # not the toy's language
            continue
        if wrong is None or not wrong.right:
            continue
        at = token_at(tokenizer, ids, wrong.wrong_at)
        space = " " if text[wrong.wrong_at - 1 : wrong.wrong_at] == " " else ""
        right = tokenizer.convert_tokens_to_ids(space + wrong.right)
        if right not in (None, tokenizer.unk_token_id, ids[at]):
            cases.append((k, at, right))
    return cases


@torch.no_grad()
def mass(model, cases):
    """The probability of a token after a text, for every (ids, token)."""
    model.eval()
    found = []
    for ids, token in cases:
        ids = torch.tensor([ids], device=model.device)
        logits = model(ids, logits_to_keep=1).logits[0, -1].float()
        found.append(logits.softmax(-1)[token].item())
    return found
