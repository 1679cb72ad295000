// The page of look.py: its tabs, its filter, and the panel of a token. The texts come from models
// and data, which strangers wrote. So they are set as text here, never as HTML.
"use strict";
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const data = JSON.parse(document.getElementById("data").textContent);
const panel = document.getElementById("panel");
let chosen = null; // the token whose panel is open

const add = (parent, tag, text = "") => {
  const element = parent.appendChild(document.createElement(tag));
  element.textContent = text;
  return element;
};

function close() {
  for (const old of all(".chosen, .on, .linked")) old.classList.remove("chosen", "on", "linked");
  chosen = null;
  panel.hidden = true;
}

function open(token) {
  close();
  chosen = token;
  token.classList.add("chosen");
  const pane = token.closest(".pane"), { i, to, note } = token.dataset;
  // A token of the student's window is a token of the rollout, and shows what that one shows.
  const own = i && pane.querySelector(`.rollout [data-i="${i}"]`);
  panel.replaceChildren();
  add(panel, "h2", (own ?? token).textContent);
  add(panel, "p", own ? own.title : note);
  const button = add(panel, "button", "×");
  button.ariaLabel = "close";
  button.onclick = () => {
    close();
    token.focus({ preventScroll: true }); // the button is gone, and the focus with it
  };
  const lists = add(panel, "div"), number = pane.closest("article").id.slice(1) - 1;
  lists.className = "lists";
  for (const [reader, tokens] of Object.entries(own ? data[number][pane.dataset.method] : {})) {
    const table = add(lists, "table");
    add(table, "caption", reader);
    for (const [word, probability, was_written] of tokens[i]) {
      const row = add(table, "tr");
      row.className = was_written ? "written" : "";
      add(row, "th", word).scope = "row";
      add(row, "td", probability.toFixed(3));
    }
  }
  panel.hidden = false;
  token.scrollIntoView({ block: "nearest" }); // on a narrow screen the panel could cover it
  // Its links stand out: those of a student's token in all windows, of a teacher's in its own.
  const place = to ? token.closest("svg") : pane;
  for (const line of all(to ? `line[data-to="${to}"]` : `line[data-i="${i}"]`, place)) {
    line.classList.add("on");
    line.closest("svg").classList.add("linked");
  }
}

document.onclick = (event) => {
  const token = event.target.closest("[role=button]");
  if (token) open(token);
};
document.onkeydown = (event) => {
  if (event.key === "Escape") close();
  const token = event.target.closest("[role=button]");
  const step = { ArrowLeft: -1, ArrowRight: 1, Enter: 0, " ": 0 }[event.key];
  if (!token || step === undefined) return;
  event.preventDefault(); // a space would scroll
  const group = all("[role=button]", token.closest("[data-group]"));
  const next = group[group.indexOf(token) + step] ?? token;
  next.focus();
  if (step === 0 || chosen) open(next);
};

function show(method) {
  // The open token stays open, as the other method sees it.
  const i = chosen?.dataset.i, article = chosen?.closest("article");
  close();
  for (const pane of all(".pane")) pane.hidden = pane.dataset.method !== method;
  const same = i && article.querySelector(`.pane:not([hidden]) .rollout [data-i="${i}"]`);
  if (same) open(same);
}
for (const tab of all("[name=method]")) {
  tab.onchange = () => show(tab.value);
  if (tab.checked) show(tab.value);
}
const filter = document.getElementById("only-wrong");
filter.onchange = () => {
  document.body.classList.toggle("only-wrong", filter.checked);
  if (filter.checked && chosen?.closest("article.right")) close(); // its rollout is hidden now
};
filter.onchange(); // a browser may remember the tick
