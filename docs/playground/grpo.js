// grpo.py: the advantages of a group, the clipped loss, and the weight of a token.
//
// Equation numbers are those of grpo.py.

const grpo = {
  // What --variant sets, as far as one group shows it.
  VARIANTS: {
    grpo: { advantage: "std", norm: "sequence", clip_high: 0.2, overlong: "none" },
    dr_grpo: { advantage: "mean", norm: "constant", clip_high: 0.2, overlong: "none" },
    dapo: { advantage: "std", norm: "token", clip_high: 0.28, overlong: "soft" },
  },

  // DAPO's penalty for a rollout near the limit: 0 until (1 - share) of max_new_tokens, then
  // linearly down to -1/2.
  penalty(length, max_new_tokens, share = 0.2) {
    const buffer = share * max_new_tokens;
    const into = (length - (max_new_tokens - buffer)) / buffer;
    return -0.5 * Math.max(0, Math.min(1, into));
  },

  // (2): one number per rollout of ONE group. A group without differences gets exactly 0.
  advantages(rewards, kind) {
    const average = mean(rewards);
    const centred = rewards.map((R) => R - average);
    if (kind === "mean") return centred;
    const spread = Math.sqrt(mean(centred.map((x) => x * x))); // divisor G, not G - 1
    return centred.map((x) => (spread > 1e-6 ? x / spread : 0));
  },

  // (3): [loss of a token, does the clip stop its gradient?]
  clipped_loss(ratio, advantage, low, high) {
    const free = ratio * advantage;
    const bounded = Math.max(1 - low, Math.min(1 + high, ratio)) * advantage;
    return [-Math.min(free, bounded), bounded < free];
  },

  // (4): the weight of each token of a rollout, one number per rollout.
  token_weights(lengths, norm, max_new_tokens) {
    const n = lengths.length;
    if (norm === "sequence") return lengths.map((length) => 1 / (n * length)); // GRPO
    const total = sum_over(n, (i) => lengths[i]);
    if (norm === "token") return lengths.map(() => 1 / total); // DAPO
    return lengths.map(() => 1 / (n * max_new_tokens)); // Dr. GRPO
  },
};
