// Replicas, up to hundreds of them: a summary, a map on which each is a small field, and a table to sort and filter.
import { h, meter } from "./dom.js";
import * as format from "./format.js";
import { STANDING } from "./words.js";

const COLUMNS = [
  { key: "name", title: "Replica", value: (one) => one.name },
  { key: "model", title: "Model", value: (one) => one.model },
  { key: "standing", title: "State", value: (one) => one.standing },
  { key: "requests", title: "Requests", n: true, value: (one) => one.requests, hint: "Requests of ours that are there now" },
  { key: "tokens", title: "Work", n: true, value: (one) => one.outstanding_tokens, hint: "Tokens of work left there: prompts to be computed and answers expected" },
  { key: "kv", title: "KV", n: true, value: (one) => (one.kv_tokens_total ? one.kv_tokens / one.kv_tokens_total : -1), hint: "Share of its KV cache that our requests hold" },
  { key: "hits", title: "Hit rate", n: true, value: (one) => (one.prompt_tokens ? one.cached_tokens / one.prompt_tokens : -1), hint: "Share of prompt tokens that were in its cache, since the start" },
  { key: "finished", title: "Finished", n: true, value: (one) => one.finished, hint: "Requests that ended well there, since the start" },
  { key: "failures", title: "Failed", n: true, value: (one) => one.failures, hint: "Attempts that failed there, since the start" },
  { key: "usd", title: "Spent", n: true, value: (one) => one.usd, hint: "US dollars since the start" },
];
const MAP_FROM = 9; // replicas from which on a map is worth its place

export function replicas() {
  const state = { sort: "standing", down: false, text: "", standing: "", all: [] };
  const summary = h("span", { class: "soft num" });
  const search = h("input", { type: "search", placeholder: "Filter by name, model, reason", "aria-label": "Filter replicas", oninput: () => { state.text = search.value.toLowerCase(); draw(); } });
  const pick = h("select", { "aria-label": "State", onchange: () => { state.standing = pick.value; draw(); } },
    h("option", { value: "" }, "any state"), Object.entries(STANDING).map(([name, [, words]]) => h("option", { value: name }, words)));
  const map = h("ul", { class: "map", "aria-label": "Map of the replicas" });
  const head = h("tr", null, COLUMNS.map((one) => h("th", { scope: "col", class: one.n ? "n" : null, title: one.hint },
    h("button", { type: "button", onclick: () => { state.down = state.sort === one.key ? !state.down : Boolean(one.n); state.sort = one.key; draw(); } }, one.title))));
  const body = h("tbody");
  const node = h("section", { class: "card", "aria-label": "Replicas" }, h("header", null, h("h2", null, "Replicas"), summary, h("span", { class: "row end" }, search, pick)), map,
    h("div", { class: "scroll rows", tabindex: "0", role: "region", "aria-label": "Table of the replicas" }, h("table", null, h("caption", { class: "hide" }, "Replicas"), h("thead", null, head), body)));

  function draw() {
    const shown = state.all.filter((one) => (!state.standing || one.standing === state.standing) && `${one.name} ${one.model} ${one.why}`.toLowerCase().includes(state.text));
    const column = COLUMNS.find((one) => one.key === state.sort), sign = state.down ? -1 : 1;
    const order = (value) => (state.sort === "standing" ? Object.keys(STANDING).indexOf(value) * -1 : value);
    shown.sort((a, b) => sign * compare(order(column.value(a)), order(column.value(b))) || compare(a.name, b.name));
    COLUMNS.forEach((one, at) => head.children[at].setAttribute("aria-sort", one.key !== state.sort ? "none" : state.down ? "descending" : "ascending"));
    body.replaceChildren(...shown.map(row));
    if (!shown.length) body.append(h("tr", null, h("td", { colspan: COLUMNS.length, class: "soft" }, state.all.length ? "None is like that." : "There are no replicas.")));
    summary.textContent = told(state.all, shown.length);
    map.hidden = state.all.length < MAP_FROM;
    if (!map.hidden) drawMap(shown);
  }

  function drawMap(shown) {
    const most = Math.max(...shown.map((one) => one.outstanding_tokens), 1), focused = map.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    map.replaceChildren(...[...shown].sort((a, b) => compare(a.name, b.name)).map((one) => {
      const [mood, words] = STANDING[one.standing] ?? ["", one.standing];
      const said = `${one.name}: ${words}, ${format.plural(one.requests, "request")}, ${format.count(one.outstanding_tokens)} tokens of work${one.why ? `; ${one.why}` : ""}`;
      return h("li", { class: mood }, h("button", { type: "button", title: said, "aria-pressed": String(state.text === one.name.toLowerCase()), "data-name": one.name,
        onclick: () => { search.value = state.text === one.name.toLowerCase() ? "" : one.name; state.text = search.value.toLowerCase(); draw(); } },
      h("span", null, h("span", { class: "name" }, one.name), h("span", { class: "value" }, one.standing === "up" ? format.count(one.requests) : words)),
      meter([[one.outstanding_tokens / most, mood === "good" ? 1 : mood === "bad" ? 4 : 3]], `${format.count(one.outstanding_tokens)} tokens of work`)));
    }));
    if (focused) [...map.querySelectorAll("button")].find((one) => one.dataset.name === focused)?.focus();
  }

  return { node, update(models) {
    state.all = Object.entries(models).flatMap(([model, pool]) => pool.replicas.map((one) => ({ ...one, model })));
    draw();
  } };
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

function told(all, shown) {
  const counts = {};
  for (const one of all) counts[one.standing] = (counts[one.standing] ?? 0) + 1;
  const parts = Object.keys(STANDING).filter((name) => counts[name]).map((name) => `${counts[name]} ${STANDING[name][1]}`);
  return [...parts, shown < all.length ? `${shown} shown` : ""].filter(Boolean).join(", ");
}

function row(one) {
  const [mood, words] = STANDING[one.standing] ?? ["", one.standing];
  const why = one.why && one.why !== one.standing ? one.why : "";
  return h("tr", null,
    h("td", { class: "cut", title: `${one.kind}, ${one.dialect}${one.server ? `, ${one.server}` : ""}: ${one.target}` }, one.name), h("td", { class: "cut" }, one.model),
    h("td", { class: "cut", title: why || null }, h("span", { class: `tag ${mood}` }, words), why ? h("span", { class: "soft small" }, ` ${why}`) : null),
    h("td", { class: "n" }, format.count(one.requests), one.others_requests ? h("span", { class: "soft", title: "Requests there that are not ours" }, ` +${format.count(one.others_requests)}`) : null),
    h("td", { class: "n" }, format.count(one.outstanding_tokens)),
    h("td", { class: "n" }, one.kv_tokens_total ? format.share(one.kv_tokens, one.kv_tokens_total) : "–"),
    h("td", { class: "n" }, format.share(one.cached_tokens, one.prompt_tokens)),
    h("td", { class: "n" }, format.count(one.finished)), h("td", { class: "n" }, format.count(one.failures)), h("td", { class: "n" }, format.usd(one.usd)));
}
