// Chats: ask, watch the answer come, stop it, change what was said, ask again.
import { post } from "./api.js";
import { copy, dialog, field, h } from "./dom.js";
import * as format from "./format.js";
import { fill } from "./markup.js";
import * as store from "./store.js";
import { chat as streamed, cut, finished, joinCalls } from "./stream.js";

export function chatPage(main, session, [id]) {
  main.className = "wide";
  const models = session.models;
  let chat = (id && store.find(id)) || store.begin(models[0]?.id ?? "", store.settings());
  let running = null; // what stops the answer that is coming
  const list = h("ul"), thread = h("div", { role: "log", "aria-label": "Chat", "aria-live": "off" }), scroller = h("div", { class: "thread", tabindex: "0" }, thread);
  const text = h("textarea", { rows: "1", placeholder: "Ask something", "aria-label": "Message", onkeydown: (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  } });
  const button = h("button", { class: "main" }, "Send"), status = h("p", { class: "hide", role: "status" });
  const pick = h("select", { "aria-label": "Model or route", onchange: () => { chat.model = pick.value; if (chat.turns.length) store.keep(chat); } },
    group("Models", models.filter((one) => !one.is_route)), group("Routes", models.filter((one) => one.is_route)));
  const frame = h("div", { class: "chat" },
    h("aside", { "aria-label": "Chats" }, h("button", { type: "button", onclick: fresh }, "New chat"), list),
    h("section", { class: "talk", "aria-label": "Chat" },
      h("div", { class: "bar" }, h("button", { type: "button", class: "quiet only-phone", onclick: () => frame.classList.toggle("listing") }, "Chats"), pick,
        h("span", { class: "end" }, h("button", { type: "button", class: "quiet", onclick: () => settings(chat) }, "Settings"), h("button", { type: "button", class: "quiet", onclick: fresh }, "New"))),
      scroller, h("div", { class: "compose" }, h("form", { onsubmit: (event) => { event.preventDefault(); running ? running.abort() : send(); } }, text, button),
        h("p", { class: "hint" }, "Enter sends, Shift+Enter is a new line. Chats are kept in this browser."), status)));
  main.replaceChildren(frame);
  if (models.some((one) => one.id === chat.model)) pick.value = chat.model; else chat.model = pick.value;
  drawList();
  drawAll();
  text.focus();

  function group(words, some) { return some.length ? h("optgroup", { label: words }, some.map((one) => h("option", { value: one.id }, one.id))) : null; }
  function fresh() {
    running?.abort();
    frame.classList.remove("listing");
    if (location.hash === "#chat") { chat = store.begin(pick.value, store.settings()); drawList(); drawAll(); text.focus(); } else location.hash = "#chat";
  }
  function drawList() {
    list.replaceChildren(...store.all().map((one) => h("li", { class: one.id === chat.id ? "here" : "" },
      h("a", { href: `#chat/${encodeURIComponent(one.id)}`, "aria-current": one.id === chat.id ? "true" : null }, one.title || "Untitled"),
      h("button", { type: "button", class: "quiet icon", "aria-label": `Delete ${one.title || "this chat"}`, onclick: () => { store.drop(one.id); if (one.id === chat.id) fresh(); else drawList(); } }, "×"))));
    if (!list.children.length) list.append(h("li", { class: "hint" }, "No chats yet."));
  }
  function drawAll() {
    thread.replaceChildren(...chat.turns.map((turn, at) => (turn.role === "user" ? userTurn(turn, at) : answerTurn(turn, at).node)));
    if (!chat.turns.length) thread.append(h("div", { class: "hello" }, h("h1", null, "What shall it be?"), h("p", null, "Ask ", h("b", null, chat.model || "a model"), ". Answers come as they are made.")));
    scroller.scrollTop = scroller.scrollHeight;
  }

  function userTurn(turn, at) {
    const said = h("div", { class: "said" }, turn.content);
    const node = h("div", { class: "turn user" }, said, h("div", { class: "foot" },
      h("button", { type: "button", class: "quiet", onclick: (event) => copy(turn.content, event.target) }, "Copy"),
      h("button", { type: "button", class: "quiet", onclick: () => edit(node, turn, at) }, "Edit")));
    return node;
  }
  function edit(node, turn, at) {
    if (running) return;
    const area = h("textarea", { rows: "4", value: turn.content, "aria-label": "Change the message" });
    node.replaceChildren(area, h("div", { class: "foot" }, h("button", { type: "button", class: "quiet", onclick: drawAll }, "Cancel"),
      h("button", { type: "button", class: "main", onclick: () => { if (!area.value.trim()) return; chat.turns = chat.turns.slice(0, at); send(area.value); } }, "Send again")));
    area.focus();
  }

  function answerTurn(turn, at) {
    const said = h("div", { class: "said md" }), blocks = h("div"), tail = h("div", { class: "tail" }), think = h("div"), calls = h("div"), problem = h("div"), foot = h("div", { class: "foot" });
    const node = h("article", { class: "turn", "aria-label": "Answer" }, think, said, calls, problem, foot);
    said.append(blocks, tail);
    let done = 0, drawn = Promise.resolve(), thought = null;
    /** Show what is there: finished blocks as Markdown, what is being written as it is. */
    const show = (whole) => {
      if (turn.thought) {
        if (!thought) think.replaceChildren(h("details", { class: "think" }, h("summary", null, "Thoughts"), (thought = h("div"))));
        thought.textContent = turn.thought;
      }
      const end = whole ? turn.content.length : finished(turn.content);
      if (end > done || whole) {
        const from = whole ? 0 : done, piece = turn.content.slice(from, end), place = h("div", { class: "md" });
        done = end;
        if (!whole) { place.textContent = piece; place.classList.add("tail"); blocks.append(place); }
        drawn = drawn.then(() => rendered(piece)).then((html) => {
          if (html === null) { if (whole) { blocks.replaceChildren(); tail.textContent = turn.content; } return; }
          const target = whole ? blocks : place;
          target.classList.remove("tail");
          fill(target, html);
          withCopies(target);
          if (whole) tail.textContent = "";
        });
      }
      if (!whole) tail.textContent = turn.content.slice(done);
      else if (!blocks.children.length) tail.textContent = turn.content;
      calls.replaceChildren(...(turn.calls ?? []).map(shownCall));
      return drawn;
    };
    const end = () => {
      problem.replaceChildren(turn.error ? h("div", { class: "error", role: "alert" }, turn.error) : "");
      foot.replaceChildren(h("span", { class: "figures" }, figures(turn)),
        h("button", { type: "button", class: "quiet", onclick: (event) => copy(turn.content, event.target) }, "Copy"),
        h("button", { type: "button", class: "quiet", onclick: () => again(at) }, "Regenerate"),
        turn.ticket ? h("a", { class: "button quiet", href: `#tickets/${encodeURIComponent(turn.ticket)}` }, "Ticket") : "");
      return show(true);
    };
    if (!turn.open) end();
    return { node, show, end, waiting(words) { foot.replaceChildren(h("span", { class: "wait" }, words)); } };
  }

  function again(at) {
    if (running) return;
    chat.turns = chat.turns.slice(0, at);
    drawAll();
    answer();
  }
  function send(given) {
    const words = given ?? text.value;
    if (running || !words.trim()) return;
    if (given === undefined) text.value = "";
    chat.turns.push({ role: "user", content: words });
    chat.title ||= words.trim().split("\n")[0].slice(0, 60);
    drawAll();
    answer();
  }

  async function answer() {
    const turn = { role: "assistant", content: "", model: chat.model, open: true };
    const asked = bodyOf(chat);
    chat.turns.push(turn);
    const view = answerTurn(turn, chat.turns.length - 1), began = performance.now(), mine = (running = new AbortController());
    const here = chat;
    thread.append(view.node);
    button.textContent = "Stop";
    button.classList.remove("main");
    status.textContent = "The answer is on its way";
    let first = 0, tokens = 0, last = 0;
    const tick = setInterval(() => {
      const spent = performance.now() - began;
      view.waiting(first ? `${format.count(tokens)} tokens, ${format.count(tokens / Math.max((performance.now() - first) / 1000, 0.001))} tok/s` : `waiting for the first token, ${(spent / 1000).toFixed(1)} s`);
    }, 200);
    view.waiting("waiting for the first token");
    scroller.scrollTop = scroller.scrollHeight;
    try {
      for await (const piece of streamed(asked, mine.signal)) {
        if (piece.facts) { Object.assign(turn, piece.facts); continue; }
        if (!first && (piece.text || piece.thought || piece.calls.length)) first = performance.now();
        if (piece.text || piece.thought || piece.calls.length) tokens += 1;
        turn.content += piece.text + piece.refusal;
        if (piece.thought) turn.thought = (turn.thought ?? "") + piece.thought;
        if (piece.calls.length) turn.calls = joinCalls(turn.calls ?? [], piece.calls);
        if (piece.finish) turn.finish = piece.finish;
        if (piece.usage) turn.usage = { prompt: piece.usage.prompt_tokens, output: piece.usage.completion_tokens };
        if (performance.now() - last > 60) { last = performance.now(); follow(() => view.show(false)); }
      }
    } catch (error) {
      if (error.name === "AbortError") turn.finish = "stopped";
      else turn.error = error.message;
    }
    clearInterval(tick);
    turn.open = false;
    const until = performance.now();
    turn.ttft = first ? first - began : null;
    turn.total = until - began;
    const made = turn.usage?.output ?? tokens;
    turn.speed = first && made > 1 ? (made - 1) / ((until - first) / 1000) : null;
    delete turn.open;
    store.keep(here);
    if (running === mine) { running = null; button.textContent = "Send"; button.classList.add("main"); }
    status.textContent = turn.error ? "The answer failed" : "The answer is complete";
    follow(() => {});
    await view.end();
    follow(() => {});
    if (here === chat) drawList();
  }
  /** Stay at the end while it grows, unless the reader has gone up. */
  function follow(change) {
    const near = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
    change();
    if (near) scroller.scrollTop = scroller.scrollHeight;
  }
  return () => running?.abort();
}

/** The body of a request. What failed is left out, so that a message that was too long spoils no other. */
function bodyOf(chat) {
  const said = [], { settings } = chat;
  chat.turns.forEach((turn, at) => {
    if (turn.role === "user" && chat.turns[at + 1]?.error) return;
    if (turn.role === "assistant" && (turn.error || (!turn.content && !turn.calls))) return;
    said.push({ role: turn.role, content: turn.content });
  });
  const messages = settings.system ? [{ role: "system", content: settings.system }, ...said] : said, body = { model: chat.model, messages };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) if (settings[name] !== "" && settings[name] !== undefined) body[name] = Number(settings[name]);
  if (settings.tools) body.tools = JSON.parse(settings.tools);
  return body;
}

const LONGEST = 24576; // the server renders no longer text
async function rendered(text) {
  if (!text.trim()) return null;
  try {
    let html = "";
    for (const piece of cut(text, LONGEST)) html += (await post("console/api/markdown", { text: piece })).html;
    return html;
  } catch { return null; }
}
function withCopies(node) {
  for (const code of node.querySelectorAll(".code")) {
    const button = h("button", { type: "button", onclick: () => copy(code.querySelector("code").textContent, button) }, "Copy");
    code.append(button);
  }
}
function shownCall(call) {
  let words = call.function.arguments;
  try { words = JSON.stringify(JSON.parse(words), null, 2); } catch { /* as it is */ }
  return h("div", { class: "call" }, h("span", { class: "tag info" }, "Calls ", h("code", null, call.function.name)), h("pre", { class: "quote" }, words));
}
function figures(turn) {
  const cut = { length: "cut at its limit", stopped: "stopped", content_filter: "filtered" }[turn.finish];
  return [turn.model, turn.usage ? format.plural(turn.usage.output, "token") : "", turn.speed ? `${format.count(turn.speed)} tok/s` : "", turn.ttft ? `first after ${format.ms(turn.ttft)}` : "",
    turn.placement && turn.placement !== "edge" ? turn.placement : "", cut].filter(Boolean).join(" · ");
}

function settings(chat) {
  const value = { ...store.DEFAULTS, ...chat.settings }, number = (name, more) => h("input", { type: "number", step: "any", value: value[name], placeholder: "the model's own", name, ...more });
  const parts = {
    system: h("textarea", { rows: "4", value: value.system, name: "system" }), temperature: number("temperature", { min: "0", max: "2" }), top_p: number("top_p", { min: "0", max: "1" }),
    max_tokens: number("max_tokens", { min: "1", step: "1" }), seed: number("seed", { step: "1" }), tools: h("textarea", { rows: "3", value: value.tools, name: "tools", class: "mono", spellcheck: "false" }),
  };
  const said = h("p", { class: "error", role: "alert", hidden: true });
  dialog("Settings", (close) => h("form", { method: "dialog", onsubmit: (event) => {
    event.preventDefault();
    const next = Object.fromEntries(Object.entries(parts).map(([name, part]) => [name, part.value.trim()]));
    try {
      if (next.tools && !Array.isArray(JSON.parse(next.tools))) throw new Error();
    } catch {
      said.textContent = "Tools: write a JSON list, as in OpenAI's `tools`.";
      said.hidden = false;
      return;
    }
    chat.settings = next;
    store.keepSettings(next);
    if (chat.turns.length) store.keep(chat);
    close();
  } }, h("h2", null, "Settings"), field("System prompt", parts.system),
    h("div", { class: "two-fields" }, field("Temperature", parts.temperature), field("Top p", parts.top_p), field("Most tokens of an answer", parts.max_tokens), field("Seed", parts.seed)),
    field("Tools, as JSON", parts.tools, "Calls are shown; nothing is called from here."), said,
    h("div", { class: "row" }, h("button", { type: "button", onclick: close }, "Cancel"), h("button", { class: "main" }, "Use"))));
}
