// What is going on: figures, ten minutes of history, who waits, who computes.
import { h, meter, table } from "./dom.js";
import { IterationChart, TimeChart } from "./charts.js";
import * as format from "./format.js";
import { listen, live, recent, sum } from "./live.js";
import { replicas } from "./replicas.js";
import { label, meaning, WORDS } from "./words.js";

function tile(key) {
  const figure = h("span", { class: "figure" }), under = h("span", { class: "under" });
  const node = h("div", { class: "tile" }, h("dt", { title: meaning(key) }, label(key)), h("dd", null, figure), h("dd", { class: "under" }, under));
  return { node, show(text, below) {
    const [number, unit] = format.split(text);
    figure.replaceChildren(number, unit ? h("small", null, unit) : "");
    under.textContent = below;
  } };
}

export function nowPage(main, session) {
  const full = session.may.see_all, tiles = {};
  const money = session.kind === "engine" ? [] : ["spent"]; // an engine has no prices
  const keys = full ? ["waiting", "running", "speed", "ttft", "itl", "hits", "good", "refused", ...money] : ["waiting", "running"];
  for (const key of keys) tiles[key] = tile(key);
  const charts = chartsOf(full, session.kind);
  const iterations = full && session.kind === "engine" ? new IterationChart(label("iterations"), meaning("iterations")) : null;
  const head = h("div", { class: "page-head" }, h("h1", null, "Now"), h("span", { class: "soft num" }));
  const queue = h("section", { class: "card", "aria-label": "Who waits" });
  const kv = h("section", { class: "card", "aria-label": label("kv") });
  const fleet = full && session.kind !== "engine" ? replicas() : null;
  const routes = h("section", { class: "card", "aria-label": "Routes", hidden: true });
  main.replaceChildren(head, h("dl", { class: "tiles" }, keys.map((key) => tiles[key].node)), ...[fleet?.node, iterations?.node].filter(Boolean),
    h("div", { class: "charts" }, charts.map((one) => one.chart.node)), routes, h("div", { class: "two" }, full ? queue : [], kv),
    h("details", { class: "words" }, h("summary", null, "What the figures mean"),
      h("dl", null, Object.values(WORDS).flatMap(([name, words]) => [h("dt", null, name), h("dd", null, words)]))));

  const draw = () => {
    const { told, history, problem } = live;
    if (!told || !history) return;
    head.lastChild.textContent = problem ? "" : heading(told, session);
    figures(tiles, told, full);
    for (const one of charts) one.chart.update(history.seconds, one.lines(history), told.at);
    iterations?.update(live.iterations, told.at);
    fleet?.update(told.load.models ?? {});
    if (full) waiting(queue, told.queue ?? []);
    memory(kv, told.load);
    routesCard(routes, told.routes ?? []);
  };
  const stop = listen(draw), sized = new ResizeObserver(draw);
  sized.observe(main);
  draw();
  return () => { stop(); sized.disconnect(); };
}

function heading(told, session) {
  const models = session.models.map((one) => one.id), up = told.at - told.began;
  const since = up < 120 ? format.plural(Math.round(up), "second") : up < 7200 ? format.plural(Math.round(up / 60), "minute") : format.plural(Math.round(up / 3600), "hour");
  return [models.length > 3 ? `${models.length} models` : models.join(", "), `up for ${since}`, `version ${session.version}`, told.ready ? "" : told.status].filter(Boolean).join(" · ");
}

function figures(tiles, { load, targets }, full) {
  tiles.waiting.show(`${format.count(load.queued_tokens)} tokens`, format.plural(load.queued_requests, "request"));
  tiles.running.show(`${format.count(load.running_tokens)} tokens`, format.plural(load.running_requests, "request"));
  if (!full) return;
  const made = sum("output_tokens", 10), read = sum("prompt_tokens", 60), ended = sum("finished", 60), good = sum("good", 60);
  const turned = sum("refused", 60) + sum("failed", 60);
  tiles.speed.show(`${format.count(made / 10)} tok/s`, `${format.count(sum("output_tokens", 600))} in 10 min`);
  for (const name of ["ttft", "itl"]) {
    const median = recent(`${name}_p50_ms`);
    tiles[name].show(format.ms(median), median !== null ? `p95 ${format.ms(recent(`${name}_p95_ms`))}` : ended ? "not streamed" : "no requests");
  }
  tiles.hits.show(format.share(sum("cached_tokens", 60), read), `of ${format.count(read)} tokens`);
  tiles.good.show(`${format.count(Number((good / 60).toPrecision(2)))} req/s`, `${format.share(good, ended + turned)} of ${format.count(ended + turned)}`);
  tiles.good.node.title = `First token within ${format.ms(targets.ttft_ms)}, gaps of at most ${format.ms(targets.itl_ms)}.`;
  tiles.refused.show(`${format.count(sum("refused", 600))} requests`, `${format.count(sum("failed", 600))} failed`);
  tiles.spent?.show(format.usd(sum("usd", 600)), "in 10 min");
}

function chartsOf(full, kind) {
  const made = (key, title, unit, shown, lines, options) => ({ chart: new TimeChart(title, meaning(key), unit, shown, options), lines });
  const work = made("waiting", "Work", "tokens", format.count, (past) => [
    { name: "waiting", colour: 3, values: past.queued_tokens, area: true }, { name: "running", colour: 2, values: past.running_tokens }], { least: 100 });
  const memoryLines = (past) => {
    const part = (name) => past[name].map((value, at) => (past.kv_blocks_total[at] ? value / past.kv_blocks_total[at] : null));
    const lines = [{ name: "in use", colour: 1, values: part("kv_blocks_used"), area: true }];
    return kind === "engine" ? [...lines, { name: "cached", colour: 2, values: part("kv_blocks_cached") }] : lines;
  };
  const kv = made("kv", "KV cache", "share of the whole", format.percent, memoryLines, { least: 0.01 });
  if (!full) return [work, kv];
  return [
    made("speed", "Output", "tokens in a second", format.count, (past) => [{ name: "tokens/s", colour: 1, values: smooth(past.output_tokens), area: true }], { least: 10 }),
    work,
    made("ttft", "TTFT", "time to first token", format.ms, (past) => [
      { name: "median", colour: 1, values: past.ttft_p50_ms }, { name: "p95", colour: 3, values: past.ttft_p95_ms }], { least: 10 }),
    made("itl", "ITL", "time between tokens", format.ms, (past) => [
      { name: "median", colour: 1, values: past.itl_p50_ms }, { name: "p95", colour: 3, values: past.itl_p95_ms }], { least: 10 }),
    made("good", "Requests", "in a second", format.count, (past) => [
      { name: "good", colour: 1, values: smooth(past.good), area: true }, { name: "all that ended", colour: 2, values: smooth(past.finished) },
      { name: "refused or failed", colour: 4, values: smooth(past.refused.map((one, at) => one + past.failed[at])) }], { least: 1 }),
    kv,
  ];
}
/** The mean of the last five seconds at each: what single requests bring would be spikes. */
function smooth(values) {
  let total = 0;
  return values.map((value, at) => {
    total += value - (at >= 5 ? values[at - 5] : 0);
    return Math.max(total, 0) / Math.min(at + 1, 5);
  });
}

function waiting(card, lines) {
  const most = Math.max(...lines.map((one) => one.tokens), 1), total = lines.reduce((all, one) => all + one.tokens, 0);
  const title = h("header", null, h("h2", { title: meaning("waiting") }, "Who waits"), h("span", { class: "soft num" }, `${format.count(total)} tokens of work, by class and tenant`));
  if (!lines.length) return card.replaceChildren(title, h("p", { class: "soft" }, "Nobody waits."));
  card.replaceChildren(title, table("Who waits", [{ title: "Class", hint: "A lower number goes first" }, { title: "Tenant" }, { title: "Requests", n: true }, { title: "Tokens", n: true }, { title: "" }],
    lines.map((one) => [one.class === null ? "others" : one.kind || String(one.class), h("td", { class: "cut" }, one.tenant ?? "–"), format.count(one.requests), format.count(one.tokens),
      h("td", { class: "bar" }, meter([[one.tokens / most, 3]], `${format.count(one.tokens)} tokens`))])));
}

function memory(card, load) {
  const total = load.kv_blocks_total, used = load.kv_blocks_used, cached = load.kv_blocks_cached ?? null, size = load.block_size ?? 1;
  const title = h("header", null, h("h2", { title: meaning("kv") }, label("kv")),
    h("span", { class: "soft num" }, total ? `${format.count(total * size)} tokens in all${load.kv_dtype ? `, kept as ${load.kv_dtype}` : ""}` : "its size is not known"));
  if (!total) return card.replaceChildren(title, h("p", { class: "soft" }, "No replica has said how much it holds."));
  const rows = [["In use", used, 1], ...(cached === null ? [] : [["Cached, can be given away", cached, 2]]), ["Free", total - used - (cached ?? 0), 0]];
  const bytes = load.kv_bytes_per_token;
  card.replaceChildren(title, meter([[used / total, 1], [(cached ?? 0) / total, 2]], `${format.share(used, total)} in use`),
    table(label("kv"), [{ title: "Tier" }, { title: "Tokens", n: true }, { title: "Share", n: true }, ...(bytes ? [{ title: "MiB", n: true }] : [])],
      rows.map(([name, blocks, colour]) => [h("td", null, h("span", { class: `tag ${["", "good", "info"][colour]}` }, name)), format.count(blocks * size), format.share(blocks, total),
        ...(bytes ? [format.count(blocks * size * bytes / 2 ** 20)] : [])])));
}

function routesCard(card, routes) {
  card.hidden = !routes.length;
  if (routes.length) card.replaceChildren(h("header", null, h("h2", null, "Routes")), table("Routes", ROUTE_COLUMNS, routes.flatMap(routeRows)));
}
const ROUTE_COLUMNS = [{ title: "Route" }, { title: "Place" }, { title: "Level" }, { title: "State" }, { title: "Requests", n: true, hint: "Requests whose answer came from there, since the start" },
  { title: "Spent", n: true, hint: "US dollars since the start" }, { title: "Saved", n: true, hint: "What the other side would have cost, less what was paid, since the start" }];
function routeRows(route) {
  return route.places.map((place, at) => [at ? "" : h("td", null, route.name, h("div", { class: "soft small" }, route.words)), `${place.name} (${place.model})`, place.level,
    h("td", null, h("span", { class: `tag ${place.healthy ? "good" : "bad"}` }, place.healthy ? "can be asked" : "cannot be asked")), format.count(place.requests), format.usd(place.usd), at ? "" : format.usd(route.saved_usd)]);
}
