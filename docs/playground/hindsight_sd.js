// hindsight_sd.py: who can be a peer, what the teacher reads, and the credit of each token.
//
// Equation numbers are those of hindsight_sd.py.

const hindsight_sd = {
  // Expected share of rollouts that fail AND have a successful peer, if a rollout is right with
  // probability p.
  coverage(p, G) {
    return (1 - p) * (1 - (1 - p) ** (G - 1));
  },

  // (2): the number of the peer of rollout i in its group, or null. u: a number in [0, 1). A
  // rollout is never its own peer: a teacher that has just read these very tokens would only
  // confirm them.
  choose_peer(i, right, u) {
    const others = right.map((_, j) => j).filter((j) => right[j] && j !== i);
    return others.length ? others[Math.floor(u * others.length)] : null;
  },

  // (2): the user's turn in the teacher's prompt. Without a peer it is shown the answer alone.
  context(problem, peer, answer) {
    return privileged_prompt(problem, peer, answer);
  },

  // (4): KL(teacher || student). The TEACHER comes first.
  divergence(teacher_logp, student_logp) {
    return kl(teacher_logp, student_logp);
  },

  // A = log p(o_t) - log s(o_t), the credit of the written token (common/credit.py). It is looked
  // at, and it stands in no loss.
  credit(teacher_logp, student_logp, written) {
    return teacher_logp[written] - student_logp[written];
  },

  // tau (common/credit.py): the number of the first token at which a rollout differs from its
  // peer. null if one of them is the beginning of the other.
  leaves(ids, peer_ids) {
    const shorter = Math.min(ids.length, peer_ids.length);
    for (let t = 0; t < shorter; t++) if (ids[t] !== peer_ids[t]) return t;
    return null;
  },
};
