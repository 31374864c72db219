// The one place where text becomes elements: Markdown that the server has rendered. What is not in these lists is dropped.
const TAGS = new Set("a blockquote br code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th thead tr ul".split(" "));
const CLASSES = /^(code|language|plain|left|right|centre|c-[a-z0-9]{1,4})( c-[a-z0-9]{1,4})*$/;
const policy = window.trustedTypes?.createPolicy("weighbridge-markdown", { createHTML: (html) => html });

export function fill(node, html) {
  const inert = document.createElement("template"); // nothing in it loads or runs
  inert.innerHTML = policy ? policy.createHTML(html) : html;
  for (const one of [...inert.content.querySelectorAll("*")]) {
    if (!TAGS.has(one.localName)) { one.replaceWith(document.createTextNode(one.textContent)); continue; }
    for (const { name, value } of [...one.attributes]) if (!allowed(one.localName, name, value)) one.removeAttribute(name);
  }
  node.replaceChildren(inert.content);
}
function allowed(tag, name, value) {
  if (name === "class") return CLASSES.test(value);
  if (tag === "a") return name === "href" ? /^(https?:\/\/|mailto:)/i.test(value) : name === "rel" || name === "target";
  return tag === "ol" && name === "start" && /^\d{1,9}$/.test(value);
}
