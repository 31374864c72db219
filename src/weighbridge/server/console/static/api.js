// All that is asked of the server. The key lives in this tab's session storage and goes along as a header, nowhere else.
const PLACE = "weighbridge.key";

export function key() {
  try { return sessionStorage.getItem(PLACE) ?? ""; } catch { return held; }
}
let held = "";
export function setKey(value) {
  held = value;
  try {
    if (value) sessionStorage.setItem(PLACE, value); else sessionStorage.removeItem(PLACE);
  } catch { /* a tab without storage keeps it in memory */ }
}

/** An answer that is an error: its status, what it says, and the code for programs. */
export class Failure extends Error {
  constructor(status, said) {
    super(said?.message || `the server answered ${status}`);
    this.status = status;
    this.code = said?.code;
  }
}
/** No answer at all. */
export class Lost extends Error {}

export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key()) headers.authorization = `Bearer ${key()}`;
  if (options.json !== undefined) headers["content-type"] = "application/json";
  const { json, ...rest } = options;
  const signal = options.signal ?? AbortSignal.timeout(30000);
  let answer;
  try {
    answer = await fetch(path, { ...rest, headers, signal, credentials: "omit", redirect: "error",
      ...(json === undefined ? {} : { method: options.method ?? "POST", body: JSON.stringify(json) }) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Lost("no answer from the server");
  }
  if (!answer.ok) throw new Failure(answer.status, (await answer.json().catch(() => null))?.error);
  return answer;
}
/** For what a process of the server's own works out: on a busy machine that takes its time, and the server bounds it. */
export const patient = () => AbortSignal.timeout(320000);
export const get = async (path, options) => (await ask(path, options)).json();
export const post = async (path, json, options) => (await ask(path, { ...options, json })).json();
