// Vercel's AI SDK, with the provider that AI_SDK_PROVIDER names: compatible, openai (Responses) or anthropic.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { LONG, NOBODY, PARAMETERS, QUESTION, SYSTEM, WRONG_KEY, check, drive, refused } from "./contract.mjs";

const LEAST = 16;
const PROVIDERS = {
  compatible: (place) =>
    createOpenAICompatible({
      name: "here", baseURL: place.v1, apiKey: place.key, includeUsage: true, supportsStructuredOutputs: true,
    })(place.model),
  openai: (place) => createOpenAI({ baseURL: place.v1, apiKey: place.key })(place.model),
  anthropic: (place) => createAnthropic({ baseURL: place.v1, apiKey: place.key })(place.model),
};
const which = process.argv[2];
const modelOf = PROVIDERS[which];
const base = (place, more = {}) => ({
  model: modelOf(place), system: SYSTEM, prompt: QUESTION, maxOutputTokens: LEAST, maxRetries: 0, ...more,
});
const weigh = tool({
  description: "Weigh a parcel.",
  inputSchema: jsonSchema(PARAMETERS),
  execute: async ({ size }) => `${size}: 9 kg`,
});

await drive(["ai", `@ai-sdk/${which === "compatible" ? "openai-compatible" : which}`], {
  chat: async (place) => {
    const answer = await generateText(base(place));
    check(answer.text && answer.usage.outputTokens === LEAST, answer.usage);
  },
  stream: async (place) => {
    const result = streamText(base(place));
    let text = "";
    for await (const piece of result.textStream) text += piece;
    check(text && (await result.usage).outputTokens === LEAST, await result.usage);
  },
  tools: async (place) => {
    // The first step must call; the second is told the result and may say what it likes.
    const answer = await generateText(
      base(place, {
        tools: { weigh }, maxOutputTokens: 200, stopWhen: stepCountIs(2),
        prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "auto" }),
      }),
    );
    check(answer.steps.length === 2 && answer.steps[0].toolResults[0].output.endsWith("9 kg"), answer.steps);
  },
  structured: async (place) => {
    const output = Output.object({ schema: jsonSchema(PARAMETERS) });
    const answer = await generateText(base(place, { output, maxOutputTokens: 200 }));
    check(["small", "large"].includes(answer.output.size), answer);
  },
  // The SDK moves what is out of bounds to the bound, for some providers: a header is left as it is.
  400: (place) => refused(400, () => generateText(base(place, { headers: { "x-weighbridge-priority": "soon" } }))),
  401: (place) => refused(401, () => generateText(base({ ...place, key: WRONG_KEY, v1: place.v1 }))),
  404: (place) => refused(404, () => generateText(base({ ...place, model: NOBODY }))),
  429: (place) => refused(429, () => generateText(base(place.full)), 2),
  cancelled: async (place) => {
    const leaving = new AbortController();
    const result = streamText(base(place, { maxOutputTokens: LONG, abortSignal: leaving.signal, onError: () => {} }));
    for await (const piece of result.textStream) {
      if (piece) break;
    }
    leaving.abort();
    await new Promise((done) => setTimeout(done, 200));
  },
}, { list: "it does not ask what there is" });
