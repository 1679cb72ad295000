// The section of grpo.py: the advantages of the same group, the weight of a token, and the clip.

const CLIP_LOW = 0.2;

// ======================================================================== the numbers

// The numbers of rollouts whose verdict the visitor turned over.
const flipped = () => new Set(S.flipped.split(",").filter(Boolean).map(Number));

// (2) and (4) of the group: { right, rewards, advantages, weights }, one entry per rollout.
function grpo_numbers() {
  const variant = grpo.VARIANTS[S.variant];
  const turned = flipped();
  const lengths = GROUP_NOW.list.map((b) => b.ids.length);
  const right = GROUP_NOW.list.map((b, i) => b.right !== turned.has(i));
  const soft = variant.overlong === "soft";
  const rewards = right.map((ok, i) => {
    return Number(ok) + (soft ? grpo.penalty(lengths[i], LONGEST_ROLLOUT) : 0);
  });
  return {
    right,
    rewards,
    advantages: grpo.advantages(rewards, variant.advantage), // (2)
    weights: grpo.token_weights(lengths, variant.norm, LONGEST_ROLLOUT), // (4)
  };
}

function show_grpo_equations() {
  const { advantage } = grpo.VARIANTS[S.variant];
  const centred = "R<sub>i</sub> − mean R";
  const formula = advantage === "std" ? fraction(centred, "std R") : centred;
  $("#grpo-equation").innerHTML =
    `<p><span>A<sub>i</sub> = ${formula}</span><a href="grpo.html#eq2">(2)</a></p>`;
  const inner = "∑<sub>t</sub> ℓ<sub>it</sub>";
  const [loss, note] = {
    grpo: [
      `L = mean<sub>i</sub> (1/|o<sub>i</sub>|) ${inner} + β KL(π ‖ π<sub>0</sub>)`,
      "a token of a long rollout weighs less; the β term, not shown below, holds the model near " +
        "its start",
    ],
    dr_grpo: [
      `L = ∑<sub>i</sub> ${inner} / (G × ${LONGEST_ROLLOUT})`,
      "the divisor does not depend on the lengths",
    ],
    dapo: [`L = ∑<sub>i</sub> ${inner} / number of all tokens`, "every token weighs the same"],
  }[S.variant];
  $("#grpo-mean").innerHTML =
    `<p><span>${loss}</span><a href="grpo.html#eq4">(4)</a></p><small>${note}</small>`;
}

// ======================================================================== the group

// A bar to the right (green) or to the left (red). most: the longest one.
function signed_bar(x, most) {
  const width = Math.min(50, (50 * Math.abs(x)) / (most || 1)).toFixed(1);
  const side = x >= 0 ? "up" : "down";
  return `<span class="push"><i class="${side}" style="width:${width}%"></i></span>`;
}

function show_grpo() {
  say_group();
  if (!group_is_ready()) {
    $("#grpo-table").innerHTML = "";
    return;
  }
  if (!one_is_chosen()) choose_failed();
  const { right, rewards, advantages, weights } = grpo_numbers();
  const most = Math.max(...advantages.map(Math.abs));
  const turned = flipped();
  const rows = GROUP_NOW.list.map((b, i) => {
    const word = right[i] ? '<span class="good">✓</span>' : '<span class="bad">✗</span>';
    const label = `response ${i + 1} is ${right[i] ? "right" : "wrong"}; turn the verdict over`;
    return `
      <tr class="${i === S.rollout ? "on" : ""}" data-one="${i}">
        <td><button class="plain" data-key="one${i}" aria-pressed="${i === S.rollout}"
          aria-label="response ${i + 1}">${i + 1}</button></td>
        <td><button class="button tiny" data-flip="${i}" data-key="flip${i}"
          aria-label="${label}">${word}${turned.has(i) ? " !" : ""}</button></td>
        <td>${escaped(b.said ?? "–")}</td><td class="roomy">${b.ids.length}</td>
        <td>${nats(rewards[i])}</td>
        <td class="signed">${signed_bar(advantages[i], most)}<b>${signed(advantages[i])}</b></td>
        <td class="roomy">${(1000 * weights[i]).toFixed(2)}</td>
        <td>${nats(1000 * weights[i] * advantages[i])}</td></tr>`;
  });
  const html = `
    <table class="candidates"><thead><tr><th></th><th>verdict</th><th>answer</th>
      <th class="roomy">tokens</th>
      <th>R</th><th>advantage A</th><th class="roomy">weight</th><th>A × weight</th></tr></thead>
      <tbody>${rows.join("")}</tbody></table>
    <p class="small">weight: of each of its tokens in the loss (4), in thousandths</p>`;
  fill($("#grpo-table"), html);
  say_grpo(right, rewards);
  look_grpo(advantages[S.rollout]);
  remember();
  show_speed();
}

function say_grpo(right, rewards) {
  const silent = new Set(right).size === 1; // the verdicts decide, as in grpo.py
  const words = {
    grpo: "Rare verdicts weigh most: the deviation is small where nearly all agree.",
    dr_grpo:
      "The two sides balance: the advantages of the group sum to 0, and nothing scales them.",
    dapo: "Every token weighs the same, so a long response weighs more than a short one.",
  }[S.variant];
  const average = `Mean R = ${nats(mean(rewards))}.`;
  const nothing =
    S.variant === "dapo"
      ? "In grpo.py DAPO draws another question in place of such a group. So it never uses these " +
        "advantages."
      : "So all advantages are 0: this group says nothing.";
  const html = silent
    ? `${average} All verdicts agree. ${nothing}`
    : `${average} A verdict that is turned over bears a mark (!). ${words}`;
  say($("#grpo-says"), html);
}

// ======================================================================== one rollout

function look_grpo(A) {
  const b = chosen_rollout();
  const y = b.fault >= 0 && !b.right ? b.fault : -1;
  $("#grpo-head").innerHTML = `
    <p class="note">Response ${S.rollout + 1}: every token gets
      <b class="ink">A = ${signed(A)}</b>${y >= 0 ? ", the mistake at ✗, too" : ""}.</p>`;
  const paint = (i) => ({ heat: heat(A), cool: A > 0, classes: i === b.fault ? "fault" : "" });
  show_tokens($("#grpo-text"), b.ids, paint);
  fill($("#grpo-look"), `${clip_chart(A)}${say_clip(A)}<div id="grpo-compared"></div>`);
  compare_with_hindsight(b);
}

// HSD's credit of the same tokens, below. It needs a peer, and a failed rollout.
function compare_with_hindsight(b) {
  const u = uniform(S.group_seed, 99, S.rollout);
  const j = hindsight_sd.choose_peer(S.rollout, right_ones(), u);
  if (b.right || j === null) return;
  const peer = GROUP_NOW.list[j];
  const name = `peer ${j + 1}`;
  const shown = { key: String(j), text: peer.text.trim(), answer: b.problem.answer, name };
  const { credit } = with_context(b, shown);
  $("#grpo-compared").innerHTML =
    `<p class="note">The credit that HSD gives to the same tokens, with ${name}:</p>` +
    '<div class="strip" id="grpo-strip"></div>';
  const marks = b.fault >= 0 ? { [b.fault]: "var(--bad)" } : {};
  show_strip($("#grpo-strip"), credit, null, { is_signed: true, marks });
}

// ======================================================================== the clip

const CLIP_CHART = { width: 440, height: 150, left: 14, right: 14, top: 10, bottom: 26 };
const RATIOS = [0.5, 1.6];

// (3) against the ratio: without the clip (thin) and with it.
function clip_chart(A) {
  const { width, height, left, right, top, bottom } = CLIP_CHART;
  const high = grpo.VARIANTS[S.variant].clip_high;
  const most = 1.7 * Math.max(0.5, Math.abs(A));
  const x_of = (ratio) =>
    left + ((width - left - right) * (ratio - RATIOS[0])) / (RATIOS[1] - RATIOS[0]);
  const y_of = (loss) => top + (height - top - bottom) * (0.5 - loss / (2 * most));
  const grid = Array.from({ length: 111 }, (_, i) => RATIOS[0] + i * 0.01);
  const line = (loss_of) => {
    return grid.map((r) => `${x_of(r).toFixed(1)},${y_of(loss_of(r)).toFixed(1)}`).join(" ");
  };
  const [loss] = grpo.clipped_loss(S.ratio, A, CLIP_LOW, high);
  const clipped = (r) => grpo.clipped_loss(r, A, CLIP_LOW, high)[0];
  const ticks = [1 - CLIP_LOW, 1, 1 + high].map((ratio) => {
    const x = x_of(ratio);
    return (
      `<line x1="${x}" x2="${x}" y1="${top}" y2="${height - bottom}" stroke="var(--line)"/>` +
      `<text x="${x}" y="${height - 8}" text-anchor="middle">${ratio.toFixed(2)}</text>`
    );
  });
  return `
    <svg class="chart still" viewBox="0 0 ${width} ${height}" role="img"
      aria-label="the loss of a token against the ratio, with the clip and without it">
      <line x1="${left}" x2="${width - right}" y1="${y_of(0)}" y2="${y_of(0)}"
        stroke="var(--line)"/>${ticks.join("")}
      <polyline fill="none" stroke="var(--soft)" stroke-dasharray="4 4"
        points="${line((r) => -r * A)}"/>
      <polyline fill="none" stroke="var(--student)" stroke-width="2.5" points="${line(clipped)}"/>
      <circle cx="${x_of(S.ratio)}" cy="${y_of(loss)}" r="6" fill="var(--target)"/>
      <text x="${left}" y="${height - 8}">ρ</text>
      <text x="${left}" y="${top + 8}">ℓ</text></svg>`;
}

function say_clip(A) {
  const high = grpo.VARIANTS[S.variant].clip_high;
  const [loss, stopped] = grpo.clipped_loss(S.ratio, A, CLIP_LOW, high);
  let text = "A gradient flows: the token has not moved far enough yet.";
  if (stopped) text = "The clip stops the gradient: the token has moved far enough.";
  else if (A === 0) text = "A is 0: no gradient, whatever the ratio is.";
  else if ((S.ratio - 1) * A < 0) {
    text = "A gradient flows: the token has moved in the wrong direction, so it is not held.";
  } else if (S.ratio === 1) text = "ρ = 1: the first step on a batch is the plain policy gradient.";
  const value = `ρ = ${S.ratio.toFixed(2)}: ℓ = <b class="ink">${nats(loss)}</b>`;
  return `<p class="note">${value}. ${text}</p>`;
}

// ======================================================================== what a click does

$("#grpo-table").addEventListener("click", (event) => {
  if (!group_is_ready()) return;
  const flip = event.target.closest("[data-flip]");
  const row = event.target.closest("[data-one]");
  if (flip) {
    const turned = flipped();
    const i = Number(flip.dataset.flip);
    if (!turned.delete(i)) turned.add(i);
    S.flipped = [...turned].sort().join(",");
  } else if (row) Object.assign(S, { rollout: Number(row.dataset.one), peer: "", at: -1 });
  if (flip || row) show_grpo();
});

function set_variant(variant) {
  S.variant = variant;
  mark_choice($("#variant"), S.variant);
  show_grpo_equations();
  remember();
  if (group_is_ready() && S.tab === "grpo") show_grpo();
}
make_choice($("#variant"), set_variant);
