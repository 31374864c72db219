// One ticket: its legs in time, what was decided and why, and what the choice was between.
import { Failure, get } from "./api.js";
import { copy, h } from "./dom.js";
import * as format from "./format.js";
import { outcome } from "./tickets.js";

export function ticketPage(main, id) {
  let timer = 0, gone = false;
  async function look() {
    let next = 2000;
    try {
      const ticket = await get(`v1/tickets/${encodeURIComponent(id)}`);
      if (gone) return;
      main.replaceChildren(...shown(ticket));
      if (ticket.finished !== null) return;
      next = 700;
    } catch (error) {
      if (gone) return;
      if (error instanceof Failure) {
        main.replaceChildren(h("div", { class: "empty" }, h("h2", null, error.status === 404 ? "No such ticket" : "Not shown"), h("p", null, error.message), h("p", null, h("a", { href: "#tickets" }, "All tickets"))));
        return;
      }
    }
    timer = setTimeout(look, next);
  }
  look();
  return () => { gone = true; clearTimeout(timer); };
}

function shown(ticket) {
  const button = h("button", { type: "button", onclick: () => copy(JSON.stringify(ticket, null, 2), button) }, "Copy as JSON");
  return [
    h("div", { class: "page-head" }, h("h1", null, "Ticket ", h("span", { class: "mono" }, ticket.id)), outcome(ticket), h("span", { class: "row" }, button, h("a", { class: "button", href: "#tickets" }, "All tickets"))),
    ticket.error ? h("p", { class: "error" }, ticket.error) : "",
    card("What it was", facts(ticket)), card("Where its time went", waterfall(ticket)),
    decided(ticket), scored(ticket), prefix(ticket.prefix), left(ticket),
  ].filter(Boolean);
}
const card = (title, ...content) => h("section", { class: "card", "aria-label": title }, h("header", null, h("h2", null, title)), ...content);

function facts(one) {
  const known = [
    ["Arrived", format.day(one.arrived)], ["Tenant", one.tenant], ["Model", one.model], ["Class", one.priority],
    ["Prompt", `${format.exact(one.prompt_tokens)} tokens${one.exact === false ? ", estimated" : ""}`], ["Of it cached", `${format.exact(one.cached_tokens)} tokens (${format.share(one.cached_tokens, one.prompt_tokens)})`],
    ["Output", `${format.exact(one.output_tokens)} of at most ${format.exact(one.max_tokens)} tokens`], ["Expected output", one.predicted_output_tokens === null ? null : `${format.count(one.predicted_output_tokens)} tokens`],
    ["TTFT", format.ms(one.ttft_ms)], ["Total", format.ms(one.e2e_ms)],
    ["ITL", one.itl_ms === undefined ? (one.finished && one.output_tokens > 1 ? "not streamed" : null) : `${format.ms(one.itl_ms)} mean`],
    ["Steps", one.steps ? `${format.exact(one.steps)}${one.preemptions ? `, preempted ${one.preemptions} times` : ""}` : null], ["Batch", batch(one.batch_sizes)],
    ["Cost", one.cost_usd || one.counterfactual_usd ? `${format.usd(one.cost_usd)}${one.cost_estimated ? ", estimated" : ""}` : null],
    ["The other side", one.counterfactual_usd === null ? null : format.usd(one.counterfactual_usd)], ["Rule", one.rule],
    ["Difficulty", one.score === null ? null : `${one.score.toFixed(3)}, cloud from ${one.threshold?.toFixed(3) ?? "–"}`], ["Confidence", one.confidence === null ? null : format.percent(one.confidence)],
    ["Attempts", one.attempts > 1 ? one.attempts : null], ["Hedged", one.hedged ? "a second copy was sent" : null], ["Degraded", one.degraded ? "answered by the side that was not wanted" : null],
    ["Drafts", one.drafted_tokens ? `${format.exact(one.accepted_tokens)} of ${format.exact(one.drafted_tokens)} proposed tokens were right` : null],
    ["KV", one.kv_bytes ? `${format.count(one.kv_bytes / 2 ** 20)} MiB at most` : null], ["Prompt's hash", h("span", { class: "mono small" }, one.prompt_hash)],
    ["Trace", one.trace ? traced(one.trace) : null],
  ];
  return h("dl", { class: "facts" }, known.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => h("div", { class: LONG.includes(name) ? "wide" : null }, h("dt", null, name), h("dd", null, value))));
}
const LONG = ["Prompt's hash", "Trace"];
/** The name of its trace, to be looked up where traces are collected. */
function traced({ trace_id: name, sampled }) {
  const button = h("button", { type: "button", class: "small", "aria-label": "Copy the trace's id", onclick: () => copy(name, button) }, "Copy");
  return h("span", { class: "row" }, h("span", { class: "mono small" }, name), button, sampled ? null : h("span", { class: "soft small" }, "not sampled: its spans are not sent"));
}
function batch(sizes) {
  const steps = Object.entries(sizes ?? {}).map(([size, count]) => [Number(size), count]), total = steps.reduce((all, [, count]) => all + count, 0);
  return total ? `${format.count(steps.reduce((all, [size, count]) => all + size * count, 0) / total)} sequences a step` : null;
}

/** Bars on one scale of time: waiting, first token, answer; one line a leg. */
function waterfall(ticket) {
  const legs = ticket.legs.length ? ticket.legs : [ticket], now = Date.now() / 1000;
  const begin = ticket.arrived, end = Math.max(ticket.finished ?? now, ...legs.map((leg) => leg.finished ?? begin)), span = Math.max(end - begin, 1e-3);
  const at = (second) => Math.max(0, Math.min(1, (second - begin) / span)) * 100;
  const lines = legs.flatMap((leg) => {
    const until = leg.finished ?? end, pieces = [];
    const piece = (from, to, colour, words) => {
      if (from === null || to === null || to < from) return;
      const bar = h("i", { class: `b${colour}`, title: `${words}: ${format.ms((to - from) * 1000)}` });
      bar.style.left = `${at(from)}%`;
      bar.style.width = `${at(to) - at(from)}%`;
      pieces.push([bar, `${words} ${format.ms((to - from) * 1000)}`]);
    };
    const arrived = leg.arrived || ticket.arrived;
    piece(arrived, leg.scheduled ?? until, 3, "waited");
    if (leg.scheduled !== null) piece(leg.scheduled, leg.first_token ?? until, 2, "to the first token");
    if (leg.first_token !== null) piece(leg.first_token, until, 1, "answered");
    const name = [leg.place, leg.model, leg.replica].filter(Boolean).join(" · "), words = pieces.map(([, said]) => said).join(", ");
    return [h("span", { class: "who-leg", title: name }, name || "nobody", leg.purpose && leg.purpose !== "answer" ? ` (${leg.purpose})` : ""),
      h("span", null, h("span", { class: "track", role: "img", "aria-label": words || "nothing yet" }, pieces.map(([bar]) => bar)),
        h("span", { class: "soft num" }, [words, leg.tries > 1 ? `${leg.tries} tries` : "", leg.hedged ? "hedged" : "", leg.resumed ? `resumed ${leg.resumed} times` : "", leg.usd ? format.usd(leg.usd) : "", leg.error ?? ""].filter(Boolean).join(" · ")))];
  });
  const node = h("div", { class: "fall" }, ...lines, h("span", { class: "axis-gap" }), h("span", { class: "axis" }, [0, 0.5, 1].map((part) => h("span", null, format.ms(part * span * 1000)))));
  return h("div", null, node, h("p", { class: "legend" }, [["waited", 3], ["to the first token", 2], ["answered", 1]].map(([words, colour]) => h("span", null, h("i", { class: `b${colour}` }), words))));
}

function decided(ticket) {
  const parts = [];
  if (ticket.decisions.length) parts.push(h("ol", { class: "prose" }, ticket.decisions.map((one) => h("li", null, one))));
  for (const leg of ticket.legs) if (leg.decisions.length)
    parts.push(h("h3", null, [leg.place, leg.model].filter(Boolean).join(" · ")), h("ol", { class: "prose" }, leg.decisions.map((one) => h("li", null, one))));
  return parts.length ? card("What was decided", ...parts) : card("What was decided", h("p", { class: "soft" }, "Nothing had to be chosen: there is one place that it could go to."));
}

function scored(ticket) {
  const holders = [ticket, ...ticket.legs].filter((one) => Object.keys(one.scores ?? {}).length);
  return holders.length ? card("What the choice was between", ...holders.map(choices)) : "";
}
function choices(one) {
  const entries = Object.entries(one.scores).sort((a, b) => a[1] - b[1]), most = Math.max(...entries.map(([, score]) => score), 1e-12);
  const value = (score) => (one.score_unit === "s" ? format.ms(score * 1000) : `${format.count(score)} ${one.score_unit}`);
  return h("div", null,
    h("p", { class: "hint" }, `${one.model ? `${one.model}: ` : ""}${format.plural(one.candidates || entries.length, "replica")} compared${entries.length < one.candidates ? `, the best ${entries.length} shown` : ""}${one.score_unit === "s" ? ", by predicted time" : one.score_unit ? `, by ${one.score_unit}` : ""}: less is better. What else was weighed is said above.`),
    h("div", { class: "scores" }, entries.flatMap(([name, score]) => {
      const chosen = name === one.replica, bar = h("span", { class: "meter" }, h("i", { class: chosen ? "b1" : "b0" }));
      bar.firstChild.style.width = `${Math.max(score / most, 0.005) * 100}%`;
      return [h("span", { class: chosen ? "chosen" : "" }, name, chosen ? " (chosen)" : ""), bar, h("span", { class: "num" }, value(score))];
    })));
}

function prefix(found) {
  if (!found) return "";
  const lines = Object.entries(found).filter(([, value]) => value !== null && value !== "");
  const long = (value) => typeof value === "object" || String(value).length > 60;
  const words = (name) => name.replaceAll("_", " ");
  return card("Where the prompt left the cache", h("dl", { class: "facts" }, lines.filter(([, value]) => !long(value)).map(([name, value]) => h("div", null, h("dt", null, words(name)), h("dd", null, typeof value === "number" ? format.count(value) : String(value))))),
    ...lines.filter(([, value]) => long(value)).map(([name, value]) => h("div", null, h("h3", null, words(name)), h("pre", { class: "quote" }, typeof value === "string" ? value : JSON.stringify(value, null, 2)))));
}

function left(ticket) {
  return ticket.left_machine?.length ? card("What left this machine", h("ul", { class: "prose" }, ticket.left_machine.map((one) => h("li", null, one)))) : "";
}
