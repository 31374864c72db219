// A streamed chat: server-sent events as they come, into pieces of an answer.
import { ask, Failure } from "./api.js";

export async function* chat(body, signal) {
  const answer = await ask("v1/chat/completions", { json: { ...body, stream: true, stream_options: { include_usage: true } }, signal });
  const facts = { ticket: answer.headers.get("x-weighbridge-ticket"), replica: answer.headers.get("x-weighbridge-replica"), placement: answer.headers.get("x-weighbridge-placement") };
  yield { facts };
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { done, value } = await reader.read();
    left = (left + (value ?? "")).replaceAll("\r\n", "\n");
    const events = left.split("\n\n");
    left = done ? "" : events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (!data || data === "[DONE]") continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Failure(chunk.error.status ?? 500, chunk.error);
      const choice = chunk.choices?.[0], delta = choice?.delta ?? {};
      yield { text: delta.content ?? "", thought: delta.reasoning_content ?? delta.reasoning ?? "", calls: delta.tool_calls ?? [], refusal: delta.refusal ?? "",
        finish: choice?.finish_reason ?? null, usage: chunk.usage ?? null };
    }
    if (done) return;
  }
}

/** Put pieces of tool calls together by their index. */
export function joinCalls(calls, pieces) {
  for (const piece of pieces) {
    const at = piece.index ?? calls.length, call = (calls[at] ??= { id: piece.id ?? "", type: "function", function: { name: "", arguments: "" } });
    if (piece.id) call.id = piece.id;
    call.function.name += piece.function?.name ?? "";
    call.function.arguments += piece.function?.arguments ?? "";
  }
  return calls;
}

/** A text in pieces of at most so many characters, cut behind finished blocks where there are any. */
export function cut(text, most) {
  const pieces = [];
  while (text.length > most) {
    const end = finished(text.slice(0, most)) || most;
    pieces.push(text.slice(0, end));
    text = text.slice(end);
  }
  return text ? [...pieces, text] : pieces;
}

/** Where the last finished block of Markdown ends: behind an empty line that is in no block of code. */
export function finished(text) {
  let fence = null, end = 0, at = 0;
  for (const line of text.split("\n")) {
    const next = at + line.length + 1, mark = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1];
    if (mark && !fence) fence = mark;
    else if (mark && mark[0] === fence?.[0] && mark.length >= fence.length && !line.trim().replaceAll(mark[0], "")) { fence = null; if (next <= text.length) end = next; }
    if (!fence && !line.trim() && next <= text.length) end = next;
    at = next;
  }
  return end;
}
