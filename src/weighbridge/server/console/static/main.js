// The frame: which page is shown, who looks, and whether the server still answers.
import { Failure, get, key, Lost, setKey } from "./api.js";
import { chatPage } from "./chat.js";
import { byId, dialog, field, h } from "./dom.js";
import { expertsPage } from "./experts.js";
import { fleetPage } from "./fleet.js";
import * as format from "./format.js";
import { forget, listen, live, pace } from "./live.js";
import { nowPage } from "./now.js";
import { planPage } from "./plan.js";
import { ticketsPage } from "./tickets.js";
import { whatIfPage } from "./whatif.js";

const PAGES = [
  { name: "now", title: "Now", made: nowPage, open: (may) => may.look },
  { name: "tickets", title: "Tickets", made: ticketsPage, open: (may) => may.read_tickets },
  { name: "chat", title: "Chat", made: chatPage, open: (may) => may.ask },
  { name: "fleet", title: "Fleet", made: fleetPage, open: (may) => may.change },
  { name: "experts", title: "Experts", made: expertsPage, open: (may) => may.see_experts },
  { name: "whatif", title: "What if", made: whatIfPage, open: (may) => may.see_all },
  { name: "plan", title: "Plan", made: planPage, open: (may) => may.look },
];
const ROLES = { operator: "Operator", watcher: "Watcher", tenant: "Tenant", looker: "This machine", anyone: "No keys asked" };
let session = null, page = null, leave = () => {}, shownAt = "";

async function look() {
  session = await get("console/api/session");
  draw();
}

function draw() {
  const { may, role } = session, where = location.hash.slice(1) || "now", [name, ...rest] = where.split("/");
  byId("nav").replaceChildren(...PAGES.filter((one) => one.open(may)).map((one) =>
    h("a", { href: `#${one.name}`, "aria-current": one.name === name ? "page" : null }, one.title)));
  const sign = byId("sign");
  sign.textContent = key() ? "Sign out" : "Sign in";
  sign.hidden = !(session.keys_are_asked || session.has_operator || key());
  sign.title = key() && session.tenant ? `as ${session.tenant}` : ROLES[role] ?? "";
  const next = PAGES.find((one) => one.name === name && one.open(may));
  const place = `${next?.name}/${rest.join("/")}/${role}/${session.tenant}`;
  if (next && place === shownAt) return;
  leave();
  leave = () => {};
  shownAt = place;
  page = next;
  const main = byId("main");
  main.className = "";
  pace(name === "now" || name === "fleet" ? 1000 : 5000);
  document.title = next ? `${next.title} · Weighbridge` : "Weighbridge";
  if (!next) main.replaceChildren(closed(name));
  else leave = next.made(main, session, rest.map(decodeURIComponent)) ?? leave;
}

/** Why a page is not shown, and what to do. */
function closed(name) {
  const known = PAGES.find((one) => one.name === name);
  if (session.role === "nobody")
    return h("div", { class: "empty" }, h("h2", null, "Sign in to look"), h("p", null, session.problem || "This server asks for a key."),
      h("p", null, h("button", { class: "main", type: "button", onclick: signIn }, "Sign in")));
  const why = !known ? "There is no such page." : session.role === "operator"
    ? "The operator's key asks no models: sign in with a tenant's." : "It takes the key of a tenant.";
  return h("div", { class: "empty" }, h("h2", null, known?.title ?? "Nothing here"), h("p", null, why));
}

function signIn() {
  const input = h("input", { type: "password", autocomplete: "current-password", required: true, spellcheck: "false" });
  const said = h("p", { class: "error", role: "alert", hidden: true });
  dialog("Sign in", (close) => h("form", { method: "dialog", onsubmit: async (event) => {
    event.preventDefault();
    setKey(input.value.trim());
    try {
      const found = await get("console/api/session");
      if (found.role === "nobody" || (found.role === "looker" && found.problem)) throw new Error(found.problem);
      if (found.problem && found.role !== "operator") throw new Error(found.problem);
      session = found;
      forget();
      close();
      draw();
    } catch (error) {
      setKey("");
      said.textContent = error.message;
      said.hidden = false;
    }
  } }, h("h2", null, "Sign in"),
    field("Key", input, "A tenant's key, or the operator's. It stays in this tab and goes to this server alone."), said,
    h("div", { class: "row" }, h("button", { type: "button", onclick: close }, "Cancel"), h("button", { class: "main" }, "Sign in"))));
}

byId("sign").addEventListener("click", () => {
  if (!key()) return signIn();
  setKey("");
  forget();
  look();
});

byId("skip").addEventListener("click", (event) => { event.preventDefault(); byId("main").focus(); });
addEventListener("hashchange", () => { if (session) draw(); });

// -- light and dark
const SCHEMES = ["auto", "light", "dark"], SIGNS = { auto: "◐", light: "○", dark: "●" };
function scheme(next) {
  const known = SCHEMES.includes(next) ? next : "auto", button = byId("theme");
  if (known === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = known;
  button.textContent = SIGNS[known];
  button.title = `Colours: ${known === "auto" ? "as the system" : known}`;
  button.setAttribute("aria-label", button.title);
  button.onclick = () => {
    const after = SCHEMES[(SCHEMES.indexOf(known) + 1) % 3];
    try { localStorage.setItem("weighbridge.scheme", after); } catch { /* it holds for this page */ }
    scheme(after);
  };
}
let kept = "auto";
try { kept = localStorage.getItem("weighbridge.scheme") ?? "auto"; } catch { /* no storage */ }
scheme(kept);

// -- whether the server answers
listen(({ problem, told, heard }) => {
  const pulse = byId("pulse"), banner = byId("banner"), lost = problem instanceof Lost;
  document.body.classList.toggle("stale", lost);
  pulse.className = `pulse ${lost ? "lost" : told?.ready && !problem ? "ok" : "warn"}`;
  const words = lost ? "no answer" : problem ? "not shown" : told?.ready ? "live" : told?.status ?? "";
  if (pulse.textContent !== words) pulse.textContent = words;
  banner.hidden = !lost;
  const since = lost ? `The server does not answer. What you see is from ${heard ? format.time(heard) : "before"}; it is asked again all the time.` : "";
  if (banner.textContent !== since) banner.textContent = since;
  if (problem instanceof Failure && (problem.status === 401 || problem.status === 403) && session && session.may.look) look().catch(() => {});
});

// -- a key in the address, as older pages took it, goes where keys belong
const address = new URL(location.href);
if (address.searchParams.has("key")) {
  setKey(address.searchParams.get("key"));
  address.searchParams.delete("key");
  history.replaceState(null, "", address);
}

async function begin() {
  try {
    await look();
  } catch (error) {
    byId("main").replaceChildren(h("div", { class: "empty" }, h("h2", null, "No answer"), h("p", null, error.message)));
    setTimeout(begin, 2000);
  }
}
begin();
