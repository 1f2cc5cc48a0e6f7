// Where the clones of a fork end: a grid of buttons, and the classes' fractions.
import { element, interval, short } from "elements";
import { picture } from "pictures";
import { bar } from "posterior";

export function fateText(fate, model) {
  const name = fate.class === null ? "" : `class ${model.classes[fate.class]} with ${fate.probability.toFixed(2)}, `;
  const copy = fate.memorised ? `copies training image ${fate.nearest}` : `nearest to training image ${fate.nearest}`;
  return `${name}${copy} (distance ratio ${short(fate.ratio)})`;
}

function clone(fork, i, model, ends, take) {
  const fate = fork.fates[i];
  if (!fate) return element("span", { class: "clone waiting", "aria-hidden": "true" });
  const size = model.shape.reduce((a, b) => a * b);
  const said = `Clone ${fork.first + i}: ${fateText(fate, model)}`;
  const label = [fate.class === null ? "" : model.classes[fate.class], fate.memorised ? ` = #${fate.nearest}` : ""].join("");
  const seen = ends ? picture(ends.subarray(i * size, (i + 1) * size), model.shape, model.mean, "") : "";
  if (seen) seen.setAttribute("aria-hidden", "true");
  const attributes = {
    type: "button",
    class: `clone c${(fate.class ?? 0) % 10}${fate.memorised ? " memorised" : ""}`,
    "aria-label": `${said}. Make it the trunk.`,
    title: said,
    click: () => take(fork.first + i),
  };
  return element("button", attributes, seen, element("span", {}, label));
}

// Args: fork (its body so far), ends or null, take(clone): makes it the trunk.
export function drawFates(place, fork, model, ends, take) {
  if (!fork) return place.replaceChildren(element("p", { class: "note" }, "Clones share the trunk up to the cursor and go on with noise of their own."));
  const clones = Array.from({ length: fork.clones }, (_, i) => clone(fork, i, model, ends, take));
  const copies = fork.fates.filter((fate) => fate?.memorised).length;
  const fractions = (fork.classes ?? []).map((each) => ({ value: each.fraction, ...each })).map((each) => bar(model.classes[each.class], each.value, each.class, `${each.count} · ${interval(each)}`));
  const pairs = ["phi", "phi_C"].filter((name) => fork[name]).map((name) => `${name} = ${interval(fork[name])} from ${fork[name].pairs} pairs`);
  place.replaceChildren(
    element("p", {}, `${fork.done} of ${fork.clones} clones ended, ${copies} of them as copies of a training image. ${pairs.join("; ")}`),
    element("ul", { class: "bars long", "aria-label": "Fractions of the classes, with 95 % intervals" }, ...fractions),
    element("div", { class: "clones", role: "group", "aria-label": "Ends of the clones; one chosen becomes the trunk" }, ...clones),
    element("p", { class: "note" }, "A colour and a name for each class; a double frame and the number of the image for a copy. Choose a clone to make it the trunk."),
  );
}
