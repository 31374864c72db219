// Requests that came, and what was decided about each: a list to search, and a page of one.
import { get } from "./api.js";
import { field, h } from "./dom.js";
import * as format from "./format.js";
import { ticketPage } from "./ticket.js";
import { OUTCOME } from "./words.js";

const PAGE = 100;

export function ticketsPage(main, session, [id]) {
  return id ? ticketPage(main, id) : list(main, session);
}

function list(main, session) {
  const input = (type, more) => h("input", { type, autocomplete: "off", spellcheck: "false", ...more });
  const parts = {
    search: input("search", { placeholder: "begins with" }), tenant: input("text"), model: input("text"), replica: input("text"),
    outcome: h("select", null, h("option", { value: "" }, "any"), h("option", { value: "running" }, "not ended yet"),
      Object.entries(OUTCOME).map(([name, [, words]]) => h("option", { value: name }, words))),
    slower_ms: input("number", { min: "0", step: "any", placeholder: "ms" }),
  };
  if (!session.may.see_all || session.role === "tenant") parts.tenant = null;
  const follow = h("input", { type: "checkbox", id: "follow", checked: true });
  const summary = h("span", { class: "soft num" }), said = h("p", { class: "error", role: "alert", hidden: true });
  const body = h("tbody"), more = h("button", { type: "button", hidden: true, onclick: () => { limit = Math.min(limit + PAGE, 1000); look(); } }, "Show more");
  const names = { search: "Ticket", tenant: "Tenant", model: "Model or route", replica: "Replica", outcome: "Outcome", slower_ms: "Slower than" };
  const form = h("form", { class: "row filters", onsubmit: (event) => { event.preventDefault(); look(); }, oninput: () => { clearTimeout(soon); soon = setTimeout(look, 250); } },
    Object.entries(parts).filter(([, one]) => one).map(([name, one]) => field(names[name], one)),
    h("div", { class: "field line" }, follow, h("label", { for: "follow" }, "Follow")));
  const columns = [["Arrived"], ["Ticket"], ["Tenant"], ["Model"], ["Replica"], ["Outcome"], ["Prompt", true, "Tokens of the prompt, and how much of it was cached"], ["Output", true, "Tokens of the answer"],
    ["TTFT", true, "Arrival to first token"], ["Total", true, "Arrival to the end"], ["Cost", true, "US dollars"]];
  main.replaceChildren(h("div", { class: "page-head" }, h("h1", null, "Tickets"), summary), h("section", { class: "card", "aria-label": "Search" }, form), said,
    h("section", { class: "card", "aria-label": "Tickets" }, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "List of tickets" },
      h("table", null, h("caption", { class: "hide" }, "Tickets, the newest first"), h("thead", null, h("tr", null, columns.map(([title, n, hint]) => h("th", { scope: "col", class: n ? "n" : null, title: hint }, title)))), body)), more));

  let limit = PAGE, soon = 0, timer = 0, asked = 0;
  async function look() {
    clearTimeout(timer);
    const number = ++asked, query = new URLSearchParams({ limit });
    for (const [name, one] of Object.entries(parts)) if (one?.value.trim()) query.set(name, one.value.trim());
    try {
      const found = (await get(`v1/tickets?${query}`)).data;
      if (number !== asked) return;
      said.hidden = true;
      body.replaceChildren(...found.map(row));
      if (!found.length) body.append(h("tr", null, h("td", { colspan: columns.length }, h("div", { class: "empty" }, query.size > 1 ? "No ticket is like that." : "No request has come yet."))));
      summary.textContent = found.length === limit ? `the newest ${format.count(limit)}` : format.plural(found.length, "ticket");
      more.hidden = found.length < limit || limit >= 1000;
    } catch (error) {
      said.textContent = error.message;
      said.hidden = false;
    }
    timer = setTimeout(() => (follow.checked && !document.hidden ? look() : (timer = setTimeout(look, 2000))), 2000);
  }
  follow.addEventListener("change", () => { if (follow.checked) look(); });
  look();
  return () => { clearTimeout(timer); clearTimeout(soon); asked = -1; };
}

export function outcome(ticket) {
  const name = ticket.finish_reason ?? ticket.outcome;
  if (name) {
    const [mood, words] = OUTCOME[name] ?? ["", name];
    return h("span", { class: `tag ${mood}`, title: ticket.error ?? null }, words);
  }
  return h("span", { class: "tag info" }, ticket.first_token ? "answering" : ticket.scheduled ? "computing" : "waiting");
}

function row(one) {
  const where = `#tickets/${encodeURIComponent(one.id)}`;
  const replicas = [...new Set(one.legs.map((leg) => leg.replica).filter(Boolean))].join(" → ") || one.replica;
  return h("tr", { class: "linked", onclick: (event) => { if (!event.target.closest("a")) location.hash = where; } },
    h("td", { class: "num" }, format.time(one.arrived)), h("td", null, h("a", { href: where, class: "mono" }, one.id.slice(0, 10))), h("td", { class: "cut" }, one.tenant), h("td", { class: "cut" }, one.model),
    h("td", { class: "cut" }, replicas || "–"), h("td", null, outcome(one)),
    h("td", { class: "n" }, format.exact(one.prompt_tokens), one.cached_tokens ? h("span", { class: "soft", title: "of it cached" }, ` (${format.exact(one.cached_tokens)})`) : null),
    h("td", { class: "n" }, format.exact(one.output_tokens)), h("td", { class: "n" }, format.ms(one.ttft_ms)), h("td", { class: "n" }, format.ms(one.e2e_ms)), h("td", { class: "n" }, format.usd(one.cost_usd)));
}
