// opd.py: the divergence of two distributions at one token, and where it pushes.
//
// A distribution is an array of log-probabilities [V]. Equation numbers are those of opd.py.

function sum_over(n, term) {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += term(i);
  return sum;
}

function mean(x) {
  return x.length ? sum_over(x.length, (i) => x[i]) / x.length : 0;
}

// KL(a || b). A token that a never takes adds nothing.
function kl(a, b) {
  return sum_over(a.length, (v) => (a[v] === -Infinity ? 0 : Math.exp(a[v]) * (a[v] - b[v])));
}

function entropy(a) {
  return -sum_over(a.length, (v) => Math.exp(a[v]) * a[v]);
}

const opd = {
  // (2): reverse KL(S || T), forward KL(T || S), or the generalised Jensen-Shannon divergence.
  divergence(student_logp, teacher_logp, kind = "reverse", beta = 0.5) {
    if (kind === "reverse") return kl(student_logp, teacher_logp);
    if (kind === "forward") return kl(teacher_logp, student_logp);
    const mixture_logp = opd.mixture(student_logp, teacher_logp, beta);
    const teacher_part = kl(teacher_logp, mixture_logp);
    const student_part = kl(student_logp, mixture_logp);
    return beta * teacher_part + (1 - beta) * student_part;
  },

  // M = beta T + (1 - beta) S
  mixture(student_logp, teacher_logp, beta) {
    return student_logp.map((s, v) => {
      return Math.log(beta * Math.exp(teacher_logp[v]) + (1 - beta) * Math.exp(s));
    });
  },

  // What token v adds to the sum of (2).
  share(student_logp, teacher_logp, v, kind, beta = 0.5) {
    const [s, t] = [student_logp[v], teacher_logp[v]];
    if (kind === "reverse") return Math.exp(s) * (s - t);
    if (kind === "forward") return Math.exp(t) * (t - s);
    const m = Math.log(beta * Math.exp(t) + (1 - beta) * Math.exp(s));
    return beta * Math.exp(t) * (t - m) + (1 - beta) * Math.exp(s) * (s - m);
  },

  // Minus the gradient of (2) with respect to the student's logits, [V]: where a step of gradient
  // descent pushes each token. It sums to 0, because a softmax only moves mass around.
  push(student_logp, teacher_logp, kind, beta = 0.5) {
    const mixture_logp = kind === "jsd" ? opd.mixture(student_logp, teacher_logp, beta) : null;
    // The derivative of the divergence with respect to each probability, up to a constant.
    const slope = student_logp.map((s, v) => {
      if (kind === "reverse") return s - teacher_logp[v];
      if (kind === "forward") return -Math.exp(teacher_logp[v] - s);
      return (1 - beta) * (s - mixture_logp[v]);
    });
    const average = sum_over(slope.length, (v) => Math.exp(student_logp[v]) * slope[v]);
    return student_logp.map((s, v) => -Math.exp(s) * (slope[v] - average));
  },
};
