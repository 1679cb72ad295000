// ar_opd.py: what each view sees, and the anchored target.
//
// Equation numbers are those of ar_opd.py.

// The user's turn for a model that is shown more than the problem (common/data.py): a solution
// (the whole of it or a part), the gold answer, or both.
function privileged_prompt(problem, solution = null, answer = null) {
  const parts = [problem];
  if (solution) parts.push(`This is an example response:\n${solution}`);
  if (answer !== null) parts.push(`The final answer is ${answer}.`);
  return [...parts, "Now answer with your own response."].join("\n\n");
}

const ar_opd = {
  // The first `rho` of a solution, cut at a word. It ends before the sentence of the answer: the
  // one with a box, or else the last one.
  first_part(solution, rho) {
    const word_ends = [...solution.matchAll(/\S+/g)].map((m) => m.index + m[0].length);
    const end = word_ends[Math.max(1, Math.floor(word_ends.length * rho)) - 1];
    const box = solution.indexOf("\\boxed");
    const answer = box < 0 ? solution.trimEnd() : solution.slice(0, box);
    const ends = [...answer.matchAll(/[.!?]\s+|\n\s*/g)].map((m) => m.index + m[0].length);
    return solution.slice(0, Math.min(end, ends.at(-1) ?? answer.length)).trimEnd();
  },

  // (2): the user's turn in the three prompts. Both privileged views have the same wording around
  // the solution. So they differ in what they show, and in nothing else.
  views(problem, solution, rho) {
    return {
      plain: problem,
      partial: privileged_prompt(problem, ar_opd.first_part(solution, rho)),
      full: privileged_prompt(problem, solution),
    };
  },

  // (3): the residual of token v, clipped (clip 0: not clipped).
  residual(partial_logp, full_logp, v, clip) {
    const r = full_logp[v] - partial_logp[v];
    return clip ? Math.max(-clip, Math.min(clip, r)) : r;
  },

  // (3) and (4): [log q, mass of the full view on clipped tokens]. Without the softmax, which
  // subtracts C_t, q would not sum to 1, and (5) would be no divergence.
  anchored_target(partial_logp, full_logp, lam, clip) {
    const raw = partial_logp.map((p, v) => {
      return p + lam * ar_opd.residual(partial_logp, full_logp, v, clip);
    });
    const is_clipped = (v) => clip && Math.abs(full_logp[v] - partial_logp[v]) > clip;
    const clipped = sum_over(raw.length, (v) => (is_clipped(v) ? Math.exp(full_logp[v]) : 0));
    return [log_softmax(raw), clipped];
  },

  // (5) at one token: KL(target || student).
  forward_kl(target_logp, student_logp) {
    return kl(target_logp, student_logp);
  },
};
