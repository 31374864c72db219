// Elements from names, properties and children. Whatever a child is, it becomes text unless it is an element.
const SVG = "http://www.w3.org/2000/svg";

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "selected") node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(2).filter((one) => one !== null && one !== undefined && one !== false)
    .map((one) => (one instanceof Node ? one : document.createTextNode(String(one)))));
  return node;
}
export const h = (name, properties, ...children) => filled(document.createElement(name), properties, children);
export const s = (name, properties, ...children) => filled(document.createElementNS(SVG, name), properties, children);

export const byId = (id) => document.getElementById(id);

/** A meter: parts of a whole, each with a share between 0 and 1 and a colour's number. */
export function meter(parts, words) {
  const node = h("div", { class: "meter", role: "img", "aria-label": words, title: words });
  for (const [share, colour] of parts) {
    const part = h("i", { class: `b${colour}` });
    part.style.width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`;
    node.append(part);
  }
  return node;
}

/** A table. Columns: {title, n: numbers to the right, hint}. Rows are lists of cells, or of elements `td`. */
export function table(caption, columns, rows) {
  const cell = (value, column) => (value instanceof HTMLTableCellElement ? value : h("td", { class: column.n ? "n" : null }, value));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", null, h("caption", { class: "hide" }, caption),
      h("thead", null, h("tr", null, columns.map((one) => h("th", { scope: "col", class: one.n ? "n" : null, title: one.hint }, one.title)))),
      h("tbody", null, rows.map((row) => (row instanceof HTMLTableRowElement ? row : h("tr", null, row.map((value, at) => cell(value, columns[at]))))))));
}

/** Something to be filled in, with its label. */
export function field(label, input, hint) {
  const id = input.id || (input.id = `f${Math.random().toString(36).slice(2)}`);
  return h("div", { class: "field" }, h("label", { for: id }, label), input, hint ? h("span", { class: "hint" }, hint) : null);
}

/** Ask with a form in front of the page; `made(close)` returns what is in it. The dialog is gone once it is closed. */
export function dialog(title, made) {
  const box = h("dialog", { "aria-label": title });
  const close = () => box.close();
  box.append(made(close));
  box.addEventListener("close", () => box.remove());
  byId("dialogs").append(box);
  box.showModal();
  return box;
}

/** Words that a person can take along. */
export async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed here";
  }
  setTimeout(() => { button.textContent = before; }, 1500);
}
