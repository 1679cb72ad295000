// topd.py: candidates, the two futures, their distance, and the targets that follow from a plan.
//
// Equation numbers are those of topd.py. A plan and a cost are lists of rows, [n][m], teacher
// first. n = m always, because both windows are cut to the shorter one.

const topd = {
  // (1)
  reverse_kl(student_logp, teacher_logp) {
    return kl(student_logp, teacher_logp);
  },

  // (2): the positions of the highest losses in one rollout. candidate_share: of its tokens.
  candidates(losses, candidate_share, K) {
    const N = losses.length;
    const share = Math.max(2, round_half_to_even(candidate_share * N));
    const count = Math.min(share, Math.max(1, Math.floor(N / 10)));
    // Near the end too little future is left to be compared.
    const early = losses.map((_, t) => t).filter((t) => N - t >= K / 2);
    const order = early.sort((a, b) => losses[b] - losses[a] || a - b);
    return order.slice(0, count).sort((a, b) => a - b);
  },

  // (3): the teacher's next K tokens, greedily. stem: the teacher has read the prompt and y_<t.
  continuation(stem, K, end) {
    const window = [];
    while (window.length < K) {
      const best = argmax(stem.logits(stem.length));
      window.push(best);
      if (best === end) break;
      if (window.length < K) stem.push([best]);
    }
    return window;
  },

  // (4): C = 1 - cosine between the teacher's embeddings, [n][m] from two windows of ids. The
  // same token costs 0. Another token costs up to about 1, and little if it is a synonym.
  ground_cost(teacher, teacher_window, student_window) {
    const { D } = teacher.config;
    const unit = (id) => {
      const vector = teacher.embedding.subarray(id * D, id * D + D);
      const norm = Math.sqrt(sum_over(D, (i) => vector[i] * vector[i]));
      return Array.from(vector, (x) => x / norm);
    };
    const [theirs, own] = [teacher_window.map(unit), student_window.map(unit)];
    const cosine = (u, v) => sum_over(D, (i) => u[i] * v[i]);
    return theirs.map((u) => own.map((v) => Math.max(0, 1 - cosine(u, v))));
  },

  // (5): the best plan [n][n] between uniform marginals. Between windows of equal length some
  // best plan is a permutation (times 1/n). So the problem is an assignment. It is solved row by
  // row: each new row takes the cheapest column, and rows that lose theirs move on along a
  // shortest path (the Hungarian method, as scipy's linear_sum_assignment).
  exact_plan(cost) {
    const n = cost.length;
    const u = Array(n + 1).fill(0); // prices of the rows and columns; number 0 is unused
    const v = Array(n + 1).fill(0);
    const row_of = Array(n + 1).fill(0); // the row that a column belongs to; 0: none yet
    for (let row = 1; row <= n; row++) {
      const least = Array(n + 1).fill(Infinity); // the cheapest way to each column so far
      const came_from = Array(n + 1).fill(0);
      const done = Array(n + 1).fill(false);
      let column = 0;
      row_of[0] = row;
      while (row_of[column] !== 0) {
        done[column] = true;
        let [nearest, step] = [0, Infinity];
        for (let c = 1; c <= n; c++) {
          if (done[c]) continue;
          const price = cost[row_of[column] - 1][c - 1] - u[row_of[column]] - v[c];
          if (price < least[c]) [least[c], came_from[c]] = [price, column];
          if (least[c] < step) [nearest, step] = [c, least[c]];
        }
        for (let c = 0; c <= n; c++) {
          if (done[c]) {
            u[row_of[c]] += step;
            v[c] -= step;
          } else least[c] -= step;
        }
        column = nearest;
      }
      // Every row on the path moves to the next column of it.
      for (; column !== 0; column = came_from[column]) row_of[column] = row_of[came_from[column]];
    }
    const plan = cost.map((row) => row.map(() => 0));
    for (let c = 1; c <= n; c++) plan[row_of[c] - 1][c - 1] = 1 / n;
    return plan;
  },

  // (5): D = <gamma, C>
  distance(plan, cost) {
    return sum_over(plan.length, (j) => {
      return sum_over(plan[j].length, (i) => plan[j][i] * cost[j][i]);
    });
  },

  // Plans with entropy, one for each cost: the minimum of <gamma, C> - epsilon H(gamma). It works
  // with logarithms, because exp(-C / epsilon) underflows for a small epsilon. The last half-step
  // is the student's side, so every position gets its full target. As in topd.py all windows are
  // solved together, and they end when no row of any of them is off by more than `tolerance` of
  // its mass.
  sinkhorn(costs, epsilon, iterations = 500, tolerance = 0.01) {
    const logsumexp = (x) => {
      const most = Math.max(...x);
      return most + Math.log(sum_over(x.length, (i) => Math.exp(x[i] - most)));
    };
    const states = costs.map((cost) => ({
      cost,
      n: cost.length,
      f: cost.map(() => 0),
      g: cost.map(() => 0),
    }));
    const mass = ({ cost, f, g }, j, i) => Math.exp(-cost[j][i] / epsilon + f[j] + g[i]);
    for (let k = 0; k < iterations; k++) {
      for (const state of states) {
        const { cost, n, f, g } = state;
        for (let j = 0; j < n; j++) {
          f[j] = -Math.log(n) - logsumexp(g.map((g_i, i) => g_i - cost[j][i] / epsilon));
        }
        for (let i = 0; i < n; i++) {
          g[i] = -Math.log(n) - logsumexp(f.map((f_j, j) => f_j - cost[j][i] / epsilon));
        }
      }
      const row_is_right = (state, j) => {
        const row = sum_over(state.n, (i) => mass(state, j, i));
        return Math.abs(row - 1 / state.n) <= tolerance / state.n;
      };
      const all_right = (state) => state.cost.every((_, j) => row_is_right(state, j));
      if (k % 10 === 9 && states.every(all_right)) break;
    }
    return states.map((state) => state.cost.map((row, j) => row.map((_, i) => mass(state, j, i))));
  },

  // (6): [kept, dropped]. The lowest D are dropped.
  divergent(points, drop_share) {
    const order = [...points].sort((a, b) => a.distance - b.distance);
    const count = Math.floor(drop_share * order.length + 0.5);
    return [order.slice(count), order.slice(0, count)];
  },

  // (7): q [m][n], student x teacher: the plan is TRANSPOSED, because a target belongs to a
  // position of the student. Every row is divided by its sum.
  soft_targets(plan) {
    return plan[0].map((_, i) => {
      const total = sum_over(plan.length, (j) => plan[j][i]);
      return plan.map((row) => row[i] / total);
    });
  },

  // The target of one position as {token: weight}. A token that stands twice in the teacher's
  // window collects both weights.
  target_of(weights, teacher_window) {
    const target = new Map();
    weights.forEach((weight, j) => {
      target.set(teacher_window[j], (target.get(teacher_window[j]) || 0) + weight);
    });
    return target;
  },

  // (8) at one position: KL(q_i || p_S). target: of target_of.
  guidance(target, student_logp) {
    let sum = 0;
    for (const [v, q] of target) if (q > 0) sum += q * (Math.log(q) - student_logp[v]);
    return sum;
  },
};

// Python's round: 2.5 becomes 2, and 3.5 becomes 4.
function round_half_to_even(x) {
  const below = Math.floor(x);
  return x - below === 0.5 ? below + (below % 2) : Math.round(x);
}
