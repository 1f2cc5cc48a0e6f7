// Images on canvases, each with its description.
import { element, short } from "elements";

const [BLUE, WHITE, RED] = [[33, 80, 172], [247, 247, 247], [178, 24, 43]]; // of differences
const level = (value) => 255 * Math.min(1, Math.max(0, value));

function canvasOf([height, width], said, colour) {
  const canvas = element("canvas", { width, height, ...(said ? { role: "img", "aria-label": said } : { "aria-hidden": "true" }) });
  const data = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) data.data.set([...colour(pixel), 255], 4 * pixel);
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

// x is less the mean; with a mean of zeros an image in [0, 1].
export function picture(x, shape, mean, said) {
  const channels = shape[2];
  const at = (pixel, c) => level(x[pixel * channels + c] + mean[c]);
  return canvasOf(shape, said, (pixel) => [0, 1, 2].map((c) => at(pixel, channels === 3 ? c : 0)));
}

// x - other, averaged over channels: blue where less, red where more, full colour at its largest.
export function difference(x, other, shape) {
  const channels = shape[2];
  const apart = Array.from({ length: shape[0] * shape[1] }, (_, pixel) => {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += x[pixel * channels + c] - other[pixel * channels + c];
    return sum / channels;
  });
  const most = apart.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  const canvas = canvasOf(shape, `difference of up to ${short(most)}`, (pixel) => {
    const share = most > 0 ? apart[pixel] / most : 0;
    return (share > 0 ? RED : BLUE).map((end, c) => WHITE[c] + (end - WHITE[c]) * Math.abs(share));
  });
  return { canvas, most };
}

// Pictures, or lines of text between them, one below the other.
export const figure = (...content) => element("figure", {}, ...content.filter(Boolean).map((each) => (typeof each === "string" ? element("span", { title: each.length > 12 && each }, each) : each)));

// Canvases side by side on one, `columns` in a row, each enlarged by a whole number.
export function sheet(canvases, columns, scale = 4) {
  const [width, height] = [canvases[0].width * scale, canvases[0].height * scale];
  const across = Math.min(columns, canvases.length);
  const whole = element("canvas", { width: across * (width + 4) - 4, height: Math.ceil(canvases.length / columns) * (height + 4) - 4 });
  const context = whole.getContext("2d");
  context.imageSmoothingEnabled = false;
  canvases.forEach((canvas, i) => context.drawImage(canvas, (i % columns) * (width + 4), Math.floor(i / columns) * (height + 4), width, height));
  return whole;
}
