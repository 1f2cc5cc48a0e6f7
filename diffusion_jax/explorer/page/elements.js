// Elements and text; what comes from data becomes text nodes alone.
export const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

export const element = (name, attributes = {}, ...children) =>
  fill(document.createElement(name), attributes, children);

export const shape = (name, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

// Puts children into a place anew; a button that had the focus keeps it, or the time axis takes it.
export function refill(place, ...children) {
  const at = [...place.querySelectorAll("button")].indexOf(document.activeElement);
  place.replaceChildren(...children);
  if (at >= 0) (place.querySelectorAll("button")[at] ?? byId("axis")).focus({ preventScroll: true });
}

// A class by its name, which may begin with the word itself.
export const classText = (name) => (/^class\b/i.test(name) ? name : `class ${name}`);

// Names less the words that all of them begin with, for where there is little room.
export function brief(names) {
  const words = names.map((name) => name.split(" "));
  let same = 0;
  while (words.length && words.every((each) => each.length > same + 1 && each[same] === words[0][same])) same++;
  return words.map((each) => each.slice(same).join(" "));
}

// Three significant digits, without an exponent where it can be helped.
export function short(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  if (Math.abs(value) < 1e-4 && value !== 0) return value.toExponential(1);
  const text = value.toPrecision(3);
  return Number.isInteger(value) || text.includes("e") ? String(Number(text)) : text;
}

// A fraction with its interval.
export const interval = ({ value, low, high }) => `${value.toFixed(2)} [${low.toFixed(2)}, ${high.toFixed(2)}]`;

// Wilson's 95 % interval of a fraction.
export function wilson(count, of) {
  const z2 = 1.959963984540054 ** 2;
  const p = count / of;
  const middle = (p + z2 / (2 * of)) / (1 + z2 / of);
  const half = (Math.sqrt(z2) / (1 + z2 / of)) * Math.sqrt((p * (1 - p)) / of + z2 / (4 * of * of));
  return { value: p, low: Math.max(0, middle - half), high: Math.min(1, middle + half) };
}

// Sets an SVG's coordinates to its width in pixels, empties it, and returns the width.
export function resized(svg, height) {
  const width = Math.max(240, Math.round(svg.clientWidth));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  svg.replaceChildren();
  return width;
}

export const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
