// What is shown of the state at the cursor: the latest asked for, drawn when its numbers are there.
import { byId, short } from "elements";
import { difference, figure, picture } from "pictures";
import { drawPosterior } from "posterior";
import { drawPotential } from "potential";

const KEPT = 64; // states in memory

export function makeCursor(source) {
  const states = new Map();
  const images = new Map();
  let wanted = null; // {model, trunk, step, denoiser}
  let current = null; // what was drawn last: {step, time, x, posterior, denoised}
  let drawing = null;

  const imagesOf = (model) => (index) => {
    const key = `${model.id} ${index}`;
    if (!images.has(key)) images.set(key, source.image(model.id, index));
    return images.get(key);
  };

  async function stateOf(trunk, step) {
    const key = `${trunk.id} ${step}`;
    const state = states.get(key) ?? (await source.state(trunk, step));
    if (state) states.set(key, state);
    if (states.size > KEPT) states.delete(states.keys().next().value);
    return state;
  }

  // x_t, and from it E[x_0 | x_t] of every denoiser, with its difference from the chosen one's.
  function drawStates({ model, denoiser }, { x, time, step }, denoised) {
    const { shape, mean } = model;
    const name = step < 0 ? "x₀" : "xₜ";
    const figures = model.denoisers.filter((each) => denoised[each.name]).map(({ name, about }) => {
      const seen = picture(denoised[name], shape, mean, `E[x₀ | xₜ] of ${name}: ${about}`);
      if (name === denoiser) return figure(name, seen);
      const { canvas, most } = difference(denoised[name], denoised[denoiser], shape);
      return figure(name, seen, canvas, `±${short(most)}`);
    });
    byId("states").replaceChildren(figure(name, picture(x, shape, mean, `${name} at t = ${short(time)}`)), ...figures);
  }

  // Gives whether the state was there.
  async function draw(asked) {
    const { model, trunk, step } = asked;
    const state = await stateOf(trunk, step);
    if (!state) return false;
    if (model.mixture) drawPotential(byId("potential"), model.mixture, state.time, state.x);
    const names = model.denoisers.map(({ name }) => name);
    const [denoised] = await Promise.all([
      step < 0 ? {} : source.denoise(model.id, state.x, step, names),
      drawPosterior(byId("posterior"), state.posterior, model, imagesOf(model)),
    ]);
    drawStates(asked, state, denoised);
    current = { ...state, denoised };
    return true;
  }

  async function catchUp() {
    for (let drawn = null; wanted && drawn !== wanted; ) {
      const asked = wanted;
      const there = await draw(asked).catch((error) => {
        if (wanted === asked) throw error;
      });
      if (there) drawn = asked;
    }
  }

  return {
    at: () => current,
    // Asks for no more: what is cancelled is no longer there.
    stop: () => (wanted = null),
    // Draws the state; gives a promise of the latest one asked for being drawn.
    show(asked) {
      wanted = asked;
      drawing ??= catchUp().finally(() => (drawing = null));
      return drawing;
    },
  };
}
