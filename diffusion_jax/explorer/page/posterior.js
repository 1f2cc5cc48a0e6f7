// The exact posterior over training images at the cursor: classes, entropy, nearest images.
import { brief, classText, element, short } from "elements";
import { figure, picture } from "pictures";

// A named bar of a share in [0, 1].
export function bar(name, share, c, said = share.toFixed(2)) {
  const filled = element("span", { class: `c${c % 10}` });
  filled.style.width = `${100 * share}%`;
  return element("li", {}, element("span", { class: "what", title: name }, name), element("span", { class: "bar" }, filled), element("span", { class: "number" }, said));
}

const measure = (name, value) => [element("dt", {}, name), element("dd", {}, value)];

// Args: posterior (null at the data's end), model, images: their promise by index.
export async function drawPosterior(place, posterior, model, images) {
  if (!posterior) return place.replaceChildren(element("p", { class: "note" }, "At t = 0 the image itself is all there is to know."));
  const nearest = await Promise.all(posterior.nearest.map(({ index }) => images(index)));
  const bars = (posterior.classes ?? []).map((p, c) => bar(model.classes[c], p, c));
  const pictures = nearest.map(({ image }, i) => {
    const { index, weight, class: c } = posterior.nearest[i];
    const name = model.classes[c] ?? "";
    const said = `training image ${index}${name && `, ${classText(name)}`}`;
    return figure(picture(image, model.shape, [0, 0, 0], said), short(weight), brief(model.classes)[c] ?? "", `#${index}`);
  });
  place.replaceChildren(
    element("ul", { class: "bars", "aria-label": "Probability of each class" }, ...bars),
    element("dl", {}, ...(posterior.entropy === null ? [] : measure("H(c | xₜ)", `${short(posterior.entropy)} nats`)), ...measure("Effective training points", `${short(posterior.effective)} of ${model.num_images}`)),
    element("h3", {}, "Nearest training images and their weights"),
    element("div", { class: "pictures small eight" }, ...pictures),
  );
}
