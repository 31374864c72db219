// OpenAI's client for Node: chat completions.
import OpenAI from "openai";
import { LONG, NOBODY, PARAMETERS, QUESTION, SHORT, SYSTEM, WRONG_KEY, check, drive, refused } from "./contract.mjs";

const HI = [
  { role: "system", content: SYSTEM },
  { role: "user", content: QUESTION },
];
const TOOL = {
  type: "function",
  function: { name: "weigh", description: "Weigh a parcel.", parameters: PARAMETERS, strict: true },
};
const clientOf = (place) => new OpenAI({ baseURL: place.v1, apiKey: place.key, maxRetries: 0, timeout: 60_000 });
const ask = (place, more = {}) =>
  clientOf(place).chat.completions.create({ model: place.model, messages: HI, max_tokens: SHORT, ...more });

await drive(["openai"], {
  list: async (place) => {
    const names = [];
    for await (const one of clientOf(place).models.list()) names.push(one.id);
    check(names.includes(place.model), names);
  },
  chat: async (place) => {
    const answer = await ask(place);
    check(answer.choices[0].message.content && answer.usage.completion_tokens === SHORT, answer);
  },
  stream: async (place) => {
    let text = "", last;
    for await (const chunk of await ask(place, { stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta.content ?? "";
      last = chunk;
    }
    check(text && last.usage.completion_tokens === SHORT, last);
  },
  tools: async (place) => {
    const forced = { type: "function", function: { name: "weigh" } };
    const answer = await ask(place, { tools: [TOOL], tool_choice: forced, max_tokens: 200 });
    const [call] = answer.choices[0].message.tool_calls;
    check(["small", "large"].includes(JSON.parse(call.function.arguments).size), call);
    const told = { role: "tool", tool_call_id: call.id, content: "9 kg" };
    const after = await ask(place, { tools: [TOOL], messages: [...HI, answer.choices[0].message, told] });
    check(after.usage.completion_tokens > 0, after);
  },
  structured: async (place) => {
    const format = { type: "json_schema", json_schema: { name: "parcel", schema: PARAMETERS, strict: true } };
    const answer = await clientOf(place).chat.completions.parse({
      model: place.model, messages: HI, max_tokens: 200, response_format: format,
    });
    check(["small", "large"].includes(JSON.parse(answer.choices[0].message.content).size), answer);
  },
  400: (place) => refused(400, () => ask(place, { temperature: -1 })),
  401: (place) => refused(401, () => ask({ ...place, key: WRONG_KEY })),
  404: (place) => refused(404, () => ask({ ...place, model: NOBODY })),
  429: (place) => refused(429, () => ask(place.full), 2),
  cancelled: async (place) => {
    const stream = await ask(place, { stream: true, max_tokens: LONG });
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta.content) break;
    }
    stream.controller.abort();
  },
});
