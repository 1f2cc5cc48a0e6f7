// The page: what is chosen, what runs, what is drawn, and the address that holds it all.
import { forkText, fromFragment, toFragment } from "address";
import { jumps, makeAxis } from "axis";
import { makeCursor } from "cursor";
import { drawCurves, pooled } from "curves";
import { byId, element, short, wilson } from "elements";
import { drawFates } from "fates";
import { download, npy, png, svgFile } from "files";
import { sheet } from "pictures";
import { pythonLines } from "python";
import { makeScale, nearestTime } from "scale";
import { drawTree } from "tree";
import { drawTurn, toPng } from "uturn";
import { makeWorker, watch } from "work";

const { makeSource } = await import(byId("data") ? "local" : "remote");
const source = makeSource();
const worker = makeWorker(source);
const cursor = makeCursor(source);
const axis = makeAxis(byId("axis"), (number) => moveTo(number));
const form = byId("controls");

// What the address holds, see address.js; step is the cursor's.
const state = { model: null, denoiser: null, sampler: null, calls: null, seed: 0, index: 0, branches: [], step: null, forks: [], uturn: null };
let model, regimes, scale;
let trunk = null; // as GET /v1/trunks/{id} gives it, so far
let number = 0; // of the visited state at the cursor
let following = true; // the cursor goes along with a running trunk
let playing = null;
const forks = new Map(); // by forkText: body and {index, branches, ends}
const trunks = new Map(); // done, by the request

const sayAddress = () => history.replaceState(null, "", toFragment(state));

// --- drawing ---------------------------------------------------------------------------------

function placeText() {
  if (!trunk?.steps.length) return "nothing yet";
  const p = trunk.along.classes?.[number];
  const c = p ? p.indexOf(Math.max(...p)) : -1;
  const said = c < 0 ? "" : `, class ${model.classes[c]} with ${p[c].toFixed(2)}`;
  return `t = ${short(trunk.times[number])}, ${trunk.steps[number] < 0 ? "data" : `step ${trunk.steps[number]}`}${said}`;
}

function draw() {
  if (!trunk) return;
  const there = trunk.done;
  const along = { steps: trunk.steps.slice(0, there), times: trunk.times.slice(0, there), classes: trunk.along.classes?.slice(0, there) };
  const text = placeText();
  byId("place").textContent = text;
  axis.show({ scale, regimes: model.regimes, number, of: Math.max(trunk.of, there), ...along }, text);
  const points = pooled([...forks.values()].filter((fork) => fork.status === "done"), wilson);
  const curves = [["phi", "φ"], ["phi_C", "φ_C"]].filter(([kind]) => regimes?.curves?.[kind]).map(([kind, label]) => ({ kind, label, curve: regimes.curves[kind] }));
  drawCurves(byId("curves"), { scale, curves, points, floor: regimes?.phi_floor, cursor: there ? trunk.times[number] : null });
  byId("pooled").textContent = points.length ? "Points are fractions of pairs of clones; intervals of one trunk's hold for its x_t alone." : "";
  drawTree(byId("tree"), trunk.along.projection.slice(0, there), [...forks.values()].filter((fork) => fork.index === state.index), number);
  byId("fork").disabled = byId("uturn").elements[2].disabled = !there || trunk.steps[number] < 0 || worker.busy();
}

function show() {
  state.step = following ? null : trunk.steps[number];
  draw();
  byId("python").value = trunk.done ? pythonLines(model, state, trunk, trunk.steps[number], shownFork()) : "";
  const shown = cursor.show({ model, trunk, step: trunk.steps[number], denoiser: state.denoiser });
  return shown.catch(worker.fail);
}

function moveTo(to) {
  if (!trunk?.done) return undefined;
  following = false;
  number = Math.min(Math.max(to, 0), trunk.done - 1);
  const shown = show();
  sayAddress();
  return shown;
}

// --- trunk -----------------------------------------------------------------------------------

const requestOf = ({ index, branches }) => {
  const { denoiser, sampler, calls, seed } = state;
  return { model: state.model, denoiser, sampler, calls, seed, index, branches };
};

const emptyTrunk = (request) => ({ id: null, request, status: "queued", steps: [], times: [], done: 0, of: 0, along: { classes: [], entropy: [], effective: [], projection: [] } });

function addState({ number: k, step, time, classes, projection }) {
  trunk.steps[k] = step;
  trunk.times[k] = time;
  if (classes) trunk.along.classes[k] = classes;
  trunk.along.projection[k] = projection;
  trunk.done = k + 1;
  if (following) number = k;
  else if (state.step !== null && trunk.steps[number] !== state.step && step >= state.step) number = k;
  if (following || number === k) show();
  else draw();
}

async function runTrunk() {
  play(false);
  const request = requestOf(state);
  following = state.step === null;
  number = 0;
  trunk = emptyTrunk(request);
  drawBranches();
  sayAddress();
  draw();
  const mine = trunk;
  const handlers = { begun: (id) => (trunk.id = id), state: addState, fate: (fate) => (trunk.fate = fate), progress: ({ of }) => (trunk.of = of) };
  const done = await worker.run("trunks", "Trunk runs", handlers, (guarded) => source.trunk(request, { ...guarded, progress: (p) => (guarded.progress(p), (mine.of = p.of)) }));
  if (!done || trunk !== mine) return false;
  trunk = { ...done, of: done.steps.length, done: done.steps.length };
  trunks.set(JSON.stringify(request), trunk);
  if (following) number = trunk.done - 1;
  else number = nearestStep(state.step);
  await show();
  return true;
}

const nearestStep = (step) => trunk.steps.reduce((best, s, i) => (Math.abs(s - step) < Math.abs(trunk.steps[best] - step) ? i : best), 0);

function drawBranches() {
  const crumbs = state.branches.map((branch, i) => [branch, state.branches.slice(0, i)]);
  const back = crumbs.map(([{ step }, before], i) => element("button", { type: "button", class: "quiet", click: () => turnInto({ ...state, branches: before, step }) }, i ? `clone ${state.branches[i - 1].clone}` : "Trunk"));
  const here = state.branches.length ? [`clone ${state.branches.at(-1).clone} from step ${state.branches.at(-1).step}`] : [];
  byId("branches").replaceChildren(...back.flatMap((button) => [button, " › "]), ...here);
}

function turnInto({ index, branches, step }) {
  Object.assign(state, { index, branches, step });
  form.elements.index.value = index;
  return runTrunk();
}

// --- forks -----------------------------------------------------------------------------------

const shownFork = () => forks.get(byId("shown").value) ?? null;

function drawFork() {
  const fork = shownFork();
  const take = (clone) => turnInto({ index: fork.index, branches: [...fork.branches, { step: fork.step, clone }], step: fork.step }).then(() => byId("axis").focus());
  drawFates(byId("fates"), fork, model, fork?.ends, take);
  draw();
}

function listForks(chosen) {
  const options = [...forks].map(([key, fork]) => element("option", { value: key }, `t = ${short(fork.time ?? model.times[fork.step])}, clones ${fork.first} to ${fork.first + fork.clones - 1} of sample ${fork.index}`));
  byId("shown").replaceChildren(...options);
  byId("shown").disabled = !options.length;
  if (chosen) byId("shown").value = chosen;
  drawFork();
}

// Forks the trunk of {index, branches}, which is run first where it has not been.
async function runFork(asked) {
  const key = forkText(asked);
  const request = requestOf(asked);
  const { step, clones, first } = asked;
  if (!trunks.has(JSON.stringify(request))) {
    const made = await worker.run("trunks", `Trunk of sample ${asked.index} runs`, {}, (handlers) => source.trunk(request, handlers));
    if (!made) return false;
    trunks.set(JSON.stringify(request), made);
  }
  const begun = { ...asked, status: "running", done: 0, fates: [], classes: null, paths: { projection: [] }, ends: null };
  forks.set(key, begun);
  listForks(key);
  const add = ({ first: from, fates, projection }) => {
    fates.forEach((fate, i) => (begun.fates[from + i] = fate));
    (projection ?? []).forEach((line, i) => (begun.paths.projection[from + i] = line));
    begun.done = begun.fates.filter(Boolean).length;
    if (shownFork() === begun) drawFork();
  };
  const done = await worker.run("forks", `${clones} clones run`, { fates: add }, async (handlers) => {
    const body = await source.forks(trunks.get(JSON.stringify(request)), { step, clones, first }, handlers);
    return body.status === "done" ? { ...body, ends: await source.ends(body) } : body;
  });
  if (forks.get(key) !== begun) return false;
  if (done) forks.set(key, { ...done, index: asked.index, branches: asked.branches });
  else forks.delete(key);
  state.forks = [...forks.keys()].map((each) => fromFragment(`forks=${each}`).forks[0]);
  sayAddress();
  listForks(done ? key : null);
  if (done) show();
  return Boolean(done);
}

function forkHere() {
  const step = trunk.steps[number];
  const branches = state.branches.filter((branch) => branch.step > step);
  const before = [...forks.values()].filter((fork) => forkText({ ...fork, clones: 0, first: 0 }) === forkText({ index: state.index, branches, step, clones: 0, first: 0 }));
  const first = before.reduce((most, fork) => Math.max(most, fork.first + fork.clones), 0);
  following = false;
  return runFork({ index: state.index, branches, step, clones: Number(byId("clones").value), first });
}

// --- U-turns ---------------------------------------------------------------------------------

async function runTurn(image, step, returns) {
  const request = { ...requestOf(state), step, returns, image };
  delete request.branches;
  const turn = await worker.run("uturns", "U-turn runs", {}, (handlers) => source.uturn(request, handlers));
  if (!turn) return;
  state.uturn = image.index === undefined ? null : { index: image.index, step, returns };
  drawTurn(byId("turned"), turn, model);
  sayAddress();
  draw();
}

async function turnFile(file) {
  if (!file || !trunk?.done || trunk.steps[number] < 0) return;
  const image = await toPng(file, model.shape).then((text) => ({ png: text }), () => null);
  if (!image) worker.fail(new Error("This file is no image that the browser can read."));
  else await runTurn(image, trunk.steps[number], Number(byId("uturn").elements.returns.value));
}

// --- model and controls ----------------------------------------------------------------------

function choices(select, values, chosen) {
  select.replaceChildren(...values.map(([value, name]) => element("option", { value }, name)));
  if (values.some(([value]) => value === chosen)) select.value = chosen;
  return select.value;
}

async function openModel() {
  model = await source.model(state.model);
  regimes = await source.regimes(state.model);
  scale = makeScale(model.times);
  const { denoiser, sampler, calls, image } = { ...form.elements, denoiser: form.elements.denoiser, sampler: form.elements.sampler, calls: form.elements.calls, image: byId("uturn").elements.image };
  state.denoiser = choices(denoiser, model.denoisers.map(({ name }) => [name, name]), state.denoiser);
  state.sampler = choices(sampler, model.samplers.map(({ name }) => [name, name]), state.sampler);
  state.calls ??= model.calls.default;
  Object.assign(calls, { min: model.calls.least, max: model.calls.most, value: state.calls });
  Object.assign(form.elements.seed, { value: state.seed });
  Object.assign(form.elements.index, { value: state.index });
  image.max = model.num_images - 1;
  byId("trained").textContent = model.trained_on;
  byId("potential-panel").hidden = !model.mixture;
  byId("jumps").replaceChildren("Go to", ...jumps(model.regimes, scale, (t) => trunk?.done && moveTo(nearestTime(trunk.times.slice(0, trunk.done), t))));
}

function read() {
  const chosen = { denoiser: form.elements.denoiser.value, sampler: form.elements.sampler.value, calls: Number(form.elements.calls.value), seed: Number(form.elements.seed.value) };
  const index = Number(form.elements.index.value);
  if (Object.entries(chosen).some(([name, value]) => state[name] !== value)) clearForks();
  if (index !== state.index) state.branches = [];
  Object.assign(state, chosen, { index });
}

function clearForks() {
  forks.clear();
  trunks.clear();
  Object.assign(state, { forks: [], branches: [], uturn: null });
  byId("turned").replaceChildren();
}

async function runChosen() {
  const step = state.step;
  read();
  state.step = step;
  listForks();
  await runTrunk();
}

async function changeModel() {
  Object.assign(state, { model: form.elements.model.value, calls: null, step: null });
  clearForks();
  await openModel();
  listForks();
  await runTrunk();
}

// --- playing and keys ------------------------------------------------------------------------

async function play(on) {
  const mine = (playing = on ? {} : null);
  byId("play").textContent = on ? "Pause" : "Play";
  byId("play").setAttribute("aria-pressed", on);
  if (on && number >= trunk.done - 1) moveTo(0);
  while (playing === mine && on) {
    await Promise.all([moveTo(number + 1), new Promise((done) => setTimeout(done, 50))]);
    if (playing === mine && number >= trunk.done - 1 && !worker.busy()) return play(false);
  }
  return undefined;
}

const KEYS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, button, a")) return;
  if (event.key === " ") play(!playing);
  else if (event.key in KEYS) {
    play(false);
    moveTo(number + KEYS[event.key]);
  } else return;
  event.preventDefault();
}

// --- exports ---------------------------------------------------------------------------------

function exportButtons() {
  const named = (what) => `${state.model}-${what}`;
  const button = (text, make) => element("button", { type: "button", click: () => Promise.resolve(make()).then((made) => made && download(...made)).catch(worker.fail) }, text);
  const canvases = (place) => [...byId(place).querySelectorAll("canvas")];
  const sheetOf = async (name, found, columns) => found.length ? [named(`${name}.png`), await png(sheet(found, columns))] : null;
  byId("exports").replaceChildren(
    button("Pictures at the cursor (PNG)", () => sheetOf("cursor", [...canvases("state"), ...canvases("denoised")], 8)),
    button("Ends (PNG)", () => sheetOf("ends", canvases("fates"), 16)),
    button("Curves (SVG)", () => [named("phi.svg"), svgFile(byId("curves"))]),
    button("Tree (SVG)", () => [named("tree.svg"), svgFile(byId("tree"))]),
    button("x_t (.npy)", () => cursor.at() && [named("x_t.npy"), npy(cursor.at().x, model.shape)]),
    button("Ends (.npy)", () => shownFork()?.ends && [named("ends.npy"), npy(shownFork().ends, [shownFork().clones, ...model.shape])]),
    button("Copy the Python lines", () => navigator.clipboard.writeText(byId("python").value)),
  );
}

// --- beginning -------------------------------------------------------------------------------

async function restore() {
  play(false);
  Object.assign(state, { calls: null, step: null, index: 0, seed: 0 }, fromFragment(location.hash));
  const asked = { forks: state.forks, uturn: state.uturn };
  forks.clear();
  trunks.clear();
  const models = await source.models();
  state.model = choices(form.elements.model, models.map(({ id, name }) => [id, name]), state.model);
  await openModel();
  listForks();
  Object.assign(state, asked);
  if (!(await runTrunk())) return;
  for (const fork of asked.forks) if (!(await runFork(fork))) return;
  if (asked.uturn) await runTurn({ index: asked.uturn.index }, asked.uturn.step, asked.uturn.returns);
}

form.addEventListener("submit", (event) => (event.preventDefault(), runChosen()));
form.addEventListener("change", ({ target }) => (target.name === "model" ? changeModel().catch(worker.fail) : form.reportValidity() && runChosen()));
byId("fork").addEventListener("click", forkHere);
byId("shown").addEventListener("change", () => (drawFork(), show()));
byId("play").addEventListener("click", () => play(!playing));
byId("uturn").addEventListener("submit", (event) => {
  event.preventDefault();
  const { image, returns } = event.target.elements;
  runTurn({ index: Number(image.value) }, trunk.steps[number], Number(returns.value));
});
byId("uturn").elements.file.addEventListener("change", ({ target }) => turnFile(target.files[0]));
byId("uturn").addEventListener("dragover", (event) => event.preventDefault());
byId("uturn").addEventListener("drop", (event) => (event.preventDefault(), turnFile(event.dataTransfer.files[0])));
document.addEventListener("keydown", key);
window.addEventListener("hashchange", () => restore().catch(worker.fail));
new ResizeObserver(() => trunk && draw()).observe(document.body);
byId("python").addEventListener("focus", ({ target }) => target.select());

// For the console and for tests: what is shown, in numbers.
window.explorer = { source, state, at: () => cursor.at(), trunk: () => trunk, fork: shownFork, busy: () => worker.busy() };

exportButtons();
watch(source);
if (source.about) source.about().then((text) => Object.assign(byId("about"), { textContent: text, hidden: false }));
await restore().catch(worker.fail);
