// Where the clones of a fork end: a grid of buttons, and the classes' fractions.
import { brief, classText, element, interval, refill, short } from "elements";
import { picture } from "pictures";
import { bar } from "posterior";

export function fateText(fate, model) {
  const sure = fate.probability === null ? "" : ` with ${fate.probability.toFixed(2)}`;
  const name = fate.class === null ? "" : `${classText(model.classes[fate.class])}${sure}, `;
  const copy = fate.memorised ? `copies training image ${fate.nearest}` : `nearest to training image ${fate.nearest}`;
  return `${name}${copy} (distance ratio ${short(fate.ratio)})`;
}

function clone(fork, i, model, take) {
  const fate = fork.fates[i];
  if (!fate) return element("span", { class: "clone waiting", "aria-hidden": "true" });
  const size = model.shape.reduce((a, b) => a * b);
  const said = `Clone ${fork.first + i}: ${fateText(fate, model)}`;
  const name = fate.class === null ? "" : brief(model.classes)[fate.class];
  const seen = fork.ends ? picture(fork.ends.subarray(i * size, (i + 1) * size), model.shape, model.mean) : "";
  const attributes = {
    type: "button",
    class: `clone c${(fate.class ?? 0) % 10}${fate.memorised ? " memorised" : ""}`,
    "aria-label": `${said}. Make it the trunk.`,
    title: said,
    click: () => take(fork.first + i),
  };
  return element("button", attributes, seen, element("span", {}, name), element("span", {}, fate.memorised ? `=#${fate.nearest}` : ""));
}

// Args: fork: its body so far, with ends when they are there; take(clone): makes it the trunk.
export function drawFates(place, fork, model, take) {
  if (!fork) return refill(place, element("p", { class: "note" }, "Clones share the trunk up to the cursor and go on with noise of their own."));
  const clones = Array.from({ length: Math.min(fork.clones, 128) }, (_, i) => clone(fork, i, model, take));
  const copies = fork.fates.filter((fate) => fate?.memorised).length;
  const fractions = (fork.classes ?? []).map((each) => bar(model.classes[each.class], each.value, each.class, `${each.count} of ${fork.clones}: ${interval(each)}`));
  const pairs = [["φ", fork.phi], ["φ_C", fork.phi_C]].filter(([, found]) => found?.pairs).map(([name, found]) => `${name} = ${interval(found)}`);
  refill(
    place,
    element("p", {}, `${fork.done} of ${fork.clones} clones ended, ${copies} as copies of a training image. ${pairs.join(", ")}${pairs.length ? ` from ${fork.phi_C.pairs} pairs.` : ""}`),
    element("ul", { class: "bars long", "aria-label": "Fractions of the classes, with 95 % intervals" }, ...fractions),
    element("div", { class: "clones", role: "group", "aria-label": "Ends of the clones" }, ...clones),
    element("p", { class: "note" }, "Coloured by class; a second frame and =#number mark a copy of that training image. Choose a clone to make it the trunk."),
  );
}
