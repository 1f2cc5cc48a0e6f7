// What is shown of the state at the cursor: the latest asked for, drawn when its numbers are there.
import { byId, short } from "elements";
import { difference, figure, picture } from "pictures";
import { drawPosterior } from "posterior";
import { drawPotential } from "potential";

const KEPT = 64; // states in memory

export function makeCursor(source) {
  const states = new Map();
  const images = new Map();
  let wanted = null; // {model, trunk, step, denoiser, changed()}
  let current = null; // what was drawn last: {step, time, x, posterior, denoised}
  let drawing = null;

  const imagesOf = (model) => (index) => {
    const key = `${model.id} ${index}`;
    if (!images.has(key)) images.set(key, source.image(model.id, index));
    return images.get(key);
  };

  async function stateOf(trunk, step) {
    const key = `${trunk.id} ${step}`;
    if (!states.has(key)) states.set(key, await source.state(trunk, step));
    if (states.size > KEPT) states.delete(states.keys().next().value);
    return states.get(key);
  }

  function drawDenoised({ model, denoiser }, denoised) {
    const chosen = denoised[denoiser];
    const figures = model.denoisers.filter(({ name }) => denoised[name]).map(({ name, about }) => {
      const content = [picture(denoised[name], model.shape, model.mean, `E[x_0 | x_t] of the denoiser ${name}: ${about}`)];
      if (name === denoiser || !chosen) return figure(content, name);
      const { canvas, most } = difference(denoised[name], chosen, model.shape);
      return figure([...content, canvas], name, ` ±${short(most)}`);
    });
    byId("denoised").replaceChildren(...figures);
  }

  async function draw(asked) {
    const { model, trunk, step } = asked;
    const state = await stateOf(trunk, step);
    byId("state").replaceChildren(figure([picture(state.x, model.shape, model.mean, `x_t at t = ${short(state.time)}`)], step < 0 ? "x_0" : `x_t, t = ${short(state.time)}`));
    if (model.mixture) drawPotential(byId("potential"), model.mixture, state.time, state.x);
    const names = model.denoisers.map(({ name }) => name);
    const denoised = step < 0 ? {} : await source.denoise(model.id, state.x, step, names);
    if (asked !== wanted) return;
    drawDenoised(asked, denoised);
    await drawPosterior(byId("posterior"), state.posterior, model, imagesOf(model));
    current = { ...state, denoised };
  }

  async function catchUp() {
    for (let drawn = null; drawn !== wanted; ) {
      drawn = wanted;
      await draw(drawn);
    }
  }

  return {
    at: () => current,
    // Draws the state; gives a promise of the latest one asked for being drawn.
    show(asked) {
      wanted = asked;
      drawing ??= catchUp().finally(() => (drawing = null));
      return drawing;
    },
  };
}
