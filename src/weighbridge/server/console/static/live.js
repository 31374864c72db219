// What is going on, kept up to date: one question a second while somebody looks, seldom otherwise.
import { Failure, get } from "./api.js";

const KEPT = 600, ITERATIONS = 1200;
export const live = { told: null, history: null, iterations: [], heard: 0, problem: null };
const listeners = new Set();
let timer = 0, every = 1000, asking = false;

export function listen(heard) {
  listeners.add(heard);
  return () => listeners.delete(heard);
}
export function pace(milliseconds) {
  every = milliseconds;
  again(0);
}
export function forget() {
  Object.assign(live, { told: null, history: null, iterations: [], problem: null });
}
function again(wait) {
  clearTimeout(timer);
  timer = setTimeout(look, wait);
}
async function look() {
  if (asking) return;
  asking = true;
  try {
    if (document.hidden) return;
    const last = live.history?.seconds.at(-1) ?? 0;
    take(await get(`console/api/now?since=${last}&iteration=${live.iterations.at(-1)?.[0] ?? 0}`, { signal: AbortSignal.timeout(8000) }));
    live.problem = null;
  } catch (error) {
    live.problem = error;
  } finally {
    asking = false;
    again(live.problem instanceof Failure ? Math.max(every, 4000) : every);
    for (const heard of listeners) heard(live);
  }
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) again(0); });

function take(told) {
  if (live.told && live.told.began !== told.began) forget(); // another process: what was is not its own
  live.told = told;
  live.heard = Date.now() / 1000;
  const old = live.history;
  if (!old) live.history = told.history;
  else if (told.history.seconds.length) {
    for (const name of Object.keys(told.history)) old[name] = (old[name] ?? []).concat(told.history[name]).slice(-KEPT);
  }
  if (told.iterations) live.iterations = live.iterations.concat(told.iterations.rows).slice(-ITERATIONS);
}

/** The sum of a figure over the last so many seconds of the server's clock; null where it is not told. */
export function sum(name, seconds) {
  const { history, told } = live, values = history?.[name];
  if (!values) return null;
  let total = 0;
  for (let at = values.length - 1; at >= 0 && history.seconds[at] > told.at - seconds - 1; at--) total += values[at] ?? 0;
  return total;
}
export const latest = (name) => live.history?.[name]?.at(-1) ?? null;
/** The last value that is known, within so many seconds. */
export function recent(name, seconds = 60) {
  const { history, told } = live, values = history?.[name] ?? [];
  for (let at = values.length - 1; at >= 0 && history.seconds[at] > told.at - seconds; at--) if (values[at] !== null) return values[at];
  return null;
}
