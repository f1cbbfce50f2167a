"use strict";
// Shows status.json, and asks for it again every two seconds. Everything it shows is set as text, never as markup.

const EVERY_MS = 2000;
const at = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1e-3) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1e3).toFixed(value < 0.01 ? 2 : 0)} ms`;
  if (value < 120) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  if (value < 7200) return `${(value / 60).toFixed(0)} min`;
  return value < 172800 ? `${(value / 3600).toFixed(0)} h` : `${(value / 86400).toFixed(0)} days`;
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  return `${value.toFixed(unit && value < 100 ? 1 : 0)} ${units[unit]}`;
}

const percent = (share, digits = 1) => (share === null ? "–" : `${(share * 100).toFixed(digits)}%`);

function card(name, value, more = "") {
  return element("div", { class: "card" }, element("dt", {}, name),
    element("dd", {}, element("div", { class: "value" }, value), element("div", { class: "more" }, more)));
}

function table(caption, heads, rows) {
  const head = element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text))));
  const body = element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text, column) =>
    column ? element("td", {}, String(text)) : element("th", { scope: "row" }, String(text))))));
  return element("div", { class: "panel scroll" }, element("table", {}, element("caption", {}, caption), head, body));
}

function decision(record, tiers) {
  const where = whereOf(record, tiers);
  const picture = record.thumbnail
    ? element("img", { src: `thumbnails/${record.number}`, alt: `example ${record.id}`, width: 56, height: 56, loading: "lazy" })
    : element("div", { class: "blank", "aria-hidden": "true" }, "no picture");
  const votes = record.label === undefined ? "" : `${Math.round(record.vote * record.asked)} of ${record.asked} votes, `;
  return element("li", { class: "decision", "data-kind": where.kind }, picture, element("div", {},
    element("strong", {}, record.name ?? "no answer"),
    element("p", { class: "where" }, where.words),
    element("p", {}, `${votes}${seconds(record.latency_s)}`),
    where.why ? element("p", {}, where.why) : null,
    element("p", {}, record.id)));
}

function whereOf(record, tiers) {
  if (record.corrects) return { kind: "sent", words: `↻ corrected by tier ${record.exit_tier}`, why: "" };
  if (record.label === undefined) return { kind: "failed", words: "✕ failed", why: record.error };
  if (record.degraded) return { kind: "degraded", words: "▲ degraded", why: record.degraded };
  if (record.call) return { kind: "sent", words: `↑ tier ${record.exit_tier}`, why: "" };
  return { kind: "here", words: `● here, ${tiers[record.exit_tier - 1] ?? "tier 1"}`, why: "" };
}

function notices(told) {
  const found = [];
  for (const link of told.links) {
    if (link.status !== "closed") found.push(["warn", "Link", `${link.tier} cannot be reached: ${link.error || link.status}`]);
    else if (link.is_draining) found.push(["warn", "Link", `${link.tier} is draining`]);
  }
  for (const gauge of told.drift) {
    if (gauge.state === "outside") found.push(["warn", "Drift",
      `${gauge.what} is ${percent(gauge.share)}, outside ${percent(gauge.band[0])} to ${percent(gauge.band[1])}`]);
  }
  for (const sink of told.sinks) if (sink.failing) found.push(["bad", "Sink", `${sink.name} takes nothing: ${sink.error}`]);
  if (told.spool && told.spool.error) found.push(["bad", "Spool", told.spool.error]);
  return found;
}

function show(told) {
  document.body.classList.remove("stale");
  at("lost").hidden = true;
  at("task").textContent = told.task;
  document.title = `coe-edge ${told.task}`;
  const found = notices(told);
  const state = found.some(([kind]) => kind === "bad") ? "bad" : found.length ? "warn" : "good";
  at("state").dataset.state = state;
  const word = { good: "running", warn: "running, with a notice", bad: "running, with trouble" }[state];
  if (at("state-word").textContent !== word) {
    at("state-word").textContent = word;
    at("announce").textContent = word;
  }
  at("notices").replaceChildren(...found.map(([kind, name, words]) =>
    element("li", { class: `notice ${kind}` }, element("b", {}, name), words)));
  at("summary").textContent = told.examples
    ? `${percent(told.kept_share)} of ${whole.format(told.examples)} examples were decided on this device; ` +
      `${bytes(told.bytes_sent)} were sent for the others.`
    : "No example yet.";
  at("cards").replaceChildren(
    card("Examples", whole.format(told.examples), `running for ${seconds(told.uptime_s)}`),
    card("Kept on the device", percent(told.kept_share), `${whole.format(told.deferred)} deferred`),
    card("Mean time", seconds(told.mean_latency_s), "taken to answered"),
    card("Sent", bytes(told.bytes_sent), `in ${whole.format(told.calls)} calls`),
    card("Degraded", whole.format(told.degraded), Object.entries(told.reasons).map(([why, n]) => `${why} ${whole.format(n)}`).join(", ")),
    card("Under way", whole.format(told.waiting), "at a server"));
  if (!at("hold").checked) at("recent").replaceChildren(...told.recent.map((record) => decision(record, told.tiers)));
  if (!told.recent.length) at("recent").replaceChildren(element("li", { class: "none" }, "none yet"));
  at("links").replaceChildren(...(told.links.length ? told.links.map(linkPanel) : [none("This cascade stays on the device.")]));
  at("spool-section").hidden = !told.spool;
  if (told.spool) at("spool").replaceChildren(spoolPanel(told.spool, told));
  honest(told);
  at("sinks").replaceChildren(told.sinks.length
    ? table("Where decisions go", ["sink", "written", "dropped", "queued", "state"], told.sinks.map((sink) =>
      [sink.name, whole.format(sink.written), whole.format(sink.dropped), whole.format(sink.queued), sink.failing ? "✕ failing" : "● well"]))
    : none("none"));
  at("about").textContent = `coe-edge ${told.version}`;
}

const none = (words) => element("p", { class: "none" }, words);

function linkPanel(link) {
  const words = { closed: "● up", open: "✕ down", "half-open": "▲ trying" }[link.status] ?? link.status;
  const more = [`for ${seconds(link.for_s)}`, `round trip ${seconds(link.round_trip_s)}`, `went down ${link.opened} times`,
    `connected anew ${link.rebuilds} times`];
  if (link.next_probe_s !== null) more.push(`next probe in ${seconds(link.next_probe_s)}`);
  return element("div", { class: "panel" }, element("p", {}, element("strong", {}, link.tier), ` ${words}`),
    element("p", { class: "soft" }, more.join(" · ")), link.error ? element("p", { class: "soft" }, link.error) : null);
}

function spoolPanel(spool, told) {
  const drops = Object.entries(spool.dropped).filter(([, n]) => n).map(([why, n]) => `${whole.format(n)} dropped (${why})`);
  const more = [`${bytes(spool.bytes)} on the disk`, `oldest ${seconds(spool.oldest_s)}`, `${whole.format(told.corrected)} corrected`, ...drops];
  return element("div", { class: "panel" }, element("p", {}, element("strong", {}, whole.format(spool.waiting)), " wait for a later answer"),
    element("p", { class: "soft" }, more.join(" · ")));
}

function honest(told) {
  const parts = [];
  if (told.audit) {
    const audit = told.audit;
    parts.push(element("div", { class: "panel" }, element("p", {}, audit.error === null
      ? "Nothing is known yet of how often agreement is wrong."
      : `The cloud differs on ${percent(audit.error, 2)} of what the device decides (95%: ${percent(audit.low, 2)} to ${percent(audit.high, 2)}).`),
    element("p", { class: "soft" }, `${whole.format(audit.answered)} asked about, of ${whole.format(audit.drawn)} drawn from ${whole.format(audit.examples)}`)));
    const rows = Object.entries(audit.by_label).filter(([, facts]) => facts.answered).map(([name, facts]) =>
      [name, percent(facts.error, 2), `${percent(facts.low, 1)} – ${percent(facts.high, 1)}`, whole.format(facts.answered)]);
    if (rows.length) parts.push(table("By the device's label", ["label", "differs", "95% interval", "asked"], rows));
  }
  if (told.drift.length) parts.push(table("Against calibration", ["share of", "now", "band", "calibration", "state"], told.drift.map((gauge) =>
    [gauge.what, percent(gauge.share), `${percent(gauge.band[0])} – ${percent(gauge.band[1])}`, percent(gauge.calibration),
      gauge.state === "outside" ? "▲ outside" : "● inside"])));
  if (told.harvest) parts.push(element("div", { class: "panel" }, element("p", {}, `Harvest: ${whole.format(told.harvest.examples)} examples, ${bytes(told.harvest.bytes)}`)));
  at("honest-section").hidden = !parts.length;
  at("honest").replaceChildren(...parts);
}

function lost(error) {
  document.body.classList.add("stale");
  at("lost").hidden = false;
  at("lost").textContent = `The agent does not answer (${error}). What is shown is from before.`;
  at("state").dataset.state = "bad";
  at("state-word").textContent = "no answer";
}

async function ask() {
  try {
    const answer = await fetch("status.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
  } catch (error) {
    lost(error.message);
  } finally {
    setTimeout(ask, EVERY_MS);
  }
}

ask();
