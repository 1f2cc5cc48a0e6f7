// U-turns: an image up to the cursor's t, and back several times.
import { brief, classText, element, short } from "elements";
import { fateText } from "fates";
import { figure, picture } from "pictures";

// A file's image as a PNG of the model's size, cut to its proportions, in base64.
export async function toPng(file, [height, width]) {
  const image = await createImageBitmap(file);
  const scale = Math.max(width / image.width, height / image.height);
  const canvas = element("canvas", { width, height });
  const [w, h] = [image.width * scale, image.height * scale];
  canvas.getContext("2d").drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
  return canvas.toDataURL("image/png").split(",")[1];
}

export function drawTurn(place, turn, model) {
  const size = model.shape.reduce((a, b) => a * b);
  const part = (x, i) => x.subarray(i * size, (i + 1) * size);
  const zeros = [0, 0, 0];
  const shown = [figure(picture(turn.start, model.shape, zeros, "where the U-turn starts"), "start")];
  turn.fates.forEach((fate, i) => {
    const up = picture(part(turn.turning, i), model.shape, model.mean, `turning point ${i + 1}`);
    const end = picture(part(turn.ends, i), model.shape, model.mean, `end ${i + 1}: ${fateText(fate, model)}`);
    const name = fate.class === null ? "" : brief(model.classes)[fate.class];
    shown.push(figure(up, end, name, fate.memorised ? `=#${fate.nearest}` : ""));
  });
  const same = turn.fates.filter((fate) => fate.class === turn.start_fate?.class).length;
  const kept = turn.start_fate && turn.start_fate.class !== null ? ` ${same} of ${turn.fates.length} stay in ${classText(model.classes[turn.start_fate.class])}.` : "";
  place.replaceChildren(
    element("p", {}, `Up to t = ${short(turn.time)} and back.${kept}`),
    element("div", { class: "pictures small" }, ...shown),
  );
}
