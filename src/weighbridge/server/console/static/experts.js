// A mixture of experts: how many tokens each expert of each layer had, as a map, and what that means layer by layer.
import { ask, get } from "./api.js";
import { h, s, table } from "./dom.js";
import * as format from "./format.js";

const EVERY = 5000, LEFT = 44, TOP = 18, MOST_TIMES = 4;
const PHASES = { tokens: "all tokens", decode_tokens: "answers", prefill_tokens: "prompts" };

export function expertsPage(main, session) {
  const state = { told: null, phase: "tokens", row: 0, column: 0 };
  const said = h("p", { class: "error", role: "alert", hidden: true }), words = h("p", { class: "hint", role: "status" });
  const pick = h("select", { "aria-label": "Which tokens", onchange: () => { state.phase = pick.value; draw(); } }, Object.entries(PHASES).map(([name, title]) => h("option", { value: name }, title)));
  const svg = s("svg", { role: "img", tabindex: "0", class: "heat" }), facts = h("dl", { class: "facts" }), layers = h("div"), head = h("span", { class: "soft num" });
  const reset = session.may.reset ? h("button", { type: "button", onclick: async () => { try { await ask("v1/experts/reset", { method: "POST", json: {} }); look(); } catch (error) { fail(error); } } }, "Count anew") : null;
  main.replaceChildren(h("div", { class: "page-head" }, h("h1", null, "Experts"), head), said,
    h("section", { class: "card", "aria-label": "Map" }, h("header", null, h("h2", null, "Tokens of each expert"), h("span", { class: "soft" }, "a row is a layer, a column an expert; the colour is relative to the layer's mean"), h("span", { class: "row end" }, pick, reset)),
      h("div", { class: "scroll" }, svg), scale(), words),
    h("section", { class: "card", "aria-label": "All in all" }, h("header", null, h("h2", null, "All in all")), facts),
    h("section", { class: "card", "aria-label": "Layers" }, h("header", null, h("h2", null, "Layers")), layers));
  let timer = 0, gone = false;

  function fail(error) {
    said.textContent = error.message;
    said.hidden = false;
  }
  async function look() {
    clearTimeout(timer);
    try {
      if (!document.hidden) {
        state.told = await get("v1/experts");
        said.hidden = true;
        if (!gone) draw();
      }
    } catch (error) {
      fail(error);
    }
    if (!gone) timer = setTimeout(look, EVERY);
  }
  function draw() {
    const { told, phase } = state;
    if (!told) return;
    head.textContent = `${told.experts} experts in ${format.plural(told.layers.length, "layer")}, ${told.top_k} for each token`;
    const size = Math.max(4, Math.min(18, Math.floor(1100 / told.experts))), width = LEFT + size * told.experts + 1, height = TOP + size * told.layers.length + 1;
    const cells = told.layers.flatMap((layer, row) => {
      const counts = layer[phase], mean = counts.reduce((sum, one) => sum + one, 0) / counts.length;
      return counts.map((count, column) => s("rect", { x: LEFT + size * column, y: TOP + size * row, width: size - 1, height: size - 1, class: mean && count >= 2 * mean ? "f3" : "f1", "fill-opacity": shade(count, mean) }));
    });
    const ends = [0, told.experts - 1].map((one) => s("text", { x: LEFT + size * one + size / 2, y: 12, "text-anchor": "middle" }, one));
    const names = told.layers.map((layer, row) => (size >= 10 || row % Math.ceil(12 / size) === 0 ? s("text", { x: LEFT - 6, y: TOP + size * row + size - 1, "text-anchor": "end" }, layer.layer) : null));
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    svg.setAttribute("aria-label", `Tokens of ${told.experts} experts in ${told.layers.length} layers; arrow keys move from one to the next.`);
    svg.replaceChildren(...cells, ...ends, ...names.filter(Boolean), s("rect", { class: "here", width: size + 1, height: size + 1 }));
    state.size = size;
    point(state.row, state.column);
    fact(told);
    layers.replaceChildren(table("Layers", [{ title: "Layer", n: true }, { title: "Tokens", n: true }, { title: "Balance", n: true, hint: "Mean over maximum of the tokens per expert: 100 % is even" },
      { title: "Busiest fifth", n: true, hint: "Share of the tokens that the busiest fifth of the experts take" }, { title: "Entropy", n: true, hint: "Of the choice of an expert" }, { title: "Hot", hint: "At least twice the mean" }, { title: "Cold", hint: "Less than a quarter of the mean" }],
    told.layers.map((layer) => [String(layer.layer), format.count(layer.tokens.reduce((sum, one) => sum + one, 0)), format.percent(layer.balancedness), format.percent(layer.top20_share), `${layer.entropy_bits.toFixed(2)} bits`, few(layer.hot), few(layer.cold)])));
  }
  function fact(told) {
    const cache = told.cache, rows = [["Steps counted", format.count(told.steps)], ["Experts touched in a step", format.count(told.touched_per_step)], ["Sequences alike", format.percent(told.correlation)],
      ...(cache ? [["In memory", `${format.count(cache.resident_bytes / 2 ** 20)} MiB`], ["Found in memory", format.percent(cache.hit_rate)], ["Read from the file", `${format.count(cache.loaded_bytes / 2 ** 20)} MiB`]] : [])];
    facts.replaceChildren(...rows.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
  }
  /** Show one cell in words. */
  function point(row, column) {
    const { told, phase, size } = state;
    if (!told) return;
    state.row = Math.max(0, Math.min(told.layers.length - 1, row));
    state.column = Math.max(0, Math.min(told.experts - 1, column));
    const layer = told.layers[state.row], counts = layer[phase], total = counts.reduce((sum, one) => sum + one, 0), count = counts[state.column];
    const here = svg.querySelector(".here");
    here?.setAttribute("x", LEFT + size * state.column - 1);
    here?.setAttribute("y", TOP + size * state.row - 1);
    words.textContent = `Layer ${layer.layer}, expert ${state.column}: ${format.exact(count)} tokens${total ? `, ${(count * counts.length / total).toFixed(2)} times the mean` : ""}.`;
  }
  svg.addEventListener("pointermove", (event) => {
    if (state.told) point(Math.floor((event.offsetY - TOP) / state.size), Math.floor((event.offsetX - LEFT) / state.size));
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    point(state.row + step[0], state.column + step[1]);
  });
  look();
  return () => { gone = true; clearTimeout(timer); };
}

const shade = (count, mean) => (mean ? Math.max(0.05, Math.min(1, count / mean / MOST_TIMES)).toFixed(3) : 0.05);
const few = (list) => (list.length ? `${list.slice(0, 8).join(", ")}${list.length > 8 ? ` and ${list.length - 8} more` : ""}` : "–");

function scale() {
  const svg = s("svg", { class: "heat", width: 260, height: 30, viewBox: "0 0 260 30", "aria-hidden": "true" });
  [0.25, 0.5, 1, 1.5, 2, 3, 4].forEach((times, at) => svg.append(
    s("rect", { x: 30 * at, y: 0, width: 28, height: 12, class: times >= 2 ? "f3" : "f1", "fill-opacity": shade(times, 1) }), s("text", { x: 30 * at + 14, y: 26, "text-anchor": "middle" }, `${times}×`)));
  return svg;
}
