// The page: connects the controls with the session, and the session with what is drawn.
import { jumps, makeAxis } from "axis";
import { makeCursor } from "cursor";
import { drawCurves, pooled } from "curves";
import { byId, classText, element, refill, short } from "elements";
import { drawFates, fateText } from "fates";
import { exportButtons } from "files";
import { pythonLines } from "python";
import { nearestTime } from "scale";
import { makeSession } from "session";
import { drawTree } from "tree";
import { drawTurn, toPng } from "uturn";
import { makeWorker, watch } from "work";

const { makeSource } = await import(byId("data") ? "local" : "remote");
const source = makeSource();
const worker = makeWorker(source);
const session = makeSession(source, worker, draw);
const cursor = makeCursor(source);
const axis = makeAxis(byId("axis"), (number) => session.moveTo(number));
const form = byId("controls");
const turning = byId("uturn");
let playing = null;
let shown = Promise.resolve(); // when the latest state is drawn

function placeText({ trunk, number, model }) {
  if (!trunk.done) return "";
  if (trunk.steps[number] < 0) return `t = 0, data${trunk.fate ? `: ${fateText(trunk.fate, model)}` : ""}`;
  const p = trunk.along.classes?.[number];
  const c = p ? p.indexOf(Math.max(...p)) : -1;
  const of = c < 0 ? "" : `, ${classText(model.classes[c])} with ${p[c].toFixed(2)}`;
  return `t = ${short(trunk.times[number])}, step ${trunk.steps[number]}${of}`;
}

// Why there can be no fork, or U-turn, here and now.
function whyNot(isFork) {
  const { trunk, model, state } = session;
  if (worker.busy()) return "Wait until what runs has ended, or cancel it.";
  if (!trunk.done) return "Run a trunk first.";
  if (session.step() < 0) return "There is nothing left to run at t = 0: go back in time first.";
  const equal = isFork && model.samplers.some(({ name, noisy }) => name === state.sampler && !noisy);
  return equal ? `${state.sampler} adds no noise, so that all clones would be equal: choose the ancestral sampler.` : "";
}

function drawTime() {
  const { trunk, number, model, regimes, scale, forks } = session;
  const text = placeText(session);
  const there = (list) => list?.slice(0, trunk.done);
  byId("place").textContent = text;
  axis.show({ scale, regimes: model.regimes, number, times: there(trunk.times), classes: there(trunk.along.classes) }, text);
  drawCurves(byId("curves"), { scale, regimes, points: pooled([...forks.values()]), cursor: trunk.done ? trunk.times[number] : null });
  const own = [...forks.values()].filter((fork) => fork.index === session.state.index);
  drawTree(byId("tree"), there(trunk.along.projection), own, number);
  for (const id of ["fork", "turn"]) {
    const why = whyNot(id === "fork");
    byId(id).setAttribute("aria-disabled", why !== ""); // and keeps the focus, which disabled buttons lose
    byId(`${id}-why`).textContent = why;
  }
}

function drawFork() {
  const { forks, model, turn } = session;
  const fork = session.shownFork();
  const names = [...forks].map(([key, { time, first, clones, index }]) =>
    element("option", { value: key }, `t = ${short(time)}, ${first} to ${first + clones - 1} of sample ${index}`));
  byId("shown").replaceChildren(...names);
  byId("shown").value = session.shown;
  byId("shown").parentElement.hidden = !names.length;
  const take = (clone) => {
    session.goTo(fork.index, [...fork.branches, { step: fork.step, clone }], fork.step);
    fillControls(); // it may be of another sample
    byId("axis").focus();
  };
  drawFates(byId("fates"), fork, model, take);
  if (turn) drawTurn(byId("turned"), turn, model);
  else byId("turned").replaceChildren();
}

// The way back from clones to the trunk they left.
function drawBranches({ branches, index }) {
  const name = (i) => (i ? `clone ${branches[i - 1].clone}` : "trunk");
  const back = branches.map(({ step }, i) => element("button", { type: "button", class: "quiet", click: () => session.goTo(index, branches.slice(0, i), step) }, name(i)));
  const here = branches.length ? `${name(branches.length)}, from step ${branches.at(-1).step}` : "";
  refill(byId("branches"), ...back.flatMap((button) => [button, " › "]), here);
}

function draw(what) {
  const { model, trunk, state } = session;
  if (!trunk) return;
  drawTime();
  if (what === "drawing") drawBranches(state);
  if (what === "fork") drawFork();
  if (!trunk.done) return;
  byId("python").value = pythonLines(model, state, trunk, session.step(), session.shownFork());
  if (what === "state") shown = cursor.show({ model, trunk, step: session.step(), denoiser: state.denoiser }).catch(worker.fail);
}

// --- controls --------------------------------------------------------------------------------

function choices(select, names, chosen) {
  select.replaceChildren(...names.map(([value, name]) => element("option", { value }, name)));
  select.value = chosen;
}

function fillControls() {
  const { model, state } = session;
  const { elements } = form;
  elements.model.value = state.model;
  choices(elements.denoiser, model.denoisers.map(({ name }) => [name, name]), state.denoiser);
  choices(elements.sampler, model.samplers.map(({ name }) => [name, name]), state.sampler);
  Object.assign(elements.calls, { min: model.calls.least, max: model.calls.most });
  for (const name of ["calls", "seed", "index"]) elements[name].value = state[name];
  turning.elements.image.max = model.num_images - 1;
  byId("trained").textContent = model.trained_on;
  byId("potential-panel").hidden = !model.mixture;
  const go = (t) => session.moveTo(nearestTime(session.trunk.times.slice(0, session.trunk.done), t));
  refill(byId("jumps"), "Go to", ...jumps(model.regimes, session.scale, go));
  drawFork();
}

async function runChosen(changed) {
  play(false);
  worker.note("");
  const { model, denoiser, sampler, calls, seed, index } = form.elements;
  if (changed?.name === "model") {
    Object.assign(session.state, { calls: null, step: null });
    await session.open(model.value);
  } else {
    const chosen = { denoiser: denoiser.value, sampler: sampler.value, calls: Number(calls.value), seed: Number(seed.value), index: Number(index.value) };
    if (!form.reportValidity() || (worker.busy() && !session.differs(chosen))) return;
    session.choose(chosen);
  }
  fillControls();
  await session.run();
}

const isOn = (id) => byId(id).getAttribute("aria-disabled") === "false";

async function turn(image) {
  const { returns, file } = turning.elements;
  if (isOn("turn") && turning.reportValidity()) await session.uturn(image, session.step(), Number(returns.value));
  file.value = "";
}

async function turnFile(file) {
  const png = file && (await toPng(file, session.model.shape).catch(() => null));
  if (png) await turn({ png });
  else worker.fail(new Error("This is no image that the browser can read: choose a PNG or a JPEG."));
}

// --- playing and keys ------------------------------------------------------------------------

async function play(wanted) {
  const on = wanted && Boolean(session.trunk?.done);
  const mine = (playing = on ? {} : null);
  byId("play").textContent = on ? "Pause" : "Play";
  const atEnd = () => session.number >= session.trunk.done - 1;
  if (on && atEnd()) session.moveTo(0);
  while (on && playing === mine) {
    await Promise.all([shown, new Promise((done) => setTimeout(done, 40))]);
    if (playing !== mine) return;
    if (!atEnd()) session.moveTo(session.number + 1);
    else if (!worker.busy()) play(false);
  }
}

const KEYS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };

function key(event) {
  const elsewhere = event.target.closest("input, select, textarea, button, a");
  if (elsewhere || event.ctrlKey || event.metaKey || event.altKey || !(event.key === " " || event.key in KEYS)) return;
  event.preventDefault();
  play(event.key === " " && !playing);
  if (event.key !== " ") session.moveTo(session.number + KEYS[event.key]);
}

// --- beginning -------------------------------------------------------------------------------

async function restore() {
  const fragment = location.hash;
  play(false);
  const models = await source.models();
  choices(form.elements.model, models.map(({ id, name }) => [id, name]));
  await session.restore(fragment, (wrong) => (fillControls(), worker.note(wrong)));
}

const on = (node, event, act) => node.addEventListener(event, (what) => Promise.resolve(act(what)).catch(worker.fail));
on(form, "submit", (event) => (event.preventDefault(), runChosen()));
on(form, "change", ({ target }) => runChosen(target));
on(byId("fork"), "click", () => isOn("fork") && session.forkHere(Number(byId("clones").value)));
on(byId("shown"), "change", ({ target }) => ((session.shown = target.value), draw("fork")));
on(byId("play"), "click", () => play(!playing));
on(turning, "submit", (event) => (event.preventDefault(), turn({ index: Number(turning.elements.image.value) })));
on(turning.elements.file, "change", ({ target }) => turnFile(target.files[0]));
on(turning, "dragover", (event) => event.preventDefault());
on(turning, "drop", (event) => (event.preventDefault(), turnFile(event.dataTransfer.files[0])));
on(document, "keydown", key);
on(window, "hashchange", restore);
on(window, "resize", () => draw());
worker.changed((abandoned) => {
  draw();
  if (!abandoned) return;
  play(false);
  cursor.stop();
});
byId("exports").replaceChildren(...exportButtons(session, cursor, worker.fail));
watch(source);
byId("about").textContent = (await source.about?.()) ?? "";
// For the console and for tests: what is shown, in numbers.
window.explorer = { session, source, worker, at: cursor.at };
await restore().catch(worker.fail);
