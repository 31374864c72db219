// Numbers as people read them, each with its unit. What is not known is a dash.
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const few = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 3 });
const tenths = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });
const known = (value) => value !== null && value !== undefined && Number.isFinite(Number(value));

export function count(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return `${few.format(value / 1e9)}G`;
  if (size >= 1e6) return `${few.format(value / 1e6)}M`;
  if (size >= 1e5) return `${few.format(value / 1e3)}k`;
  return size >= 100 || Number.isInteger(value) ? whole.format(value) : few.format(value);
}
export const exact = (value) => (known(value) ? whole.format(value) : "–");
export function ms(value) {
  if (!known(value)) return "–";
  if (value < 1) return `${few.format(value)} ms`;
  if (value < 10000) return value < 1000 ? `${few.format(value)} ms` : `${few.format(value / 1000)} s`;
  return value < 120000 ? `${few.format(value / 1000)} s` : `${whole.format(value / 60000)} min`;
}
export const share = (part, all) => (known(part) && all > 0 ? percent(part / all) : "–");
export function percent(value) {
  if (!known(value)) return "–";
  return value > 0 && value < 0.0005 ? "<0.1 %" : `${tenths.format(value * 100)} %`;
}
export function usd(value) {
  if (!known(value)) return "–";
  const sum = Math.abs(value), sign = value < 0 ? "−" : "";
  if (sum === 0) return "$0";
  return `${sign}$${sum >= 0.1 ? sum.toFixed(2) : sum.toPrecision(2)}`;
}
export const time = (seconds) => (known(seconds) ? new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" }) : "–");
export const day = (seconds) => (known(seconds) ? new Date(seconds * 1000).toLocaleString() : "–");
export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;
/** The two parts of a figure: number and unit. */
export function split(text) {
  const at = text.indexOf(" ");
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}
