// What of a model fits where, how fast it is and what it costs, before anything is bought.
import { get, patient, post } from "./api.js";
import { curve } from "./charts.js";
import { copy, field, h, meter, table } from "./dom.js";
import * as format from "./format.js";

const PARTS = [["weights", "weights_gib", 2], ["activations", "activation_gib", 3], ["framework and graphs", "overhead_gib", 5], ["KV cache", "kv_available_gib", 1]];

export function planPage(main) {
  const models = h("datalist", { id: "plan-models" }), devices = h("datalist", { id: "plan-devices" });
  const parts = {
    model: h("input", { list: "plan-models", required: true, autocomplete: "off", placeholder: "qwen3-8b" }), device: h("input", { list: "plan-devices", required: true, autocomplete: "off", placeholder: "H100-80GB" }),
    count: h("input", { type: "number", min: "1", max: "1024", step: "1", value: "1", required: true }), engine: h("select"), max_model_len: h("input", { type: "number", min: "1", step: "1", placeholder: "the model's" }),
    weights: h("input", { autocomplete: "off", placeholder: "as published" }), concurrency: h("input", { type: "number", min: "1", step: "1", placeholder: "any" }),
  };
  const said = h("p", { class: "error", role: "alert", hidden: true }), busy = h("p", { class: "hint", role: "status" }), go = h("button", { class: "main" }, "Plan"), result = h("div", { class: "stack" });
  const form = h("form", { class: "row ask", onsubmit: async (event) => {
    event.preventDefault();
    go.disabled = true;
    said.hidden = true;
    busy.textContent = "It is worked out in a process of its own, behind everything else that this machine does.";
    try {
      const asked = {};
      for (const [name, part] of Object.entries(parts)) if (part.value.trim()) asked[name] = part.type === "number" ? Number(part.value) : part.value.trim();
      result.replaceChildren(...shown(await post("console/api/plan", asked, { signal: patient() })));
    } catch (error) {
      said.textContent = error.message;
      said.hidden = false;
    }
    busy.textContent = "";
    go.disabled = false;
  } }, models, devices, field("Model", parts.model), field("Device", parts.device), field("Devices", parts.count), field("Engine", parts.engine), field("Longest request, tokens", parts.max_model_len),
  field("Weights", parts.weights, "such as fp8, awq, q4_k_m"), field("Full requests at once", parts.concurrency), go);
  main.replaceChildren(h("div", { class: "page-head" }, h("h1", null, "Plan"), h("span", { class: "soft" }, "memory to the block, speed and money, before anything is bought")), h("section", { class: "card", "aria-label": "Question" }, form, said, busy), result);
  get("console/api/catalogue", { signal: patient() }).then((told) => {
    models.replaceChildren(...told.models.map((one) => h("option", { value: one })));
    devices.replaceChildren(...told.devices.map((one) => h("option", { value: one.name }, `${format.count(one.memory_gib)} GiB, ${format.usd(one.usd_per_hour)} an hour`)));
    parts.engine.replaceChildren(...told.engines.map((one) => h("option", null, one)));
  }).catch((error) => { said.textContent = error.message; said.hidden = false; });
}

function shown(told) {
  const budget = told.budget_gib, button = h("button", { type: "button", onclick: () => copy(told.command, button) }, "Copy");
  const known = PARTS.map(([name, key, colour]) => [name, Math.max(told[key] ?? 0, 0), colour]), total = Math.max(budget ?? 0, known.reduce((sum, one) => sum + one[1], 0)) || 1;
  return [
    h("section", { class: "card", "aria-label": "Answer" }, h("header", null, h("h2", null, `${told.model} on ${told.gpus} × ${told.device}`), h("span", { class: "soft" }, `${told.engine}, weights in ${told.weight_format}, requests of up to ${format.exact(told.max_model_len)} tokens, ${format.usd(told.usd_per_hour)} an hour`)),
      h("p", null, h("span", { class: `tag ${told.fits ? "good" : "bad"}` }, told.fits ? "It fits." : `It does not fit: ${told.problem}.`)),
      told.changes.length ? h("ul", { class: "prose" }, told.changes.map((one) => h("li", null, one.what, " ", h("code", null, one.flags)))) : null,
      h("h3", null, "Memory of one device"), meter(known.map(([, value, colour]) => [value / total, colour]), known.map(([name, value]) => `${name} ${value.toFixed(1)} GiB`).join(", ")),
      h("p", { class: "legend" }, known.map(([name, value, colour]) => h("span", null, h("i", { class: `b${colour}` }), name, " ", h("b", null, `${value.toFixed(2)} GiB`))), budget ? h("span", null, "of ", h("b", null, `${budget.toFixed(2)} GiB`)) : null),
      table("Figures", [{ title: "" }, { title: "Value", n: true }, { title: "Between" }], told.rows.map(([name, value, between]) => [name, value, h("td", { class: "soft" }, between)]))),
    ...(told.speed.length ? [h("div", { class: "charts" },
      curve("Output", "tokens a second by requests at once", format.count, [{ name: "tokens/s", colour: 1, points: told.speed.map((one) => [one.batch, one.tokens_per_second]) }], format.count),
      curve("Time per token", "by requests at once", format.ms, [{ name: "time per token", colour: 3, points: told.speed.map((one) => [one.batch, one.tpot * 1e3]) }], format.count))] : []),
    h("section", { class: "card", "aria-label": "Start it" }, h("header", null, h("h2", null, "Start it"), h("span", { class: "end" }, button)), h("pre", { class: "quote" }, told.command)),
    h("details", { class: "words" }, h("summary", null, "Why"), h("ol", { class: "prose" }, told.explain.map((one) => h("li", null, one)))),
  ];
}
