// The lines of Python that compute the state at the cursor and the ends of the fork shown.
const quoted = (text) => JSON.stringify(text); // a JSON string is one of Python too

function processLines(model, { denoiser, sampler, calls }) {
  const run = `run = dj.load_model(${quoted(model.name)})  # the run's folder`;
  if (denoiser === "trained") {
    return `${run}
process, shape, mean = run.backward(${quoted(sampler)}, ${calls}), run.shape, run.mean`;
  }
  if (denoiser === "mixture") {
    const { dimension, mu, sigma } = model.mixture;
    return `shape, mean = (${model.shape.join(", ")}), ${model.mean[0]}  # d = ${dimension}
schedule, centre = dj.linear_schedule(), jnp.full(shape, ${mu}, jnp.float32)
denoiser = dj.GaussianMixtureDenoiser(schedule, centre, jnp.float32(${sigma}))
process = backward(schedule, denoiser, ${quoted(sampler)}, ${calls})`;
  }
  const [images, said] = model.mixture ? ["mixture_images()", ""] : [`load(${quoted(model.name)}, DataOptions(data=None))`, "  # the data set's name or path"];
  const data = model.kind === "run"
    ? `${run}
images, schedule = forking.training_images(run), run.sampler.schedule`
    : `images, schedule = ${images}, dj.linear_schedule()${said}`;
  const { modes } = model.denoisers?.find(({ name }) => name === denoiser) ?? {}; // of a Gaussian of low rank
  const points = `${data}
points, shape, mean = images.centred(), images.images.shape[1:], images.mean`;
  if (modes) {
    return `${points}
denoiser = dj.GaussianDenoiser.fit(schedule, points, rank=${modes}, floor="rest")
process = backward(schedule, denoiser, ${quoted(sampler)}, ${calls})`;
  }
  return `${points}
process = closed_form(
    ${quoted(denoiser)}, schedule, points, images.labels, ${quoted(sampler)}, ${calls}
)`;
}

// Args: model, state of the page, trunk, step of the cursor, fork shown or null.
export function pythonLines(model, state, trunk, step, fork) {
  const toGo = (at) => trunk.steps.length - 1 - trunk.steps.indexOf(at);
  const branches = (list) => `[${list.map((each) => `(${toGo(each.step)}, ${each.clone})`).join(", ")}]`;
  const ends = !fork ? "" : `
# the clones ${fork.first} to ${fork.first + fork.clones - 1}, ${toGo(fork.step)} steps from the end
x, key = state(${fork.index}, ${branches(fork.branches)}, ${toGo(fork.step)})
numbers = np.arange(${fork.first}, ${fork.first + fork.clones})
keys = jax.vmap(lambda number: clone(key, number, ${toGo(fork.step)}))(numbers)
ends = advance(np.repeat(x, ${fork.clones}, axis=0), keys, ${toGo(fork.step)}, 0)
pictures = np.clip(mean + np.asarray(ends), 0, 1)
`;
  return `import jax
import jax.numpy as jnp
import numpy as np

import diffusion_jax as dj
from diffusion_jax import forking
from diffusion_jax.sampling import backward, pure_noise, sampling_loop
from diffusion_jax.sampling.backward import closed_form
${model.mixture ? "from diffusion_jax.serving.opening import mixture_images\n" : ""}from experiments.data_options import DataOptions, load

${processLines(model, state)}
loop = jax.jit(sampling_loop)


def advance(x, keys, at, stop):
    return loop(process.sampler, process.denoiser, x, keys, at, stop)


def clone(key, number, steps):
    return jax.random.fold_in(jax.random.fold_in(key, 2**31 - 2 - number), steps)


def state(index, branches, steps):
    key = jax.random.fold_in(jax.random.key(${state.seed}), index)
    x, at = pure_noise(key[None], shape), process.sampler.schedule.num_steps
    x = x if process.start is None else process.start(x)
    for stop, number in branches:  # from here on as this clone
        x, at, key = advance(x, key[None], at, stop), stop, clone(key, number, stop)
    return advance(x, key[None], at, steps), key


x_t, _ = state(${state.index}, ${branches(state.branches.filter((each) => each.step >= step))}, ${toGo(step)})
${ends}`;
}
