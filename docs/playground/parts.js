// Parts that several sections use: numbers as text, coloured tokens, bars, strips, choices.

const RED_FROM = 2; // nats at which a token is fully red, or fully green (common/page.py)

// ======================================================================== numbers and names

function percent(p) {
  if (p >= 0.01) return p.toFixed(2).replace(/^0/, "");
  if (p >= 0.0005) return p.toFixed(3).replace(/^0/, "");
  return p > 0 ? `10<sup>${Math.round(Math.log10(p))}</sup>` : "0";
}
const chance = (logp) => percent(Math.exp(logp));

function nats(x, digits = 2) {
  const is_zero = Math.abs(x) < 0.5 * 10 ** -digits;
  return (is_zero ? (0).toFixed(digits) : x.toFixed(digits)).replace("-", "−");
}
const signed = (x) => (x >= 0.005 ? "+" : "") + nats(x);
const in_brackets = (x) => (nats(x).startsWith("−") ? `(${nats(x)})` : nats(x));

// The name of a token, as text and as HTML. A dot stands for the space before a word.
function bare(id) {
  if (id === TOKENS.end) return "end";
  return TOKENS.text[id] === "\n" ? "line" : TOKENS.text[id].trim();
}
function named(id) {
  if (id === TOKENS.end) return "<i>end</i>";
  const space = TOKENS.text[id].startsWith(" ") ? '<span class="space">·</span>' : "";
  return space + escaped(bare(id));
}

const P_S = '<i class="s">p<sub>S</sub></i>';
const P_T = '<i class="t">p<sub>T</sub></i>';
const Q = '<i class="full">q</i>';

// ======================================================================== HTML

// Replaces the content of an element. If the focus was inside, it returns to the new element with
// the same data-key. Otherwise a click by keyboard would send it to the top of the page.
function fill(element, html) {
  const focused = element.contains(document.activeElement) && document.activeElement;
  const key = focused && focused.dataset.key;
  element.innerHTML = html;
  if (key) $(`[data-key="${CSS.escape(key)}"]`, element)?.focus({ preventScroll: true });
}

// Replaces a sentence that a screen reader reads out, but only by another one: it would read the
// same sentence again at every arrow key.
function say(element, html) {
  if (element.said === html) return;
  element.said = html;
  element.innerHTML = html;
}

// The strength of a token's colour, 0 to 1.
function heat(x) {
  const share = Math.min(1, Math.abs(x) / RED_FROM);
  return share < 0.02 ? 0 : 0.06 + 0.66 * share;
}

// A text as coloured tokens. paint(i): { heat, cool, classes, title, after } of token i.
function show_tokens(element, ids, paint, writing = false) {
  const chosen = [];
  const pickable = element.getAttribute("role") === "listbox";
  const spans = ids.map((id, i) => {
    const { heat = 0, cool, classes = "", title = "", after = "" } = paint(i) || {};
    const line = TOKENS.text[id] === "\n" ? "↵" : TOKENS.text[id];
    const text = id === TOKENS.end ? "end" : line;
    const space = text.startsWith(" ") ? " " : "";
    const on = /\bon\b/.test(classes);
    if (on) chosen.push(`${element.id}-${i}`);
    const all = `token ${cool ? "cool" : ""} ${id === TOKENS.end ? "end" : ""} ${classes}`;
    const role = pickable ? `role="option" aria-selected="${on}"` : "";
    return (
      `${space}<span id="${element.id}-${i}" data-i="${i}" class="${all}" ${role} ` +
      `style="--heat:${heat.toFixed(3)}" ` +
      `title="${escaped(title)}">${escaped(text.trim() || text)}</span>${after}`
    );
  });
  element.innerHTML = spans.join("") + (writing ? '<span class="cursor"></span>' : "");
  // What a screen reader says when the arrow keys move.
  if (chosen.length) element.setAttribute("aria-activedescendant", chosen[0]);
  else element.removeAttribute("aria-activedescendant");
}

// A click on a token or on its bar, and the arrow keys. count(): 0 while nothing can be chosen.
function make_pickable(element, strip, count, chosen, choose) {
  const go = (i) => {
    const n = count();
    if (n) choose(Math.max(0, Math.min(n - 1, i)));
  };
  element.addEventListener("click", (event) => {
    const token = event.target.closest(".token");
    if (token) go(Number(token.dataset.i));
  });
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -1e4, End: 1e4 };
  element.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault(); // the page would scroll
    go((chosen() ?? 0) + steps[event.key]);
    $(".on", element)?.scrollIntoView({ block: "nearest" });
  });
  strip?.addEventListener("click", (event) => {
    const box = strip.getBoundingClientRect();
    go(Math.floor(((event.clientX - box.left) / box.width) * count()));
  });
}

// One bar for each token. marks: {position: colour} below the bars.
function show_strip(element, values, chosen, { is_signed = false, marks = {} } = {}) {
  const n = values.length;
  const height = 52;
  if (!n) {
    element.innerHTML = "";
    return;
  }
  const most = Math.max(RED_FROM, ...values.map(Math.abs));
  const zero = is_signed ? height / 2 : height;
  const bars = values.map((x, i) => {
    const h = Math.max(0.8, (Math.abs(x) / most) * zero);
    const colour = is_signed && x > 0 ? "var(--cool)" : "var(--hot)";
    const strength = Math.abs(x) < 0.02 ? 0.25 : 0.85;
    return (
      `<rect x="${i + 0.1}" width="0.8" y="${x < 0 ? zero : zero - h}" height="${h}" ` +
      `fill="rgb(${colour} / ${strength})"/>`
    );
  });
  const here =
    chosen === null
      ? ""
      : `<rect x="${chosen}" width="1" y="0" height="${height}" fill="var(--ink)" opacity=".14"/>`;
  const below = Object.entries(marks).map(([i, colour]) => {
    const place = `x="${Number(i) + 0.1}" y="${height + 2}"`;
    return `<rect ${place} width="0.8" height="3" fill="${colour}"/>`;
  });
  const label = `one bar for each token, highest ${most.toFixed(1)} nats`;
  element.innerHTML =
    `<span class="most" aria-hidden="true">${most.toFixed(1)} nats</span>` +
    `<svg viewBox="0 0 ${n} ${height + 6}" preserveAspectRatio="none" role="img" ` +
    `aria-label="${label}">${here}${bars.join("")}${below.join("")}` +
    `<line x1="0" x2="${n}" y1="${zero}" y2="${zero}" stroke="var(--line)" ` +
    `vector-effect="non-scaling-stroke"/></svg>`;
}

function show_legend(element, is_signed, what) {
  const levels = is_signed ? [-2, -1, -0.5, 0.5, 1, 2] : [0, 0.25, 0.5, 1, 1.5, 2];
  const cells = levels.map((x) => {
    const sign = is_signed && x > 0 ? "+" : "";
    const cool = is_signed && x > 0 ? "cool" : "";
    const text = sign + String(x).replace("-", "−");
    return `<span class="${cool}" style="--heat:${heat(x)}">${text}</span>`;
  });
  element.innerHTML =
    `<span>${what}</span><span class="scale">${cells.join("")}</span>` +
    `<span>nats and more</span>`;
}

// The head of a panel that shows one token: its number, its name, one back, one forward.
function token_head(ids, at) {
  const button = (step, sign, label) => {
    return (
      `<button class="button tiny" data-step="${step}" data-key="step${step}" ` +
      `aria-label="${label}">${sign}</button>`
    );
  };
  return `
    <div class="head">${button(-1, "◀", "token before")}
      <span class="what">token ${at + 1} of ${ids.length}
        <b class="word">${named(ids[at])}</b></span>
      ${button(1, "▶", "token after")}</div>`;
}

// Tokens of the highest probability in any of the distributions, and those in `also`.
function likeliest(distributions, n, also = []) {
  const most = (v) => Math.max(...distributions.map((x) => x[v]));
  const all = Array.from({ length: distributions[0].length }, (_, v) => v);
  const best = all.sort((a, b) => most(b) - most(a)).slice(0, n);
  const shown = best.filter((v, i) => i < 4 || Math.exp(most(v)) >= 0.004);
  for (const v of also) if (!shown.includes(v)) shown.push(v);
  return shown;
}

// A horizontal bar. tick: a thin line at another probability.
function bar(p, colour, size = "", tick = null) {
  const line = tick === null ? "" : `<b style="left:${(100 * tick).toFixed(2)}%"></b>`;
  const width = (100 * Math.min(1, p)).toFixed(2);
  const filled = `<i class="fill-${colour}" style="width:${width}%"></i>`;
  return `<span class="bar ${size}">${filled}${line}</span>`;
}

// What the colours of the bars mean: [[colour, text]].
function key(pairs) {
  const items = pairs.map(([colour, text]) => `<span><i class="fill-${colour}"></i>${text}</span>`);
  return `<div class="key">${items.join("")}</div>`;
}

// Marks of a group of radio buttons which one is chosen.
function mark_choice(group, value) {
  for (const button of $$("[data-choice]", group)) {
    const on = button.dataset.choice === value;
    button.setAttribute("aria-checked", on);
    button.tabIndex = on ? 0 : -1;
  }
}

// A group of radio buttons: click, and arrow keys as in every radio group.
function make_choice(group, choose) {
  group.addEventListener("click", (event) => {
    const button = event.target.closest("[data-choice]");
    if (button) choose(button.dataset.choice);
  });
  group.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const all = $$("[data-choice]", group);
    const i = all.indexOf(document.activeElement);
    if (!step || i < 0) return;
    event.preventDefault();
    const next = all[(i + step + all.length) % all.length].dataset.choice;
    choose(next);
    $(`[data-choice="${next}"]`, group).focus();
  });
}

// What stands below the words: how often continuations from here are right.
function stake(stakes, v) {
  if (!stakes || stakes[v] === undefined) return "";
  const text = stakes[v] === null ? "…" : `<b>${stakes[v]}</b>/${CONTINUATIONS} right`;
  return `<small class="stake">${text}</small>`;
}
