// The server's page: charts of the last hour, models and errors.

const TIERS = 5;
const SVG = "http://www.w3.org/2000/svg";
const svg = (name, attributes = {}, ...children) => make(document.createElementNS(SVG, name), attributes, children);
const colour = (tier) => Math.min(tier, TIERS - 1);
const rate = (value) => value >= 100 ? count(value) : digits(value, value >= 10 ? 3 : 2);

// ---- the top: state, summary, notices, cards

function showTop(status) {
  const now = status.now;
  showState(status.state, status.state === "ready" ? "Ready" : "Not ready", location.host, status.notices);
  $("summary").textContent = status.summary;
  $("now-window").textContent = `the last ${span(now.seconds)}`;
  $("about").textContent = `${PROGRAM} ${status.version} · up ${span(status.uptime_s)} · as of ${clockSeconds(status.time)}`;
  const asked = now.requests_per_s + now.failed_per_s;
  const share = asked ? now.failed_per_s / asked : 0;
  showCards([
    ["Requests", rate(now.requests_per_s), "/s", `${rate(now.rows_per_s)} rows/s`],
    ["Latency, median", ...seconds(now.p50_s), "half are faster"],
    ["Latency, p99", ...seconds(now.p99_s), "1 in 100 is slower"],
    ["Failing", asked ? percent(share) : NONE, "", `${rate(now.failed_per_s)} a second`, share > 0.01],
    ["Waiting", count(now.waiting), now.waiting === 1 ? "row" : "rows", `at most ${count(now.queued)} lately`],
    ["Under way", count(now.under_way), now.under_way === 1 ? "call" : "calls", `at most ${count(now.open_calls)} lately`],
  ]);
}

// ---- charts: one frame for all, drawn to the width there is

const PAD = {left: 46, right: 10, top: 8, bottom: 22};

function frameOf(status, width, height) {
  const chosen = Number(document.querySelector("input[name=range]:checked").value);
  const to = status.time, reach = Math.max(Math.min(chosen, status.uptime_s), 60);
  const x = (at) => PAD.left + (at - (to - reach)) / reach * (width - PAD.left - PAD.right);
  return {width, height, from: to - reach, to, reach, x, floor: height - PAD.bottom};
}

function timeAxis(frame) {
  const steps = [10, 30, 60, 120, 300, 600, 900, 1200], most = Math.max(2, Math.floor(frame.width / 110));
  const step = steps.find((size) => frame.reach / size <= most) || 1800;
  const marks = [svg("line", {x1: PAD.left, x2: frame.width - PAD.right, y1: frame.floor, y2: frame.floor, class: "base"})];
  for (let at = Math.ceil(frame.from / step) * step; at <= frame.to; at += step) {
    if (frame.x(at) < PAD.left + 12 || frame.x(at) > frame.width - 18) continue;
    const text = step < 60 ? clockSeconds(at) : clock(at);
    marks.push(svg("text", {x: frame.x(at), y: frame.height - 6, "text-anchor": "middle"}, text));
  }
  return marks;
}

function valueAxis(frame, ticks, y, text) {
  return ticks.flatMap((value) => [
    svg("line", {x1: PAD.left, x2: frame.width - PAD.right, y1: y(value), y2: y(value), class: "grid"}),
    svg("text", {x: PAD.left - 7, y: y(value) + 4, "text-anchor": "end"}, text(value)),
  ]);
}

function roundTicks(top) {
  const size = 10 ** Math.floor(Math.log10(top / 3)), step = [1, 2, 5, 10].find((n) => top / (n * size) <= 4) * size;
  const ticks = [];
  for (let value = 0; value <= top * 1.0001; value += step) ticks.push(value);
  if (ticks.at(-1) < top) ticks.push(ticks.at(-1) + step);
  return ticks;
}

// A line's points [time, value or null], as many as can be status apart: of several slots the highest, or their mean.
function thinned(status, frame, line) {
  const step = [10, 20, 30].find((size) => frame.reach / size <= frame.width / 3) || 60, bins = new Map();
  status.history.ends_at.forEach((at, i) => {
    const key = Math.floor((at - 0.001) / step);
    if (at >= frame.from) bins.set(key, [...(bins.get(key) || []), i]);
  });
  return [...bins.values()].map((slots) => {
    const known = slots.map((i) => line.values[i]).filter((value) => value !== null);
    const mean = known.reduce((a, b) => a + b, 0) / known.length;
    return [status.history.ends_at[slots.at(-1)], known.length ? (line.highest ? Math.max(...known) : mean) : null];
  });
}

// Lines over time; a gap where there is no value. `scale` "log" for seconds.
function lineChart(status, frame, lines, scale, text) {
  const drawn = lines.map((line) => thinned(status, frame, line));
  const values = drawn.flat().map(([, value]) => value).filter((value) => value !== null);
  const body = frame.floor - PAD.top;
  let y, ticks;
  if (scale === "log") {
    const low = Math.floor(Math.log10(Math.min(...values, 1e3))), high = Math.ceil(Math.log10(Math.max(...values, 1e-9)));
    const [from, to] = values.length ? [low, Math.max(high, low + 1)] : [-3, -1];
    y = (value) => frame.floor - (Math.log10(value) - from) / (to - from) * body;
    ticks = Array.from({length: to - from + 1}, (_, i) => Number(`1e${from + i}`));
  } else {
    ticks = roundTicks(Math.max(...values, 1));
    if (Math.max(...values, 0) <= 4) ticks = ticks.filter(Number.isInteger);
    y = (value) => frame.floor - value / ticks.at(-1) * body;
  }
  const marks = [...valueAxis(frame, ticks, y, text), ...timeAxis(frame)];
  lines.forEach((line, i) => {
    const runs = [];
    let run = null;
    for (const [at, value] of drawn[i]) {
      if (value === null) { run = null; continue; }
      if (!run) runs.push(run = []);
      run.push([frame.x(at), y(value)]);
    }
    for (const points of runs) {
      const path = points.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
      if (line.fill) marks.push(svg("path", {d: `${path}L${points.at(-1)[0].toFixed(1)} ${frame.floor}L${points[0][0].toFixed(1)} ${frame.floor}Z`, class: `soft fill-${line.colour}`}));
      marks.push(points.length > 1 ? svg("path", {d: path, class: `line stroke-${line.colour} ${line.dash ? "dash" : ""}`})
        : svg("circle", {cx: points[0][0], cy: points[0][1], r: 2.5, class: `fill-${line.colour}`}));
    }
  });
  return marks;
}

// Rows by the tier where they left, as shares of each bin.
function binned(status, frame, exits) {
  const step = [10, 20, 30, 60].find((size) => frame.reach / size <= Math.min(60, frame.width / 8)) || 120;
  const bins = new Map();
  status.history.ends_at.forEach((at, i) => {
    if (at < frame.from) return;
    const key = Math.floor((at - 0.001) / step) * step, sums = bins.get(key) || [];
    exits[i].forEach((n, tier) => { sums[tier] = (sums[tier] || 0) + n; });
    bins.set(key, sums);
  });
  return {step, bins};
}

function exitChart(status, frame, exits, names) {
  const y = (share) => frame.floor - share * (frame.floor - PAD.top);
  const marks = [...valueAxis(frame, [0, 0.5, 1], y, (share) => `${share * 100}%`), ...timeAxis(frame)];
  const {step, bins} = binned(status, frame, exits);
  for (const [start, sums] of bins) {
    const total = sums.reduce((a, b) => a + b, 0);
    const left = Math.max(frame.x(start), PAD.left), right = Math.min(frame.x(start + step), frame.width - PAD.right);
    if (!total || right - left < 0.5) continue;
    let below = 0;
    names.forEach((_, tier) => {
      const share = (sums[tier] || 0) / total;
      if (!share) return;
      const box = {x: left + 0.5, width: Math.max(right - left - 1, 0.5), y: y(below + share), height: Math.max(y(below) - y(below + share), 0.6)};
      marks.push(svg("rect", {...box, class: `fill-${colour(tier)}`}));
      if (tier) marks.push(svg("rect", {...box, fill: `url(#hatch-${colour(tier)})`}));
      below += share;
    });
  }
  return marks;
}

const swatch = (tier) => svg("svg", {width: 14, height: 14, "aria-hidden": "true"}, svg("rect", {width: 14, height: 14, rx: 3, class: `fill-${colour(tier)}`}),
  tier ? svg("rect", {width: 14, height: 14, rx: 3, fill: `url(#hatch-${colour(tier)})`}) : null);
const stroke = (line) => svg("svg", {width: 20, height: 10, "aria-hidden": "true"}, svg("line", {x1: 1, x2: 19, y1: 5, y2: 5, class: `line stroke-${line.colour} ${line.dash ? "dash" : ""}`}));

// A panel that stays in the page (an open table stays open); `fill` draws it anew.
function panel(home, key, title, height) {
  let figure = home.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (!figure) {
    figure = el("figure", {class: "panel", "data-key": key}, el("figcaption", {}, el("strong", {}, title), el("span", {class: "key"})),
      svg("svg", {class: "chart", role: "img"}), el("div", {class: "under"},
        el("details", {}, el("summary", {}, "As a table"), el("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, as a table`})),
        el("p", {class: "read", "aria-hidden": "true"})));
    home.append(figure);
    const chart = figure.querySelector(".chart");
    chart.addEventListener("pointermove", (event) => point(figure, event));
    chart.addEventListener("pointerleave", () => { figure.pointed = null; point(figure, null); });
  }
  return {figure, title, height};
}

// How wide a panel is, once all panels are in the page.
const framed = (place) => ({...place, frame: frameOf(latest, Math.max(place.figure.clientWidth - 32, 240), place.height)});

function fill({figure, frame, title}, summary, marks, key, read, table) {
  const chart = figure.querySelector(".chart");
  chart.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
  chart.replaceChildren(svg("title", {}, `${title}. ${summary}`), ...marks);
  figure.querySelector(".key").replaceChildren(...key);
  Object.assign(figure, {frame, readAt: read});
  point(figure, null);
  if (figure.querySelector("details").open || !figure.querySelector("table")) figure.querySelector(".scroll").replaceChildren(table());
}

// The values under the pointer.
function point(figure, event) {
  const chart = figure.querySelector(".chart"), box = chart.getBoundingClientRect(), frame = figure.frame;
  if (event) figure.pointed = (event.clientX - box.left) / box.width;
  chart.querySelector(".cursor")?.remove();
  const read = figure.querySelector(".read");
  if (figure.pointed === null || figure.pointed === undefined) { read.textContent = ""; return; }
  const x = Math.min(Math.max(figure.pointed * frame.width, PAD.left), frame.width - PAD.right);
  const at = frame.from + (x - PAD.left) / (frame.width - PAD.left - PAD.right) * frame.reach;
  chart.append(svg("line", {x1: x, x2: x, y1: PAD.top, y2: frame.floor, class: "cursor"}));
  read.textContent = figure.readAt(at);
}

function slotAt(status, at) {
  const found = status.history.ends_at.findIndex((end) => end >= at);
  return found < 0 ? status.history.ends_at.length - 1 : found;
}

// Five-minute rows of a table: [[time, slot numbers]], the latest first.
function stretches(status, frame) {
  const step = frame.reach > 900 ? 300 : 60, groups = new Map();
  status.history.ends_at.forEach((at, i) => {
    if (at < frame.from) return;
    const key = Math.floor((at - 0.001) / step) * step;
    groups.set(key, [...(groups.get(key) || []), i]);
  });
  return [...groups].reverse();
}

function showCharts(status) {
  const history = status.history;
  const cascades = status.models.filter((model) => model.tiers.length > 1);
  prune($("exits"), cascades.map((model) => `exits ${model.name}`));
  for (const model of cascades) showExits(status, model);

  const sum = (list, slots) => slots.reduce((total, i) => total + list[i], 0);
  const worst = (list, slots) => slots.reduce((most, i) => list[i] === null ? most : Math.max(most ?? 0, list[i]), null);
  const perSecond = history.requests.map((n, i) => n / Math.max(history.seconds[i], 0.5));
  const failing = history.failed.map((n, i) => n / Math.max(history.seconds[i], 0.5));
  const answered = {name: "answered", values: perSecond, colour: 0, fill: true}, failed = {name: "failed", values: failing, colour: 2, dash: true};
  const half = {name: "median", values: history.p50_s, colour: 0}, most = {name: "p99", values: history.p99_s, colour: 2, dash: true, highest: true};
  const queued = {name: "rows waiting, at most", values: history.queued, colour: 1, fill: true, highest: true};
  const charts = [
    ["Latency", [half, most], "log", secondsText, "Latency by time", ["until", "median, at most", "p99, at most"],
      (slots) => [secondsText(worst(history.p50_s, slots)), secondsText(worst(history.p99_s, slots))],
      `Now half are answered within ${secondsText(status.now.p50_s)} and 99% within ${secondsText(status.now.p99_s)}.`],
    ["Requests/s", [answered, failed], "linear", rate, "Requests by time", ["until", "answered", "failed"],
      (slots) => [count(sum(history.requests, slots)), count(sum(history.failed, slots))],
      `Now ${rate(status.now.requests_per_s)} answered and ${rate(status.now.failed_per_s)} failed a second.`],
    ["Queue", [queued], "linear", count, "Rows waiting by time", ["until", "rows waiting, at most"],
      (slots) => [count(worst(history.queued, slots) ?? 0)], `Now ${count(status.now.waiting)} rows wait.`],
  ];
  for (const [title] of charts) panel($("charts"), title, title, 170);
  for (const [title, lines, scale, text, caption, head, cells, summary] of charts) {
    const place = framed(panel($("charts"), title, title, 170));
    const read = (at) => {
      const i = slotAt(status, at);
      return `${clockSeconds(history.ends_at[i])}: ${lines.map((line) => `${line.name} ${line.values[i] === null ? NONE : text(line.values[i])}`).join(", ")}`;
    };
    const rows = () => table(caption, head, stretches(status, place.frame).map(([, slots]) => [clockSeconds(history.ends_at[slots.at(-1)]), ...cells(slots)]));
    fill(place, summary, lineChart(status, place.frame, lines, scale, text), lines.map((line) => el("span", {}, stroke(line), line.name)), read, rows);
  }
}

function showExits(status, model) {
  const names = model.tiers.map((tier) => `tier ${tier.number}, ${tier.name}`);
  const exits = status.history.exits[model.name] || status.history.ends_at.map(() => []);
  const place = framed(panel($("exits"), `exits ${model.name}`, `Where rows for ${model.name} leave`, 190));
  const shares = (sums) => {
    const total = sums.reduce((a, b) => a + (b || 0), 0);
    return names.map((_, tier) => total ? percent((sums[tier] || 0) / total) : NONE);
  };
  const {step, bins} = binned(status, place.frame, exits);
  const all = [...bins.values()].reduce((so, sums) => names.map((_, tier) => (so[tier] || 0) + (sums[tier] || 0)), []);
  const overall = shares(all);
  const read = (at) => {
    const key = Math.floor(at / step) * step, sums = bins.get(key);
    return sums ? `${clockSeconds(key)}, ${span(step)}: ${names.map((name, i) => `${name} ${shares(sums)[i]}`).join("; ")}` : "";
  };
  const rows = () => table("Where rows left, by time", ["until", "rows", ...names], stretches(status, place.frame).map(([, slots]) => {
    const sums = slots.reduce((so, i) => names.map((_, tier) => (so[tier] || 0) + (exits[i][tier] || 0)), []);
    return [clockSeconds(status.history.ends_at[slots.at(-1)]), count(sums.reduce((a, b) => a + b, 0)), ...shares(sums)];
  }));
  const summary = `In all: ${names.map((name, i) => `${name} ${overall[i]}`).join("; ")}.`;
  fill(place, summary, exitChart(status, place.frame, exits, names), names.map((name, i) => el("span", {}, swatch(i), `${name}: ${overall[i]}`)), read, rows);
}

// ---- models and errors

function showModels(status) {
  keep($("models"), JSON.stringify(status.models), () => status.models.map(modelPanel));
}

function modelPanel(model) {
  const title = el("div", {class: "title"}, el("h3", {}, model.name),
    el("p", {class: "pill", "data-state": model.ready ? "ready" : "not ready"}, el("span", {class: "sign", "aria-hidden": "true"}), model.ready ? "Ready" : "Not ready"));
  const done = model.requests ? `median ${secondsText(model.p50_s)}, p99 ${secondsText(model.p99_s)}` : "not asked yet";
  return el("article", {class: "panel model"}, title,
    el("p", {class: "facts"}, "version ", el("code", {}, model.version), ` · ${count(model.requests)} requests, ${count(model.rows)} rows, ${count(model.failed)} failed · ${done}`),
    el("div", {class: "tiers"}, model.tiers.map((tier, i) => tierPart(model, tier, i))));
}

function tierPart(model, tier, place) {
  const share = model.rows ? tier.exits / model.rows : 0;
  const facts = [];
  if (model.rows) facts.push(`${percent(share)} of rows leave here (${count(tier.exits)} of ${count(tier.rows)} that came)`);
  if (tier.agreement !== null) facts.push(`agreement ${percent(tier.agreement)} on average`);
  if (tier.p50_s !== null) facts.push(`median ${secondsText(tier.p50_s)}, p99 ${secondsText(tier.p99_s)}`);
  if (tier.queued) facts.push(`${count(tier.queued)} rows waiting`);
  const meter = svg("svg", {class: "meter", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img"},
    svg("title", {}, `${percent(share)} of rows leave at tier ${tier.number}`),
    svg("rect", {width: 100, height: 10, class: "all"}), svg("rect", {width: (share * 100).toFixed(2), height: 10, class: `fill-${colour(place)}`}));
  return el("section", {class: `tier edge-${colour(place)}`}, el("h4", {}, `Tier ${tier.number} · ${tier.name}`),
    el("p", {}, tier.rule, tier.address ? ` · ${tier.address}` : ""), meter, el("p", {}, facts.join(" · ") || "no rows yet"),
    el("ul", {class: "members"}, tier.members.map((member) => memberLine(member, `${model.name}/${tier.name}/${member.name}`))));
}

function memberLine(member, key) {
  const facts = [member.runs_on || member.format];
  if (member.accuracy !== null) facts.push(`${percent(member.accuracy)} on calibration`);
  const sum = member.sha256 ? el("details", {"data-open": key}, el("summary", {}, el("code", {}, `sha256 ${member.sha256.slice(0, 12)}…`)), el("code", {}, member.sha256)) : el("span", {}, "no checksum");
  return el("li", {}, el("b", {}, member.name), " ", el("span", {}, facts.join(" · ")), sum);
}

function showErrors(status) {
  const caption = `Requests that failed: in the last ${span(status.now.seconds)}, in the last hour, and since the start`;
  keep($("errors"), JSON.stringify([status.errors, caption]), () => {
    if (!status.errors.length) return [el("p", {class: "panel none"}, "None since the start.")];
    const head = ["code", "now", "hour", "in all"].map((name) => el("th", {scope: "col"}, name));
    const rows = status.errors.map((one) => el("tr", {}, el("th", {scope: "row", class: "wide"}, el("code", {}, one.code), el("small", {}, one.meaning)), [one.now, one.hour, one.total].map((n) => el("td", {}, count(n)))));
    return [el("div", {class: "panel model scroll", tabindex: "0", role: "region", "aria-label": "Errors by code"}, el("table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)))];
  });
}

function prune(home, keys) {
  for (const child of [...home.children]) if (!keys.includes(child.dataset.key)) child.remove();
}

// ---- asking

function show(status) {
  showTop(status);
  showCharts(status);
  showModels(status);
  showErrors(status);
}
const showAgain = () => { if (latest) show(latest); };

document.querySelectorAll("input[name=range]").forEach((choice) => choice.addEventListener("change", showAgain));
document.addEventListener("toggle", (event) => { if (event.target.closest?.("figure")) showAgain(); }, true);
let drawnAt = 0;
new ResizeObserver(([entry]) => {
  const width = Math.round(entry.contentRect.width);
  if (width !== drawnAt) { drawnAt = width; requestAnimationFrame(showAgain); }
}).observe($("charts"));
follow("server", show, 1);
