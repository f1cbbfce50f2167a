// The agent's page: recent decisions, link, spool, audit and drift, sinks.

function bytes(value) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  return [value.toFixed(unit && value < 100 ? 1 : 0), units[unit]];
}
const bytesText = (value) => bytes(value).join(" ");

const none = (words) => el("p", {class: "panel none"}, words);
const panel = (...children) => el("div", {class: "panel"}, ...children);
const tablePanel = (caption, head, rows) =>
  el("div", {class: "panel scroll", tabindex: "0", role: "region", "aria-label": caption}, table(caption, head, rows));

function decision(record, tiers) {
  const where = whereOf(record, tiers);
  const picture = record.thumbnail
    ? el("img", {src: `thumbnails/${record.number}`, alt: `example ${record.id}`, width: 56, height: 56, loading: "lazy"})
    : el("div", {class: "blank", "aria-hidden": "true"}, "no picture");
  const votes = record.label === undefined ? "" : `${Math.round(record.vote * record.asked)} of ${record.asked} votes, `;
  return el("li", {class: "panel decision", "data-kind": where.kind}, picture, el("div", {},
    el("strong", {}, record.name ?? "no answer"), el("p", {class: "where"}, where.words),
    el("p", {}, `${votes}${secondsText(record.latency_s)}`), where.why ? el("p", {}, where.why) : null, el("p", {}, record.id)));
}

function whereOf(record, tiers) {
  if (record.corrects) return {kind: "sent", words: `↻ corrected by tier ${record.exit_tier}`, why: ""};
  if (record.label === undefined) return {kind: "failed", words: "✕ failed", why: record.error};
  if (record.degraded) return {kind: "degraded", words: "▲ degraded", why: record.degraded};
  if (record.call) return {kind: "sent", words: `↑ tier ${record.exit_tier}`, why: ""};
  return {kind: "here", words: `● here, ${tiers[record.exit_tier - 1] ?? "tier 1"}`, why: ""};
}

function noticesOf(status) {
  const found = [];
  const add = (level, name, text) => found.push({level, name, text});
  for (const link of status.links) {
    if (link.status !== "closed") add("warn", "Link", `${link.tier} cannot be reached: ${link.error || link.status}`);
    else if (link.is_draining) add("warn", "Link", `${link.tier} is draining`);
  }
  for (const gauge of status.drift) {
    if (gauge.state === "outside") add("warn", "Drift", `${gauge.what} is ${percent(gauge.share)}, outside ${bandOf(gauge, " to ")}`);
  }
  for (const sink of status.sinks) if (sink.failing) add("bad", "Sink", `${sink.name} takes nothing: ${sink.error}`);
  if (status.spool && status.spool.error) add("bad", "Spool", status.spool.error);
  return found;
}
const bandOf = (gauge, between) => gauge.band.map((share) => percent(share)).join(between);

function show(status) {
  const notices = noticesOf(status);
  const [state, word] = notices.some((one) => one.level === "bad") ? ["not ready", "running, with trouble"]
    : notices.length ? ["warn", "running, with a notice"] : ["ready", "running"];
  showState(state, word, status.task, notices);
  $("summary").textContent = status.examples
    ? `${percent(status.kept_share)} of ${count(status.examples)} examples were decided on this device; ` +
      `${bytesText(status.bytes_sent)} were sent for the others.`
    : "No example yet.";
  showCards([
    ["Examples", count(status.examples), "", `running for ${span(status.uptime_s)}`],
    ["Kept on the device", percent(status.kept_share), "", `${count(status.deferred)} deferred`],
    ["Mean time", ...seconds(status.mean_latency_s), "taken to answered"],
    ["Sent", ...bytes(status.bytes_sent), `in ${count(status.calls)} calls` +
      (status.link_budget ? `; ${bytesText(status.link_budget.bytes)} with answers in ${status.link_budget.month}` : "")],
    ["Degraded", count(status.degraded), "", Object.entries(status.reasons).map(([why, n]) => `${why} ${count(n)}`).join(", ")],
    ["Under way", count(status.waiting), "", "at a server"],
  ]);
  if (!$("hold").checked) $("recent").replaceChildren(...status.recent.map((record) => decision(record, status.tiers)));
  if (!status.recent.length) $("recent").replaceChildren(el("li", {class: "none"}, "none yet"));
  $("links").replaceChildren(...(status.links.length ? status.links.map(linkPanel) : [none("This cascade stays on the device.")]));
  $("spool-section").hidden = !status.spool;
  if (status.spool) $("spool").replaceChildren(spoolPanel(status.spool, status));
  const quality = qualityPanels(status);
  $("quality-section").hidden = !quality.length;
  $("quality").replaceChildren(...quality);
  $("sinks").replaceChildren(status.sinks.length
    ? tablePanel("Where decisions go", ["sink", "written", "dropped", "queued", "state"], status.sinks.map((sink) =>
      [sink.name, count(sink.written), count(sink.dropped), count(sink.queued), sink.failing ? "✕ failing" : "● working"]))
    : none("none"));
  $("about").textContent = `${PROGRAM} ${status.version}`;
}

function linkPanel(link) {
  const words = {closed: "● up", open: "✕ down", "half-open": "▲ trying"}[link.status] ?? link.status;
  const more = [`for ${span(link.for_s)}`, `round trip ${secondsText(link.round_trip_s)}`, `went down ${link.opened} times`,
    `reconnected ${link.rebuilds} times`];
  if (link.next_probe_s !== null) more.push(`next probe in ${span(link.next_probe_s)}`);
  return panel(el("p", {}, el("strong", {}, link.tier), ` ${words}`),
    el("p", {class: "soft"}, more.join(" · ")), link.error ? el("p", {class: "soft"}, link.error) : null);
}

function spoolPanel(spool, status) {
  const drops = Object.entries(spool.dropped).filter(([, n]) => n).map(([why, n]) => `${count(n)} dropped (${why})`);
  const oldest = spool.oldest_s === null ? NONE : span(spool.oldest_s);
  const more = [`${bytesText(spool.bytes)} on the disk`, `oldest ${oldest}`, `${count(status.corrected)} corrected`, ...drops];
  return panel(el("p", {}, el("strong", {}, count(spool.waiting)), " wait for a later answer"), el("p", {class: "soft"}, more.join(" · ")));
}

function qualityPanels(status) {
  const parts = [];
  if (status.audit) {
    const audit = status.audit;
    parts.push(panel(el("p", {}, audit.error === null
      ? "Nothing is known yet of how often agreement is wrong."
      : `The cloud differs on ${percent(audit.error, 2)} of what the device decides (95%: ${percent(audit.low, 2)} to ${percent(audit.high, 2)}).`),
    el("p", {class: "soft"}, `${count(audit.answered)} asked about, of ${count(audit.drawn)} drawn from ${count(audit.examples)}`)));
    const rows = Object.entries(audit.by_label).filter(([, facts]) => facts.answered).map(([name, facts]) =>
      [name, percent(facts.error, 2), `${percent(facts.low, 1)} – ${percent(facts.high, 1)}`, count(facts.answered)]);
    if (rows.length) parts.push(tablePanel("By the device's label", ["label", "differs", "95% interval", "asked"], rows));
  }
  if (status.drift.length) parts.push(tablePanel("Against calibration", ["share of", "now", "band", "calibration", "state"], status.drift.map((gauge) =>
    [gauge.what, percent(gauge.share), bandOf(gauge, " – "), percent(gauge.calibration), gauge.state === "outside" ? "▲ outside" : "● inside"])));
  if (status.harvest) parts.push(panel(el("p", {}, `Harvest: ${count(status.harvest.examples)} examples, ${bytesText(status.harvest.bytes)}`)));
  return parts;
}

follow("agent", show);
