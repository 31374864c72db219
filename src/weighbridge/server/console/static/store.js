// Chats in this browser, and no further: bounded in number and size, the oldest make room. A browser may refuse; then they last as long as the page.
const PLACE = "weighbridge.chats", MOST = 60, CHARACTERS = 3_000_000;
let chats = read();

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(PLACE) ?? "[]");
    return Array.isArray(kept) ? kept.filter((one) => one && typeof one.id === "string" && Array.isArray(one.turns)) : [];
  } catch { return []; }
}
export const all = () => chats;
export const find = (id) => chats.find((one) => one.id === id);
export function begin(model, settings) {
  return { id: crypto.randomUUID?.() ?? String(Date.now()) + Math.random().toString(36).slice(2), title: "", model, settings, turns: [], changed: Date.now() };
}
/** Keep a chat, as the newest. */
export function keep(chat) {
  chat.changed = Date.now();
  chats = [chat, ...chats.filter((one) => one.id !== chat.id)].slice(0, MOST);
  write();
}
export function drop(id) {
  chats = chats.filter((one) => one.id !== id);
  write();
}
function write() {
  let text = JSON.stringify(chats);
  while (text.length > CHARACTERS && chats.length > 1) {
    chats = chats.slice(0, -1);
    text = JSON.stringify(chats);
  }
  for (;;) {
    try { return localStorage.setItem(PLACE, text); } catch {
      if (chats.length < 2) return;
      chats = chats.slice(0, Math.ceil(chats.length / 2));
      text = JSON.stringify(chats);
    }
  }
}
const SETTINGS = "weighbridge.settings";
export const DEFAULTS = { system: "", temperature: "", top_p: "", max_tokens: "", seed: "", tools: "" };
export function settings() {
  try { return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") }; } catch { return { ...DEFAULTS }; }
}
export function keepSettings(value) {
  try { localStorage.setItem(SETTINGS, JSON.stringify(value)); } catch { /* they hold for this page */ }
}
