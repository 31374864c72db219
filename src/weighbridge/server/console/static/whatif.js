// What another replica would have changed: the last minutes run again, as the fleet is and as it might be.
import { patient, post } from "./api.js";
import { curve } from "./charts.js";
import { field, h, table } from "./dom.js";
import * as format from "./format.js";

const ROWS = [
  ["Replicas", (run) => run.replicas, format.count], ["Requests", (run) => run.requests, format.count], ["Failed", (run) => run.failed, format.count],
  ["TTFT, median", (run) => run.ttft_ms.p50, format.ms, -1], ["TTFT, p95", (run) => run.ttft_ms.p95, format.ms, -1], ["Time per token, median", (run) => run.tpot_ms.p50, format.ms, -1],
  ["Whole request, p95", (run) => run.e2e_ms.p95, format.ms, -1], ["Waited at the gateway, p95", (run) => run.gateway_wait_ms.p95, format.ms, -1],
  ["Good requests", (run) => run.good_share, format.percent, 1], ["Output tokens a second", (run) => run.output_tokens_per_s, format.count, 1], ["Prompts from the cache", (run) => run.prefix_hit_rate, format.percent, 1],
  ["Busy", (run) => run.utilization, format.percent], ["KV cache in use", (run) => run.kv_occupancy, format.percent], ["Cost", (run) => run.usd, format.usd, -1],
];

export function whatIfPage(main, session) {
  const parts = {
    model: h("select", null, session.models_of_replicas.map((one) => h("option", null, one))), more: h("input", { type: "number", min: "-63", max: "63", step: "1", value: "1", required: true }),
    rate: h("input", { type: "number", min: "0.05", max: "20", step: "any", value: "1", required: true }), ttft_ms: h("input", { type: "number", min: "1", step: "any", value: "2000", required: true }),
    itl_ms: h("input", { type: "number", min: "1", step: "any", value: "100", required: true }),
  };
  const said = h("p", { class: "error", role: "alert", hidden: true }), busy = h("p", { class: "hint", role: "status" }), go = h("button", { class: "main" }, "Run it"), result = h("div", { class: "stack" });
  const form = h("form", { class: "row ask", onsubmit: async (event) => {
    event.preventDefault();
    go.disabled = true;
    said.hidden = true;
    busy.textContent = "The requests of the last ten minutes run again, in a process of their own.";
    try {
      const asked = Object.fromEntries(Object.entries(parts).map(([name, part]) => [name, name === "model" ? part.value : Number(part.value)]));
      result.replaceChildren(...shown(await post("console/api/simulate", asked, { signal: patient() })));
    } catch (error) {
      said.textContent = error.message;
      said.hidden = false;
    }
    busy.textContent = "";
    go.disabled = false;
  } }, session.models_of_replicas.length > 1 ? field("Model", parts.model) : [], field("Replicas more, or fewer", parts.more), field("Times as many requests", parts.rate),
  field("Good: first token within, ms", parts.ttft_ms), field("Good: gaps of at most, ms", parts.itl_ms), go);
  main.replaceChildren(h("div", { class: "page-head" }, h("h1", null, "What if"), h("span", { class: "soft" }, "the requests of the last ten minutes, through other replicas")),
    h("section", { class: "card", "aria-label": "Question" }, form, said, busy), result);
}

function shown(told) {
  const { as_is: now, changed } = told, measured = told.measured.ttft_ms;
  const rows = ROWS.map(([name, value, words, better]) => {
    const [a, b] = [value(now), value(changed)], change = better && a > 0 && Number.isFinite(b) ? (b - a) / a : null;
    const mood = change === null || Math.abs(change) < 0.02 ? "" : Math.sign(change) === better ? "good" : "bad";
    return [name, words(a), words(b), h("td", { class: "n" }, change === null ? "" : Math.abs(change) < 0.0005 ? h("span", { class: "soft" }, "the same") : h("span", { class: `tag ${mood}` }, `${change > 0 ? "+" : "−"}${format.percent(Math.abs(change))}`))];
  });
  const skipped = Object.entries(told.skipped);
  const lines = (run, name, colour) => ({ name, colour, points: run.curve.seconds.map((at, place) => [at, run.curve.ttft_p95_ms[place]]).filter(([, value]) => value !== null) });
  return [
    h("section", { class: "card", "aria-label": "Answer" }, h("header", null, h("h2", null, `${format.plural(now.replicas, "replica")} and ${format.count(changed.replicas)}`),
      h("span", { class: "soft num" }, `${format.plural(told.requests, "request")} for ${told.model}, policy ${told.policy}`)),
    table("Answer", [{ title: "" }, { title: "As it is", n: true }, { title: "Changed", n: true }, { title: "Difference", n: true }], rows)),
    curve("TTFT, p95", "ms, over the run", format.ms, [lines(now, "as it is", 2), lines(changed, "changed", 1)]),
    h("section", { class: "card", "aria-label": "How far to trust it" }, h("header", null, h("h2", null, "How far to trust it")), h("ul", { class: "prose" },
      measured ? h("li", null, `These requests waited ${format.ms(measured.p50)} for their first token (median; p95 ${format.ms(measured.p95)}) when they really came. The run as it is says ${format.ms(now.ttft_ms.p50)} and ${format.ms(now.ttft_ms.p95)}: how far they are apart is how far the rest may be off.`) : null,
      h("li", null, "It is the real scheduler and policy on a virtual clock, with the step cost of each replica as it is known now."),
      h("li", null, "What of a prompt was cached is taken for a beginning that its tenant's prompts share; nothing else is known of texts here."),
      h("li", null, "Requests that were refused are not run again."),
      skipped.length ? h("li", null, `Left out: ${skipped.map(([name, why]) => `${name} (${why})`).join(", ")}.`) : null)),
  ];
}
