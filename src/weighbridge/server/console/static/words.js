// What each figure means, once: for labels, for titles, and for the list under the page.
export const WORDS = {
  waiting: ["Waiting", "Requests that nobody works on yet. Tokens: the work that is still to be done for them, prompt and expected answer."],
  running: ["Running", "Requests that are being computed. Tokens: the work that is left for them."],
  speed: ["Output", "Tokens of answers made in a second, mean of the last ten seconds; of answers that do not stream, when they are done."],
  ttft: ["TTFT", "Time to first token: from arrival to the first token of the answer. Median of requests that ended in the last ten seconds, p95 below; buckets are an eighth wide. A gateway sees it of answers that stream."],
  itl: ["ITL", "Inter-token latency: mean gap between the tokens of a request, median and p95 as for TTFT. Answers that come in one piece have none."],
  hits: ["Hit rate", "Share of prompt tokens that were in a cache already and need not be computed, of requests that ended in the last minute."],
  good: ["Goodput", "Requests in a second that ended well, with the first token within 2 s and gaps of at most 100 ms, mean of the last minute; the share is of all that ended or were refused."],
  refused: ["Refused", "Requests answered with 402, 429, 503 or 504 in the last ten minutes: no room, no money, no time. Failed: other answers from 500 on."],
  spent: ["Spent", "US dollars for requests that ended in the last ten minutes, by the prices in the configuration."],
  kv: ["KV cache", "Memory of keys and values. In use: held by requests. Cached: kept for prompts that begin alike, given away when somebody needs it."],
  iterations: ["Iterations", "Each step of the engine: how long it took, how many sequences got their next token (decodes) and how many tokens of prompts it computed."],
};
export const label = (key) => WORDS[key][0];
export const meaning = (key) => WORDS[key][1];

export const STANDING = {
  up: ["good", "up"], starting: ["info", "starting"], draining: ["warn", "draining"], held: ["warn", "held"],
  faulty: ["bad", "faulty"], breaker_open: ["bad", "breaker open"], down: ["bad", "down"],
};
export const OUTCOME = {
  stop: ["good", "done"], length: ["good", "done, at its limit"], tool_calls: ["good", "calls a tool"], abort: ["warn", "client left"],
  refused: ["warn", "refused"], deadline: ["warn", "deadline"], error: ["bad", "failed"],
};
