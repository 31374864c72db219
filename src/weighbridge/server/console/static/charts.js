// Lines and areas over the last ten minutes, drawn as SVG: axis with units, legend with the latest values, a hand to point with.
import { h, s } from "./dom.js";
import * as format from "./format.js";

const LEFT = 50, RIGHT = 4, ABOVE = 6, BELOW = 20;

/** A round number that is not below `value`. */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= value * 0.9999);
}

/** `lines`: {name, colour, values, area}. `ends`: the second at the right, `span` so many before it. */
export class TimeChart {
  constructor(title, meaning, unit, shown, { height = 150, least = 1 } = {}) {
    Object.assign(this, { title, unit, shown, span: 600, height, least });
    this.legend = h("span", { class: "legend" });
    this.svg = s("svg", { role: "img", height });
    this.node = h("figure", { class: "chart card" },
      h("figcaption", null, h("h2", { title: meaning }, title), h("span", { class: "soft small" }, unit), this.legend), this.svg);
    this.svg.addEventListener("pointermove", (event) => { this.pointed = event.offsetX; this.draw(); });
    this.svg.addEventListener("pointerleave", () => { this.pointed = null; this.draw(); });
  }

  update(seconds, lines, ends) {
    const told = seconds.length ? ends - seconds[0] : 0;
    Object.assign(this, { seconds, lines, ends, span: [60, 120, 300].find((one) => told <= one) ?? 600 });
    this.draw();
  }

  draw() {
    const { seconds, lines, ends, span, height } = this, width = this.svg.clientWidth || 480;
    if (!lines) return;
    const first = seconds.findIndex((one) => one > ends - span - 1), from = first < 0 ? seconds.length : first;
    let most = this.least;
    for (const line of lines) for (let at = from; at < seconds.length; at++) if (line.values[at] > most) most = line.values[at];
    const top = roundUp(most), bottom = height - BELOW;
    const x = (second) => LEFT + (width - LEFT - RIGHT) * (1 - (ends - second) / span);
    const y = (value) => bottom - (bottom - ABOVE) * Math.min(value / top, 1);
    const parts = [];
    for (const value of [0, top / 2, top]) {
      parts.push(s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: Math.round(y(value)), y2: Math.round(y(value)) }));
      parts.push(s("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, this.shown(value)));
    }
    for (const ago of [span, span / 2, 0]) {
      const anchor = ago === span ? "start" : ago ? "middle" : "end";
      parts.push(s("text", { x: x(ends - ago), y: height - 4, "text-anchor": anchor }, ago ? `${ago >= 60 ? `${ago / 60} min` : `${ago} s`} ago` : "now"));
    }
    for (const line of lines) this.drawLine(parts, line, from, x, y, bottom);
    const at = this.under(from, x);
    if (at !== null) parts.push(s("line", { class: "cross", x1: Math.round(x(seconds[at])), x2: Math.round(x(seconds[at])), y1: ABOVE, y2: bottom }));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(...parts);
    this.tell(at);
  }

  drawLine(parts, line, from, x, y, bottom) {
    const { seconds } = this;
    let path = "", area = "", begun = null, before = null;
    const close = () => { if (begun !== null) area += `L${x(before).toFixed(1)} ${bottom}L${x(begun).toFixed(1)} ${bottom}Z`; begun = null; };
    for (let at = from; at < seconds.length; at++) {
      const value = line.values[at];
      if (value === null || value === undefined) { close(); continue; }
      const joined = begun !== null && seconds[at] - before <= 5;
      if (!joined) { close(); begun = seconds[at]; }
      const point = `${joined ? "L" : "M"}${x(seconds[at]).toFixed(1)} ${y(value).toFixed(1)}`;
      path += point;
      area += point;
      before = seconds[at];
    }
    close();
    if (line.area) parts.push(s("path", { class: `area f${line.colour}`, d: area }));
    parts.push(s("path", { class: `line k${line.colour}`, d: path }));
  }

  /** The place in the lists that somebody points at. */
  under(from, x) {
    if (this.pointed === null || this.pointed === undefined || from >= this.seconds.length) return null;
    let best = from;
    for (let at = from; at < this.seconds.length; at++) if (Math.abs(x(this.seconds[at]) - this.pointed) < Math.abs(x(this.seconds[best]) - this.pointed)) best = at;
    return best;
  }

  tell(at) {
    const place = at ?? this.seconds.length - 1;
    const said = this.lines.map((line) => [line, line.values[place]]);
    this.legend.replaceChildren(...said.map(([line, value]) => h("span", null, h("i", { class: `b${line.colour}` }), line.name, " ", h("b", null, this.shown(value)))),
      at === null ? "" : h("span", null, format.time(this.seconds[at])));
    this.svg.setAttribute("aria-label", `${this.title}, ${this.unit}. Now: ${said.map(([line, value]) => `${line.name} ${this.shown(value)}`).join(", ")}.`);
  }
}

/** Iterations of the last seconds: bars as wide as they took, as high as they had tokens: decodes below, prompts above. */
export class IterationChart {
  constructor(title, meaning, span = 30, height = 170) {
    Object.assign(this, { title, span, height });
    this.legend = h("span", { class: "legend" });
    this.svg = s("svg", { role: "img", height });
    this.node = h("figure", { class: "chart card" },
      h("figcaption", null, h("h2", { title: meaning }, title), h("span", { class: "soft small" }, "tokens of each step, root scale"), this.legend), this.svg);
  }

  update(rows, ends) {
    const { span, height } = this, width = this.svg.clientWidth || 480, bottom = height - BELOW;
    const shown = rows.filter((row) => row[1] > ends - span);
    const top = roundUp(shown.reduce((most, row) => Math.max(most, row[3] + row[5]), 4));
    const x = (second) => LEFT + (width - LEFT - RIGHT) * Math.max(0, Math.min(1, 1 - (ends - second) / span));
    const y = (value) => bottom - (bottom - ABOVE) * Math.sqrt(Math.min(value / top, 1)); // few decodes beside long prompts stay visible
    let decodes = "", prompts = "";
    for (const [, at, took, decoding, , computed] of shown) {
      const from = x(at - took / 1000), wide = Math.max(x(at) - from, 0.75).toFixed(2), left = from.toFixed(2);
      const split = y(decoding).toFixed(1), high = y(decoding + computed).toFixed(1);
      if (decoding) decodes += `M${left} ${bottom}V${split}h${wide}V${bottom}Z`;
      if (computed) prompts += `M${left} ${split}V${high}h${wide}V${split}Z`;
    }
    const parts = [0, top / 4, top].flatMap((value) => [
      s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: Math.round(y(value)), y2: Math.round(y(value)) }),
      s("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, format.count(value))]);
    for (const [ago, anchor] of [[span, "start"], [span / 2, "middle"], [0, "end"]])
      parts.push(s("text", { x: x(ends - ago), y: height - 4, "text-anchor": anchor }, ago ? `${ago} s ago` : "now"));
    parts.push(s("path", { class: "f1", d: decodes }), s("path", { class: "f3", d: prompts }));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(...parts);
    const last = shown.at(-1), steps = shown.filter((row) => row[1] > ends - 10);
    const took = steps.map((row) => row[2]).sort((a, b) => a - b)[Math.floor(steps.length / 2)];
    const told = [["decodes", 1, last?.[3] ?? 0], ["prompt tokens", 3, last?.[5] ?? 0]];
    this.legend.replaceChildren(...told.map(([name, colour, value]) => h("span", null, h("i", { class: `b${colour}` }), name, " ", h("b", null, format.count(value)))),
      h("span", null, "step ", h("b", null, format.ms(took)), " median"));
    this.svg.setAttribute("aria-label", `${this.title}: ${steps.length} steps in the last ten seconds, median ${format.ms(took)}.`);
  }
}

/** A card with lines through points, each [x, y]: {name, colour, points}. `across` writes what is on the x axis. */
export function curve(title, unit, shown, lines, across = (value) => `${format.count(value)} s`, height = 190) {
  const svg = s("svg", { role: "img", height }), bottom = height - BELOW, all = lines.flatMap((line) => line.points);
  const right = Math.max(...all.map(([x]) => x), 1e-9), top = roundUp(Math.max(...all.map(([, y]) => y), 1e-9));
  const draw = () => {
    const width = svg.clientWidth || 480, x = (value) => LEFT + (width - LEFT - 12) * value / right, y = (value) => bottom - (bottom - ABOVE) * Math.min(value / top, 1);
    const parts = [0, top / 2, top].flatMap((value) => [s("line", { class: "grid", x1: LEFT, x2: width - 12, y1: Math.round(y(value)), y2: Math.round(y(value)) }), s("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, shown(value))]);
    [0, right / 2, right].forEach((value, at) => parts.push(s("text", { x: x(value), y: height - 4, "text-anchor": ["start", "middle", "end"][at] }, across(value))));
    for (const line of lines) {
      parts.push(s("path", { class: `line k${line.colour}`, d: line.points.map(([at, value], place) => `${place ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("") }));
      if (line.points.length <= 12) for (const [at, value] of line.points) parts.push(s("circle", { class: `f${line.colour}`, cx: x(at), cy: y(value), r: 3 }));
    }
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(...parts);
  };
  svg.setAttribute("aria-label", `${title}, ${unit}: ${lines.map((line) => `${line.name} up to ${shown(Math.max(...line.points.map(([, value]) => value)))}`).join(", ")}.`);
  new ResizeObserver(draw).observe(svg); // goes with the page that it is on
  return h("figure", { class: "chart card" }, h("figcaption", null, h("h2", null, title), h("span", { class: "soft small" }, unit),
    h("span", { class: "legend" }, lines.map((line) => h("span", null, h("i", { class: `b${line.colour}` }), line.name)))), svg);
}
