// The source of numbers that the page carries itself: its data, and a worker that computes.
import { wilson } from "elements";

const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const textOf = (id) => document.getElementById(id).textContent;

async function unzipped({ dtype, data }) {
  const stream = new Blob([fromBase64(data)]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = await new Response(stream).arrayBuffer();
  return dtype === "uint8" ? new Uint8Array(bytes) : new Float32Array(bytes);
}

const fails = (detail, status) => Object.assign(new Error(detail), { status });

// A worker's operations as functions that give promises; handlers hear of the work by the way.
function started() {
  const script = new Blob([textOf("engine")], { type: "text/javascript" });
  const worker = new Worker(URL.createObjectURL(script)), waiting = new Map();
  worker.onmessage = ({ data: { call, event, told, found, error } }) => {
    const { done, failed, handlers } = waiting.get(call);
    if (event) return handlers[event]?.(told);
    waiting.delete(call);
    return error ? failed(fails(error.detail, error.status)) : done(found);
  };
  let calls = 0;
  return (name, argument, handlers = {}) => new Promise((done, failed) => {
    waiting.set(++calls, { done, failed, handlers });
    worker.postMessage({ call: calls, name, argument });
  });
}

// A PNG's values in [0, 1]; of one channel Rec. 601 luma, as the server has it.
async function decoded(png, [height, width, channels]) {
  const image = await createImageBitmap(new Blob([fromBase64(png)], { type: "image/png" })).catch(() => null);
  if (!image) throw fails("The image is no PNG that can be read.", 422);
  if (image.width !== width || image.height !== height) {
    throw fails(`The image is ${image.width} x ${image.height} pixels, and the model's are ${width} x ${height}.`, 422);
  }
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return Float32Array.from({ length: height * width * channels }, (_, i) => {
    const [r, g, b] = data.subarray(4 * Math.floor(i / channels), 4 * Math.floor(i / channels) + 3);
    const luma = (19595 * r + 38470 * g + 7471 * b + 2 ** 15) >> 16;
    return (channels === 1 ? luma : [r, g, b][i % channels]) / 255;
  });
}

// How many of the disjoint pairs (0, 1), (2, 3), ... agree.
function pairsOf(values) {
  const firsts = values.filter((_, i) => i % 2 === 0 && i + 1 < values.length);
  const same = firsts.filter((value, i) => value === values[2 * i + 1]).length;
  return firsts.length ? { same, pairs: firsts.length, ...wilson(same, firsts.length) } : null;
}

// A fork's body with what its fates say together.
function counted(body, classes) {
  const { fates } = body, own = fates.map((fate) => fate.class);
  const shares = classes.map((_, label) => {
    const count = own.filter((each) => each === label).length, { value, low, high } = wilson(count, own.length);
    return { class: label, count, value, low, high };
  });
  const has = classes.length > 0, phi_C = pairsOf(fates.map((fate) => fate.nearest));
  return { ...body, classes: has && own.length ? shares : null, phi: has ? pairsOf(own) : null, phi_C };
}

export function makeSource() {
  const { model, regimes, about, images, labels, schedule, gaussian } = JSON.parse(textOf("data"));
  const ask = started(), { shape, mean } = model, size = shape.reduce((a, b) => a * b), ends = new Map();
  const scale = images.dtype === "uint8" ? 255 : 1;
  let uploads = 0;
  const floats = (text) => new Float32Array(fromBase64(text).buffer);
  const ready = unzipped(images).then(async (pixels) => {
    const rows = { ...gaussian, mean: floats(gaussian.mean), eigenvalues: floats(gaussian.eigenvalues) };
    rows.modes = { values: floats(gaussian.modes), n: rows.eigenvalues.length, d: size };
    const tables = Object.fromEntries(Object.entries(schedule).map(([name, text]) => [name, floats(text)]));
    await ask("begin", { id: model.id, names: model.classes, labels, pixels, scale, mean, shape, schedule: tables, gaussian: rows });
    return pixels;
  });
  const known = (id) => {
    if (id !== model.id) throw fails(`There is no model ${id}; this page holds ${model.id}.`, 404);
  };
  const centred = (values) => values.map((value, i) => Math.fround(value) - mean[i % mean.length]);

  async function imageAt(index) {
    const pixels = await ready;
    if (!Number.isInteger(index) || index < 0 || index >= model.num_images) throw fails(`There is no image ${index}; there are ${model.num_images}.`, 404);
    return Float32Array.from(pixels.subarray(index * size, (index + 1) * size), (each) => each / scale);
  }

  async function run(name, argument, handlers) {
    known(argument.request.model);
    await ready;
    return ask(name, argument, handlers);
  }

  return {
    kind: "page",
    about: () => about,
    alive: async () => true,
    models: async () => [{ id: model.id, name: model.name, kind: model.kind }],
    model: async (id) => (known(id), model),
    regimes: async (id) => (known(id), regimes),
    image: async (id, index) => ({ index, class: labels ? labels[index] : null, image: await imageAt(index) }),
    trunk: (request, handlers) => run("trunk", { request }, handlers),
    state: (trunk, step) => run("state", { request: trunk.request, step }),
    denoise: async (id, x, step, names) => (await ready, ask("denoise", { x, step, names })),
    async forks(trunk, request, handlers) {
      const found = await run("forks", { ...request, request: trunk.request }, handlers);
      ends.set(found.body.id, found.ends);
      return counted(found.body, model.classes);
    },
    ends: async (fork) => ends.get(fork.id),
    async uturn({ step, returns, image, ...request }, handlers) {
      const name = image.index === undefined ? `u${uploads++}` : `i${image.index}`;
      const values = image.png ? await decoded(image.png, shape) : image.array ? floats(image.array.data) : await imageAt(image.index);
      const body = await run("uturn", { request, step, returns, image: centred(values), name }, handlers);
      return { ...counted(body, model.classes), start: Float32Array.from(values) }; // in [0, 1], as it was given
    },
    cancel: (kind, id) => ask("cancel", id),
  };
}
