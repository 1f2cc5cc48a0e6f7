// The lines of Python that compute the state at the cursor and the ends of the fork shown.
const quoted = (text) => JSON.stringify(text); // a JSON string is one of Python too

function processLines(model, { denoiser, sampler, calls }) {
  if (model.kind === "run") {
    const imports = ["import jax", "import numpy as np", "", "import diffusion_jax as dj", "from diffusion_jax.sampling import pure_noise, sampling_loop"];
    if (denoiser === "trained") return [...imports, "", `run = dj.load_model(${quoted(model.name)})  # the run's folder`, `process = run.backward(${quoted(sampler)}, ${calls})`, "shape, mean = run.shape, run.mean"];
  }
  return [
    "import jax",
    "import numpy as np",
    "",
    "import diffusion_jax as dj",
    "from diffusion_jax.data import load",
    "from diffusion_jax.sampling import pure_noise, sampling_loop",
    "from diffusion_jax.sampling.backward import closed_form",
    "",
    `images = load(dj.DataConfig(data=${quoted(model.name)}))`,
    "schedule = dj.cosine_schedule(1000)",
    "points, shape, mean = images.centred(), images.images.shape[1:], images.mean",
    `process = closed_form(${quoted(denoiser)}, schedule, points, images.labels, ${quoted(sampler)}, ${calls})`,
  ];
}

// Steps still to go from a step of the whole schedule, of those that are visited.
const toGo = (trunk, step) => trunk.steps.length - 1 - trunk.steps.indexOf(step);

// Args: model, state of the page, trunk {steps}, step of the cursor, fork shown or null.
export function pythonLines(model, state, trunk, step, fork) {
  const lines = [
    ...processLines(model, state),
    "",
    "advance = jax.jit(sampling_loop)",
    "",
    "",
    "def clone(key, number, to_go):",
    "    return jax.random.fold_in(jax.random.fold_in(key, 2**31 - 2 - number), to_go)",
    "",
    "",
    "def trunk(index, branches, to_go):",
    `    key = jax.random.fold_in(jax.random.key(${state.seed}), index)`,
    "    x, at = pure_noise(key[None], shape), process.sampler.schedule.num_steps",
    "    x = x if process.start is None else process.start(x)",
    "    for stop, number in branches:",
    "        x, at = advance(process.sampler, process.denoiser, x, key[None], at, stop), stop",
    "        key = clone(key, number, stop)",
    "    return advance(process.sampler, process.denoiser, x, key[None], at, to_go), key",
    "",
    "",
  ];
  const branches = (list) => `[${list.map((b) => `(${toGo(trunk, b.step)}, ${b.clone})`).join(", ")}]`;
  const above = state.branches.filter((b) => b.step > step || trunk.steps.indexOf(b.step) < 0);
  lines.push(`x_t, _ = trunk(${state.index}, ${branches(above)}, ${toGo(trunk, step)})  # t = ${trunk.times[trunk.steps.indexOf(step)].toPrecision(4)}`);
  if (fork) {
    const b = toGo(trunk, fork.step);
    lines.push(
      "",
      `x, key = trunk(${fork.index}, ${branches(fork.branches)}, ${b})  # the fork`,
      `keys = jax.vmap(lambda number: clone(key, number, ${b}))(np.arange(${fork.first}, ${fork.first + fork.clones}))`,
      `ends = advance(process.sampler, process.denoiser, np.repeat(x, ${fork.clones}, axis=0), keys, ${b}, 0)`,
    );
  }
  return [...lines, "images_shown = np.clip(mean + (ends if \"ends\" in globals() else x_t), 0, 1)"].join("\n") + "\n";
}
