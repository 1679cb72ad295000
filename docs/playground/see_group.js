// The group of rollouts that HSD and GRPO look at: it is written, judged, and one is chosen.

const GROUP_NOW = { list: [], run: 0, drawn: "" };

const group_is_ready = () => GROUP_NOW.list.length === GROUP;
const chosen_rollout = () => GROUP_NOW.list[S.rollout];
const one_is_chosen = () => S.rollout >= 0 && S.rollout < GROUP;
const right_ones = () => GROUP_NOW.list.map((b) => b.right);

function show_group_tab() {
  if (S.tab === "hindsight_sd") show_hindsight_sd();
  if (S.tab === "grpo") show_grpo();
}

// (1): G rollouts of one question. Rollout j has a stream of random numbers of its own.
async function roll_group() {
  const drawn = `${problem.text} ${S.group_seed}`;
  if (GROUP_NOW.drawn === drawn && group_is_ready()) {
    if (!one_is_chosen()) choose_failed(); // an example or another problem has forgotten it
    return show_group_tab();
  }
  const run = ++GROUP_NOW.run;
  const asked = problem; // another tab may set another one while this is written
  const writer = stem("group", "reader");
  const n = asked.ids.length;
  if (GROUP_NOW.drawn !== "") S.rollout = -1; // a link may have chosen one of its first group
  Object.assign(GROUP_NOW, { drawn, list: [] });
  for (let j = 0; j < GROUP; j++) {
    const start = performance.now();
    const rollout = { problem: asked, ids: [], logp: [], seen: {} };
    const { ids } = rollout;
    writer.read(asked.ids);
    while (ids.length < LONGEST_ROLLOUT && ids.at(-1) !== TOKENS.end) {
      const token = next_token(writer, n, { seed: S.group_seed, stream: j });
      rollout.logp.push(writer.logp(n + ids.length));
      writer.push([token]);
      ids.push(token);
    }
    TIMES.write += performance.now() - start;
    TIMES.written += ids.length;
    judge(rollout);
    GROUP_NOW.list.push(rollout);
    show_group_tab();
    await frame();
    if (run !== GROUP_NOW.run) return;
    if (problem.text !== asked.text) {
      Object.assign(GROUP_NOW, { drawn: "", list: [] }); // it is not wanted any more
      return;
    }
  }
  if (!one_is_chosen()) choose_failed();
  show_group_tab();
}

// The first failed one; if there is none, the first one.
function choose_failed() {
  S.rollout = Math.max(0, right_ones().indexOf(false));
  S.peer = "";
  S.at = -1;
}

function say_group() {
  const ready = group_is_ready();
  // GRPO compares the verdicts as the visitor has turned them over.
  const right = S.tab === "grpo" && ready ? grpo_numbers().right : right_ones();
  const count = right.filter(Boolean).length;
  const failed = GROUP - count;
  let text = `writing … ${GROUP_NOW.list.length} of ${GROUP}`;
  if (ready) {
    text = `<b>${count}</b> of ${GROUP} are right. `;
    if (S.tab === "grpo") {
      const silent = count === 0 || count === GROUP;
      text += silent ? "All verdicts agree." : "They are compared.";
    } else if (count === 0) text += "Nobody has a peer. There is only the answer to be shown.";
    else if (failed === 0) text += "Nobody failed, so there is little to learn here.";
    else {
      const share = hindsight_sd.coverage(count / GROUP, GROUP).toFixed(2);
      text +=
        `So ${failed} of ${GROUP} failed and have a peer. (If a rollout is right with ` +
        `probability ${percent(count / GROUP)}, this share is ${share} on average.)`;
    }
  }
  say($("#group-says"), text);
}
