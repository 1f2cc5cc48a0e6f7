// What can be taken away: .npy, PNG and SVG files, made here.
import { byId, element } from "elements";
import { sheet } from "pictures";

// NumPy's format, version 1.0: float32, little-endian, C order.
export function npy(x, shape) {
  const described = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")}${shape.length === 1 ? "," : ""}), }`;
  const padded = `${described.padEnd(Math.ceil((described.length + 11) / 64) * 64 - 11)}\n`;
  const header = Uint8Array.from([0x93, ...[..."NUMPY"].map((c) => c.charCodeAt(0)), 1, 0, padded.length & 255, padded.length >> 8]);
  return new Blob([header, padded, x], { type: "application/octet-stream" });
}

// The drawing with the colours and strokes that the page's style gives it.
export function svgFile(svg) {
  const copy = svg.cloneNode(true);
  const originals = [svg, ...svg.querySelectorAll("*")];
  const kept = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-family", "font-size", "text-anchor"];
  [copy, ...copy.querySelectorAll("*")].forEach((node, i) => {
    const style = getComputedStyle(originals[i]);
    for (const name of kept) node.setAttribute(name, style.getPropertyValue(name));
  });
  const [, , width, height] = svg.getAttribute("viewBox").split(" ");
  for (const [name, value] of Object.entries({ xmlns: "http://www.w3.org/2000/svg", width, height })) copy.setAttribute(name, value);
  return new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" });
}

function download(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function pngFile(places, columns) {
  const found = places.flatMap((place) => [...byId(place).querySelectorAll("canvas")]);
  return found.length ? new Promise((done) => sheet(found, columns).toBlob(done, "image/png")) : null;
}

// Buttons of [text, file's name, what makes its blob, or null where there is nothing yet].
export function exportButtons(session, cursor, fail) {
  const made = [
    ["Pictures at the cursor, PNG", "cursor.png", () => pngFile(["states"], 16)],
    ["Ends, PNG", "ends.png", () => pngFile(["fates"], 16)],
    ["Curves, SVG", "phi.svg", () => svgFile(byId("curves"))],
    ["Tree, SVG", "tree.svg", () => svgFile(byId("tree"))],
    ["xₜ, .npy", "x_t.npy", () => cursor.at() && npy(cursor.at().x, session.model.shape)],
    ["Ends, .npy", "ends.npy", () => session.shownFork()?.ends && npy(session.shownFork().ends, [session.shownFork().clones, ...session.model.shape])],
  ];
  const buttons = made.map(([text, name, make]) => element("button", { type: "button", click: async () => {
    const blob = await make();
    if (blob) download(`${session.state.model}-${name}`, blob);
    else fail(Object.assign(new Error("There is nothing of this kind yet: run a trunk, or fork it."), { status: 404 }));
  } }, text));
  const copy = element("button", { type: "button", click: () => {
    byId("python").select();
    navigator.clipboard?.writeText(byId("python").value);
  } }, "Copy the Python lines");
  return [...buttons, copy];
}
