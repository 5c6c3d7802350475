// Builds DOM elements with function calls. Strings become text nodes; nothing on this page parses a string as markup.

/** The page's element with this id. */
export const byId = (id) => document.getElementById(id);

/** `el("p", {class: "hint", onclick, vars: {"--w": "10%"}}, "text", node)`. */
export function el(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

const SVG = "http://www.w3.org/2000/svg";

/** The same for SVG elements. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "vars") Object.entries(value).forEach(([key, part]) => element.style.setProperty(key, part));
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

/** Replaces the children of `host`. */
export function show(host, ...children) {
  host.replaceChildren(...children.flat().filter(Boolean));
}

/** A definition list from pairs; pairs without a value are left out. */
export function facts(pairs, properties = { class: "facts" }) {
  const known = pairs.filter(([, value]) => value !== undefined && value !== null);
  return el("dl", properties, known.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}
