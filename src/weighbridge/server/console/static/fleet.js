// What an operator changes: replicas come, rest and go; tenants have keys and limits.
import { ask, get, post } from "./api.js";
import { dialog, field, h, table } from "./dom.js";
import * as format from "./format.js";
import { listen, live } from "./live.js";
import { tenants } from "./tenants.js";
import { STANDING } from "./words.js";

const DIALECTS = ["weighbridge", "vllm", "sglang", "llama-server", "ollama", "tgi", "openai", "anthropic", "gemini", "azure"];

export function fleetPage(main) {
  const said = h("p", { class: "error", role: "alert", hidden: true }), done = h("p", { class: "hint", role: "status" });
  const list = h("div"), whose = tenants(changed), past = h("section", { class: "card", "aria-label": "What was changed" });
  main.replaceChildren(h("div", { class: "page-head" }, h("h1", null, "Fleet"), h("span", { class: "soft num" }),
    h("button", { class: "main", type: "button", onclick: () => add(Object.keys(live.told?.load.models ?? {}), changed) }, "Add a replica")), said, done,
  h("section", { class: "card", "aria-label": "Replicas" }, h("header", null, h("h2", null, "Replicas")), list), whose.node, past);
  let shown = "", busy = "";

  function changed(words) {
    done.textContent = words;
    said.hidden = true;
    history();
  }
  async function change(name, verb, call) {
    busy = name;
    draw();
    try {
      const answer = await call();
      changed(verb(answer));
    } catch (error) {
      said.textContent = `${name}: ${error.message}`;
      said.hidden = false;
    }
    busy = "";
    draw();
  }
  const path = (name, more = "") => `admin/replicas/${encodeURIComponent(name)}${more}`;
  function row(model, one) {
    const [mood, words] = STANDING[one.standing] ?? ["", one.standing], rests = one.standing === "draining", off = busy === one.name;
    return [h("td", { class: "cut", title: one.target }, one.name), h("td", { class: "cut" }, model), h("td", { class: "cut", title: one.target }, `${one.dialect}, ${one.target}`),
      h("td", { class: "cut" }, h("span", { class: `tag ${mood}` }, words), one.why && one.why !== one.standing ? h("span", { class: "soft small" }, ` ${one.why}`) : null), format.count(one.requests),
      h("td", { class: "n" }, h("span", { class: "row acts" },
        h("button", { type: "button", disabled: off, onclick: () => (rests ? change(one.name, () => `${one.name} takes requests again.`, () => post(path(one.name, "/undrain"), {}))
          : change(one.name, () => `${one.name} gets no new requests; those there go on.`, () => post(path(one.name, "/drain"), {}))) }, rests ? "Undrain" : "Drain"),
        h("button", { type: "button", class: "danger", disabled: off, onclick: () => remove(one, () => change(one.name,
          (answer) => (answer.drained ? `${one.name} is gone; what ran there ended first.` : `${one.name} is gone; what ran there was cut off.`),
          async () => (await ask(path(one.name, "?timeout=30"), { method: "DELETE", signal: AbortSignal.timeout(60000) })).json())) }, "Remove")))];
  }
  function draw() {
    const models = live.told?.load.models;
    if (!models) return;
    const all = Object.entries(models).flatMap(([model, pool]) => pool.replicas.map((one) => [model, one]));
    const told = JSON.stringify([busy, all.map(([model, one]) => [model, one.name, one.standing, one.why, one.requests])]);
    if (told === shown) return; // buttons stay where they are while nothing changes
    shown = told;
    main.querySelector(".page-head .soft").textContent = format.plural(all.length, "replica");
    const kept = list.contains(document.activeElement) ? [...list.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    list.replaceChildren(table("Replicas", [{ title: "Replica" }, { title: "Model" }, { title: "What it is" }, { title: "State" }, { title: "Requests", n: true }, { title: "" }], all.map(([model, one]) => row(model, one))));
    if (kept >= 0) list.querySelectorAll("button")[kept]?.focus();
  }
  async function history() {
    try {
      const found = await get("admin/changes?limit=50");
      const title = h("header", null, h("h2", null, "What was changed"), h("span", { class: "soft" }, found.file ? `kept in ${found.file}` : ["kept until the server ends; ", h("code", null, "changes_file:"), " in weighbridge.yaml keeps it"]));
      past.replaceChildren(title, found.data.length ? table("What was changed", [{ title: "When" }, { title: "Who" }, { title: "What" }, { title: "From" }, { title: "To" }],
        found.data.map((one) => [h("td", { class: "num" }, format.day(one.at)), one.changed_by, one.tenant ? `${one.act.replace("_", " ")} of tenant ${one.tenant}` : `${one.act} ${one.replica}`, one.before ?? "–", h("td", { class: "cut", title: one.after }, one.after ?? "–")]))
        : h("p", { class: "soft" }, "Nothing yet."));
    } catch (error) {
      past.replaceChildren(h("p", { class: "error" }, error.message));
    }
  }
  const stop = listen(draw);
  draw();
  history();
  return () => { stop(); whose.stop(); };
}
function remove(one, go) {
  dialog(`Remove ${one.name}`, (close) => h("form", { method: "dialog", onsubmit: (event) => { event.preventDefault(); close(); go(); } }, h("h2", null, `Remove ${one.name}?`),
    h("p", null, one.requests ? `${format.plural(one.requests, "request")} there may end within 30 seconds, then they are cut off.` : "Nothing runs there now."),
    h("div", { class: "row" }, h("button", { type: "button", onclick: close }, "Keep it"), h("button", { class: "danger" }, "Remove"))));
}

function add(models, changed) {
  const parts = {
    url: h("input", { type: "url", required: true, placeholder: "http://10.0.0.3:8000" }), dialect: h("select", null, DIALECTS.map((one) => h("option", null, one))),
    name: h("input", { autocomplete: "off", placeholder: "chosen by the gateway" }), model: h("input", { autocomplete: "off", placeholder: "as it is called here" }),
    for: h("select", null, models.map((one) => h("option", null, one))), key_env: h("input", { autocomplete: "off", placeholder: "REPLICA_API_KEY" }),
  };
  const said = h("p", { class: "error", role: "alert", hidden: true });
  dialog("Add a replica", (close) => h("form", { method: "dialog", onsubmit: async (event) => {
    event.preventDefault();
    const body = Object.fromEntries(Object.entries(parts).map(([name, part]) => [name, part.value.trim()]).filter(([, value]) => value));
    try {
      const answer = await post("admin/replicas", body);
      close();
      changed(`${answer.data.map((one) => one.name).join(", ")} is added; it gets requests once it answers.`);
    } catch (error) {
      said.textContent = error.message;
      said.hidden = false;
    }
  } }, h("h2", null, "Add a replica"), field("Address", parts.url), field("What runs there", parts.dialect), field("For the model", parts.for), field("Name", parts.name),
  field("What that server calls the model", parts.model), field("Variable with its key", parts.key_env, "The name of an environment variable of the gateway: keys are not sent from here."), said,
  h("div", { class: "row" }, h("button", { type: "button", onclick: close }, "Cancel"), h("button", { class: "main" }, "Add"))));
}
