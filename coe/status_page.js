"use strict";
// What the status pages share: makers of elements, numbers as people read them, and asking for status.json again and
// again. Whatever a server says is set as text, never read as HTML.

const EVERY_MS = 3000, GIVE_UP_MS = 6000;
const PROGRAM = document.title;
const $ = (id) => document.getElementById(id);

// ---- small makers: el("p", {class: "note"}, "text", child)

function make(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
  for (const child of children.flat()) if (child !== null) node.append(child);
  return node;
}
const el = (name, attributes = {}, ...children) => make(document.createElement(name), attributes, children);

function table(caption, head, rows) {
  return el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, head.map((name) => el("th", {scope: "col"}, name)))),
    el("tbody", {}, rows.map(([first, ...cells]) => el("tr", {}, el("th", {scope: "row"}, first), cells.map((cell) => el("td", {}, cell))))));
}

// Rows of [name, value, unit, what else there is to it, whether it is alarming].
function showCards(cards) {
  $("cards").replaceChildren(...cards.map(([name, value, unit, more, alarm]) =>
    el("div", {class: alarm ? "card alarm" : "card"}, el("dt", {}, name),
      el("dd", {class: "value"}, value, " ", el("span", {}, unit)), el("dd", {class: "more"}, more))));
}

// ---- numbers as people read them

const NONE = "–";
const digits = (value, n = 3) => Number(value.toPrecision(n)).toLocaleString("en", {maximumFractionDigits: 9});
const count = (value) => Math.round(value).toLocaleString("en");
const clock = (at) => new Date(at * 1000).toLocaleTimeString([], {hour: "2-digit", minute: "2-digit", hourCycle: "h23"});
const clockSeconds = (at) => new Date(at * 1000).toLocaleTimeString([], {hourCycle: "h23"});

function percent(share, places = null) {
  if (share === null) return NONE;
  if (places === null && share > 0 && share < 0.001) return "<0.1%";
  return `${(share * 100).toFixed(places ?? (share < 0.9995 && share > 0 ? 1 : 0))}%`;
}

function seconds(value) {
  if (value === null) return [NONE, ""];
  if (value < 0.0009995) return [digits(value * 1e6), "µs"];
  return value < 0.9995 ? [digits(value * 1e3), "ms"] : [digits(value), "s"];
}
const secondsText = (value) => seconds(value).join(" ").trim();

function span(total) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = Math.max(parts.findIndex(([size]) => total >= size), 0);
  const shown = [];
  for (const [size, unit] of total < 1 ? [[1, "s"]] : parts.slice(first, first + 2)) {
    const n = Math.floor(total / size);
    total -= n * size;
    if (n || !shown.length) shown.push(`${n} ${unit}`);
  }
  return shown.join(" ");
}

// ---- state, notices, and what is read out when they change

let spokenState = "";

// `notices`: [{level: "bad", "warn" or "info", text, name or null}]
function showState(state, word, subject, notices) {
  $("subject").textContent = subject;
  $("state").dataset.state = state;
  $("state-word").textContent = word;
  document.title = `${state === "not ready" ? "(not ready) " : ""}${PROGRAM} · ${subject}`;
  const words = {bad: "Problem", warn: "Look at this", info: "Note"};
  keep($("notices"), JSON.stringify(notices), () => notices.map((one) =>
    el("li", {class: `notice ${one.level}`}, el("b", {}, one.name ?? words[one.level]), one.text)));
  const spoken = state + notices.map((one) => one.text.replace(/\d+/g, "")).join();
  if (spoken !== spokenState) $("announce").textContent = [word, ...notices.map((one) => one.text)].join(". ");
  spokenState = spoken;
}

// ---- keeping what has not changed, so that focus and open parts stay

function keep(home, now, build) {
  const marked = getSelection();
  if (home.shown === now || (!marked.isCollapsed && home.contains(marked.anchorNode))) return;  // somebody is copying
  home.shown = now;
  const open = new Set([...home.querySelectorAll("details[open]")].map((part) => part.dataset.open));
  const focused = home.contains(document.activeElement) ? document.activeElement.closest("details")?.dataset.open : null;
  home.replaceChildren(...build());
  for (const part of home.querySelectorAll("details[data-open]")) {
    part.open = open.has(part.dataset.open);
    if (focused && part.dataset.open === focused) part.querySelector("summary").focus({preventScroll: true});
  }
}

// ---- asking

let latest = null, heardAt = 0, lostSince = 0;

function lost(who, reason) {
  if (!lostSince) $("announce").textContent = `The ${who} cannot be reached.`;
  lostSince = lostSince || Date.now();
  spokenState = "lost";
  const age = latest ? ` What you see is from ${clockSeconds(heardAt / 1000)}, ${span((Date.now() - heardAt) / 1000)} ago.` : "";
  $("lost").textContent = `The ${who} cannot be reached since ${clockSeconds(lostSince / 1000)} (${reason}). Trying again every ${EVERY_MS / 1000} s.${age}`;
  $("lost").hidden = false;
  $("state").dataset.state = "lost";
  $("state-word").textContent = "Not reached";
  document.body.classList.add("stale");
  document.title = `(not reached) ${PROGRAM} · ${location.host}`;
  if (!latest) $("summary").textContent = `No answer from the ${who}.`;
}

async function ask(who, show, schema) {
  try {
    const answer = await fetch("status.json", {cache: "no-store", signal: AbortSignal.timeout(GIVE_UP_MS)});
    if (!answer.ok) throw new Error(`it answers ${answer.status}`);
    const status = await answer.json();
    if (status.schema !== schema) throw new Error("it is of another version: load this page anew");
    latest = status;
    heardAt = Date.now();
    lostSince = 0;
    $("lost").hidden = true;
    document.body.classList.remove("stale", "early");
    show(latest);
  } catch (error) {
    lost(who, error.name === "TimeoutError" ? "no answer in time" : error instanceof TypeError ? "no connection" : error.message);
  }
}

// Asks while the page is visible; `show` gets each answer. `schema`: the version of status.json, where it has one.
async function follow(who, show, schema) {
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(who, show, schema); });
  for (;;) {
    if (!document.hidden) await ask(who, show, schema);
    await new Promise((wake) => setTimeout(wake, EVERY_MS));
  }
}
