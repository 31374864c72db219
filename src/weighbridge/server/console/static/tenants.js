// Tenants: what they may use, what they use, and their keys. A new key is shown once.
import { ask, get, post } from "./api.js";
import { copy, dialog, field, h, table } from "./dom.js";
import * as format from "./format.js";

const LIMITS = [["requests_per_minute", "Requests a minute", "requests"], ["tokens_per_minute", "Tokens a minute", "tokens"],
  ["concurrent_tokens", "Tokens at one time", "tokens at once"], ["usd_per_day", "US dollars a day", "a day"]];
const EVERY = 5000;
const path = (tenant, more) => `admin/tenants/${encodeURIComponent(tenant)}/${more}`;

export function tenants(changed) {
  const list = h("div"), said = h("p", { class: "error", role: "alert", hidden: true });
  const node = h("section", { class: "card", "aria-label": "Tenants" }, h("header", null, h("h2", null, "Tenants"), h("span", { class: "soft" }, "keys and limits, from the next request on"),
    h("span", { class: "end" }, h("button", { type: "button", onclick: () => newKey("", done) }, "New tenant"))), said, list);
  let shown = "", timer = 0;

  async function look() {
    clearTimeout(timer);
    timer = setTimeout(look, EVERY);
    if (document.hidden) return;
    try {
      draw(await get("admin/tenants"));
      said.hidden = true;
    } catch (error) {
      said.textContent = error.message;
      said.hidden = false;
    }
  }
  function done(words) {
    changed(words);
    look();
  }
  function draw({ data }) {
    const told = JSON.stringify(data);
    if (told === shown) return;
    shown = told;
    const kept = list.contains(document.activeElement) ? [...list.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    list.replaceChildren(data.length ? table("Tenants", [{ title: "Tenant" }, { title: "Limits", hint: "What is used of each now, and the limit" }, { title: "Keys" }, { title: "" }], data.map((one) => row(one, done)))
      : h("p", { class: "soft" }, "No tenant is named in weighbridge.yaml, and none was added since."));
    if (kept >= 0) list.querySelectorAll("button")[kept]?.focus();
  }
  look();
  return { node, stop: () => clearTimeout(timer) };
}

function row(one, done) {
  const limits = LIMITS.filter(([name]) => one.limits[name] !== undefined);
  const from = one.limits_from === "operator" ? h("span", { class: "tag info" }, "set at run time") : one.limits_from === "others" ? h("span", { class: "soft small" }, "as all who are not named") : null;
  return [h("td", { class: "cut", title: one.tenant }, one.tenant, one.configured ? null : h("div", { class: "soft small" }, "not in weighbridge.yaml")),
    h("td", null, limits.length ? limits.map(([name, , unit]) => h("div", { class: "num" }, `${amount(name, one.used[name])} of ${amount(name, one.limits[name])} ${unit}`)) : "no limits", from),
    h("td", null, one.keys.length ? one.keys.map((key) => h("div", { class: "row key" }, h("code", { title: "How this key is called here: a part of a hash" }, key.id),
      h("span", { class: key.good ? "soft small" : "tag bad" }, key.good ? (key.expires ? `until ${format.day(key.expires)}` : "no end") : "expired"),
      h("button", { type: "button", class: "danger", "aria-label": `Revoke key ${key.id} of ${one.tenant}`, onclick: () => revoke(one, key, done) }, "Revoke"))) : h("span", { class: "soft" }, "none")),
    h("td", { class: "n" }, h("span", { class: "row acts" }, h("button", { type: "button", onclick: () => change(one, done) }, "Limits"), h("button", { type: "button", onclick: () => newKey(one.tenant, done) }, "New key")))];
}
const amount = (name, value) => (name === "usd_per_day" ? format.usd(value) : format.count(value));

/** A form in front of the page whose errors it shows itself; `send` returns words for what was done. */
function form(title, parts, verb, send, done, more = []) {
  const said = h("p", { class: "error", role: "alert", hidden: true });
  return dialog(title, (close) => h("form", { method: "dialog", onsubmit: async (event) => {
    event.preventDefault();
    const button = event.submitter ?? event.target.querySelector("button.main");
    button.disabled = true;
    try {
      const words = await send(event.submitter?.value);
      close();
      done(words);
    } catch (error) {
      said.textContent = error.message;
      said.hidden = false;
    }
    button.disabled = false;
  } }, h("h2", null, title), parts, said, h("div", { class: "row" }, h("button", { type: "button", onclick: close }, "Cancel"), more, h("button", { class: "main" }, verb))));
}

function change(one, done) {
  const parts = Object.fromEntries(LIMITS.map(([name]) => [name, h("input", { type: "number", min: name === "usd_per_day" ? "0.000001" : "1", step: name === "usd_per_day" ? "any" : "1",
    inputmode: "decimal", placeholder: "no limit", value: one.limits[name] ?? "" })]));
  const zone = h("input", { autocomplete: "off", placeholder: "the last 24 hours", value: one.limits.zone ?? "" });
  const reset = one.limits_from === "operator" ? [h("button", { value: "reset", formnovalidate: true }, "As in weighbridge.yaml")] : [];
  form(`Limits of ${one.tenant}`, [...LIMITS.map(([name, title]) => field(title, parts[name], one.configured_limits?.[name] ? `weighbridge.yaml: ${amount(name, one.configured_limits[name])}` : null)),
    field("Days of the time zone", zone, "By whose days dollars count, such as Europe/Berlin.")], "Set", async (act) => {
    if (act === "reset") {
      await ask(path(one.tenant, "limits"), { method: "DELETE" });
      return `${one.tenant} has the limits of the configuration.`;
    }
    const limits = Object.fromEntries(Object.entries(parts).filter(([, part]) => part.value !== "").map(([name, part]) => [name, Number(part.value)]));
    if (zone.value.trim()) limits.zone = zone.value.trim();
    await ask(path(one.tenant, "limits"), { method: "PUT", json: limits });
    return `The limits of ${one.tenant} hold from its next request on.`;
  }, done, reset);
}

function newKey(tenant, done) {
  const name = h("input", { autocomplete: "off", required: true, maxlength: "200", value: tenant, readonly: tenant !== "" }), expires = h("input", { type: "date" });
  form(tenant ? `New key for ${tenant}` : "New tenant", [field("Tenant", name), field("Good until the end of", expires, "A day, UTC. Empty: until it is revoked.")], "Make a key", async () => {
    const made = await post(path(name.value.trim(), "keys"), { expires: expires.value || null });
    shownOnce(made);
    return `Key ${made.id} of ${made.tenant} is good from now on.`;
  }, done);
}

function shownOnce(made) {
  const word = h("input", { readonly: true, value: made.key, spellcheck: "false", onfocus: () => word.select() }), button = h("button", { type: "button", class: "main", onclick: () => copy(made.key, button) }, "Copy");
  dialog("The new key", (close) => h("form", { method: "dialog", onsubmit: (event) => { event.preventDefault(); close(); } }, h("h2", null, `A key for ${made.tenant}`),
    field("Key", word, "This is the only time it is shown: the server keeps its hash alone."), h("div", { class: "row" }, button, h("button", null, "I have it"))));
}

function revoke(one, key, done) {
  const left = one.keys.filter((other) => other.good && other.id !== key.id).length;
  form(`Revoke key ${key.id}`, [h("p", null, `Requests of ${one.tenant} with it fail from the next one on. ${left ? `${format.plural(left, "other key")} of it stays good.` : "It has no other good key."}`)], "Revoke", async () => {
    const answer = await (await ask(path(one.tenant, `keys/${encodeURIComponent(key.id)}`), { method: "DELETE" })).json();
    return `Key ${key.id} of ${one.tenant} is revoked${answer.others_told === false ? " at this gateway alone: Redis is away, so revoke it at the others too" : ""}.`;
  }, done);
}
