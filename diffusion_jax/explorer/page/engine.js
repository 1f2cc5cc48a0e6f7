// Backward processes of the data: trunks, their clones, U-turns. It runs after noise.js and scores.js,
// as one classic script in a worker. A level is {beta, signal: e^-t, variance: 1 - e^-2t, time: t}.

const START = 2 ** 31 - 1; // what the start's noise is folded with
const AT_ONCE = 8; // clones that run together
const SLICE = 30; // milliseconds of work between two looks at the messages
const KEPT = 4; // trunks in memory
const SAMPLERS = ["ancestral", "ddim", "dpm-solver-2m"];

const trunks = new Map(); // by id, oldest first
const stopped = new Set(); // ids of what is called off

// ---- the schedule ----

// Rounded as Python keeps them, so that the same steps are taken.
const levelsOf = (betas, time = 0) => Array.from(betas, (beta) => {
  time -= 0.5 * Math.log1p(-beta);
  const [b, a, variance, t] = [beta, Math.exp(-2 * time), -Math.expm1(-2 * time), time].map(Math.fround);
  return { beta: b, signal: Math.sqrt(a), variance, time: t };
});

const logSnr = ({ time, variance }) => -2 * time - Math.log(variance);

// The steps nearest to even spacing over log(alpha_bar/(1 - alpha_bar)), increasing and distinct.
function spreadSteps(levels, calls) {
  const clock = levels.map(({ time }) => -2 * time - Math.log(-Math.expm1(-2 * time)));
  const last = levels.length - 1, steps = [];
  const share = clock.map((each) => (each - clock[0]) / (clock[last] - clock[0]));
  for (let rank = 0, s = 0; rank < calls; rank++) {
    const even = rank / (calls - 1);
    while (s < last - 1 && share[s + 1] <= even) s++;
    const step = Math.round(s + Math.min((even - share[s]) / (share[s + 1] - share[s]), 1));
    steps.push(Math.max(step, rank ? steps[rank - 1] + 1 : 0));
  }
  return steps.map((step, rank) => Math.min(step, last + 1 - calls + rank));
}

// The steps that so many calls take, from the last that does not multiply errors by over 5; their
// levels in the whole schedule, and in that of these steps alone.
function courseOf(calls) {
  const all = data.levels, usable = all.findLastIndex(({ beta }) => 1 - beta >= 1 / 25) + 1 || 1;
  const first = all.slice(0, usable);
  const steps = calls < usable ? spreadSteps(first, calls) : first.map((_, step) => step);
  const known = steps.map((step) => all[step]);
  if (steps.length === all.length) return { steps, known, levels: all };
  const betas = known.map(({ time }, k) => -Math.expm1(-2 * (time - (k ? known[k - 1].time : 0))));
  return { steps, known, levels: levelsOf(betas) };
}

// ---- samplers ----

// The coefficients of x, of D, of the D of the step before and of the noise in x's next value.
function move(sampler, levels, k, isFirst) {
  const { beta, signal, variance } = levels[k];
  if (sampler === "ancestral") {
    const size = 1 / Math.sqrt(1 - beta), pull = beta / variance;
    return { x: (1 - pull) * size, data: pull * signal * size, before: 0, noise: k ? Math.sqrt(beta) : 0 };
  }
  const end = k ? levels[k - 1] : { signal: 1, variance: 0 }, x = Math.sqrt(end.variance / variance);
  const share = end.signal - signal * x, snr = logSnr(levels[k]);
  const extrapolates = sampler === "dpm-solver-2m" && k && !isFirst; // DPM-Solver++(2M)
  const more = extrapolates ? (logSnr(end) - snr) / (2 * (snr - logSnr(levels[k + 1]))) : 0;
  return { x, data: share * (1 + more), before: -share * more, noise: 0 };
}

// Now and then tells how far the work is, and looks at the messages; throws once it is called off.
async function pause(job) {
  if (performance.now() - job.since > SLICE) {
    job.tell("progress", { status: "running", done: job.done, of: job.of, ahead: 0 });
    await new Promise((go) => setTimeout(go));
    job.since = performance.now();
  }
  if (stopped.has(job.id)) throw Object.assign(new Error("It was cancelled."), { cancelled: true });
}

// Takes the states xs, changed in place, from b steps to go to `to`. `visit(b, xs, weights)` is told
// of each state before its step; the weights are there where it is `watched`. z(c, k) is noise.
async function descend(job, { denoiser, sampler, course }, xs, b, to, z, visit, watched = false) {
  const { d } = data.points, count = xs.length / d;
  let before = null;
  for (let k = b - 1; k >= to; k--) {
    await pause(job);
    const level = course.known[k];
    const weights = watched || denoiser === "exact" ? posterior(xs, count, level) : null;
    visit(k + 1, xs, weights);
    const means = denoiser === "exact" ? combined(data.points, weights, count) : wiener(xs, count, level);
    const by = move(sampler, course.levels, k, before === null);
    for (let c = 0; c < count; c++) {
      const noise = by.noise ? z(c, k) : null;
      for (let i = 0, at = c * d; i < d; i++, at++) {
        const past = by.before ? by.before * before[at] : 0;
        xs[at] = by.x * xs[at] + by.data * means[at] + past + (noise ? by.noise * noise[i] : 0);
      }
    }
    before = means;
    job.done++;
  }
}

// ---- trunks ----

const refuse = (wrong, detail) => {
  if (wrong) throw Object.assign(new Error(detail), { status: 422 });
};

const idOf = ({ denoiser, sampler, calls, seed, index, branches = [], noise }) => [
  data.id, denoiser, sampler, calls, seed, index,
  ...branches.map(({ step, clone }) => `${step}-${clone}`), ...(noise ? ["given"] : []),
].join(".");

// The place of the step that is nearest to a step of the whole schedule, the first such.
const nearestOf = (steps, step) => steps.reduce(
  (best, each, k) => (Math.abs(each - step) < Math.abs(steps[best] - step) ? k : best), 0);

// The same of a step that somebody asks for.
function placeOf(steps, step, least = 0) {
  const last = data.levels.length - 1;
  refuse(!isWhole(step - least, last - least), `step = ${step} lies outside the schedule, whose steps are ${least} to ${last}.`);
  return nearestOf(steps, step);
}

const cloneKey = (key, b, clone) => foldIn(foldIn(key, START - 1 - clone), b);
const sampleKey = (seed, number) => foldIn(keyOf(seed), number);

const isWhole = (x, most) => Number.isInteger(x) && x >= 0 && x <= most;

function processOf({ denoiser, sampler, calls, seed, index }) {
  const most = data.levels.length;
  refuse(!["exact", "gaussian"].includes(denoiser), `There is no denoiser ${denoiser}; choose exact or gaussian.`);
  refuse(!SAMPLERS.includes(sampler), `There is no sampler ${sampler}; choose from ${SAMPLERS.join(", ")}.`);
  refuse(!isWhole(calls, most) || calls < 2, `calls = ${calls} must be a whole number from 2 to ${most}.`);
  refuse(!isWhole(seed, 2 ** 32 - 1), `seed = ${seed} must be a whole number from 0 to 2^32 - 1.`);
  refuse(!isWhole(index, START - 1024), `index = ${index} must be a whole number from 0 to 2^31 - 1025.`);
  return { denoiser, sampler, course: courseOf(calls) };
}

// A trunk that is kept, or a new one, which begins to run.
function trunkOf(request, again = false) {
  const id = idOf(request), kept = trunks.get(id);
  if (kept && !(again && kept.status === "cancelled")) return kept;
  const process = processOf(request), { steps, known } = process.course, { d } = data.points;
  const branches = (request.branches ?? []).map(({ step, clone }) => ({ b: placeOf(steps, step) + 1, clone }));
  refuse(branches.some(({ clone }) => !isWhole(clone, 10 ** 6)), "A branch needs the number of a clone, from 0.");
  refuse(branches.some(({ b }, i) => i && b >= branches[i - 1].b), "Branches come in the descending order of their steps.");
  const trunk = {
    id, request, process, branches, status: "running", done: 0, fate: null, events: [], listeners: new Set(),
    steps: [...steps.toReversed(), -1], times: [...known.map(({ time }) => time).reverse(), 0],
    states: new Float32Array((steps.length + 1) * d),
    along: { classes: data.labels && [], entropy: data.labels && [], effective: [], projection: [] },
    hear(event, told) {
      if (event !== "progress") this.events.push([event, told]);
      this.listeners.forEach((listener) => listener(event, told));
    },
  };
  trunks.delete(id);
  trunks.set(id, trunk);
  for (const [old, { status }] of trunks) if (trunks.size > KEPT && status !== "running") trunks.delete(old);
  trunk.run = runTrunk(trunk).then(() => { trunk.status = "done"; }, (error) => {
    trunk.status = error.cancelled ? "cancelled" : "failed";
    if (!error.cancelled) throw error;
  });
  return trunk;
}

function reached(trunk, xs, weights) {
  const { d } = data.points, number = trunk.done++;
  trunk.states.set(xs, number * d);
  const found = { ...(weights && said(weights)), projection: projected(xs, 1)[0] };
  for (const [name, value] of Object.entries(found)) trunk.along[name]?.push(value);
  trunk.hear("state", { number, step: trunk.steps[number], time: trunk.times[number], ...found });
}

async function runTrunk(trunk) {
  const { request: { seed, index, noise }, process, branches } = trunk, { d } = data.points;
  const calls = process.course.steps.length, given = (i) => noise.subarray(i * d, (i + 1) * d);
  const job = { id: trunk.id, since: performance.now(), done: 0, of: calls, tell: (...said) => trunk.hear(...said) };
  let key = sampleKey(seed, index), b = calls;
  stopped.delete(trunk.id);
  const xs = noise ? given(0).slice() : normal(foldIn(key, START), d);
  for (const { b: to, clone } of [...branches, { b: 0 }]) {
    const own = key, z = (_, k) => (noise ? given(calls - k) : normal(foldIn(own, k), d));
    await descend(job, process, xs, b, to, z, (_, x, weights) => reached(trunk, x, weights), true);
    [key, b] = [cloneKey(key, to, clone ?? 0), to];
  }
  reached(trunk, xs, null);
  [trunk.fate] = fatesOf(xs, 1);
  trunk.hear("fate", trunk.fate);
}

const bodyOf = ({ id, request, status, steps, times, done, fate, along }) => (
  { id, request, status, steps, times, done, fate, along });

// x at a place of a trunk, once it is there.
async function stateAt(request, place) {
  const { d } = data.points;
  let trunk = trunkOf(request);
  if (trunk.done <= place) await (trunk = trunkOf(request, true)).run;
  refuse(trunk.done <= place, "The trunk was cancelled before it came there.");
  return { trunk, x: trunk.states.slice(place * d, (place + 1) * d) };
}

// ---- clones, and returns ----

// Takes states (count, d) from before step number k to data, a few at a time.
async function runClones(body, process, starts, keys, k, tell) {
  const { d } = data.points, { steps } = process.course, count = keys.length, ends = new Float32Array(count * d);
  const job = { id: body.id, since: performance.now(), done: 0, of: Math.ceil(count / AT_ONCE) * (k + 1), tell };
  Object.assign(body, { status: "running", done: 0, fates: [] });
  body.paths = { steps: [...steps.slice(0, k + 1).reverse(), -1], projection: [] };
  try {
    for (let first = 0; first < count; first += AT_ONCE) {
      const own = keys.slice(first, first + AT_ONCE), xs = starts.slice(first * d, (first + own.length) * d);
      const projection = own.map(() => []);
      const follow = (_, x) => projected(x, own.length).forEach((pair, c) => projection[c].push(pair));
      await descend(job, process, xs, k + 1, 0, (c, at) => normal(foldIn(own[c], at), d), follow);
      follow(0, xs);
      ends.set(xs, first * d);
      const fates = fatesOf(xs, own.length);
      body.fates.push(...fates);
      body.paths.projection.push(...projection);
      body.done += own.length;
      tell("fates", { first, fates, projection });
    }
    body.status = "done";
  } catch (error) {
    if (!error.cancelled) throw error;
    body.status = "cancelled";
  }
  return { body, ends };
}

// From here on the work can be called off.
function begun(id, tell) {
  stopped.delete(id);
  tell("begun", id);
}

function repeated(x, count) {
  const many = new Float32Array(count * x.length);
  for (let c = 0; c < count; c++) many.set(x, c * x.length);
  return many;
}

// ---- what the page may ask for ----

const operations = {
  begin({ pixels, scale, mean, shape, schedule, ...rest }) {
    const d = shape.reduce((a, b) => a * b), n = pixels.length / d;
    const values = Float32Array.from(pixels, (each, i) => Math.fround(each / scale) - mean[i % mean.length]);
    const row = (i) => values.subarray(i * d, (i + 1) * d);
    const squares = Float64Array.from({ length: n }, (_, i) => row(i).reduce((sum, x) => sum + x * x, 0));
    const { beta, alpha_bar: squared, noise_variance: variances, time } = schedule;
    const levels = Array.from(beta, (each, s) => (
      { beta: each, signal: Math.sqrt(squared[s]), variance: variances[s], time: time[s] }));
    data = { ...rest, points: { values, n, d }, squares, levels };
  },

  async trunk({ request }, tell) {
    const trunk = trunkOf(request, true);
    tell("begun", trunk.id);
    trunk.events.forEach((event) => tell(...event));
    trunk.listeners.add(tell);
    try {
      await trunk.run;
    } finally {
      trunk.listeners.delete(tell);
    }
    return bodyOf(trunk);
  },

  async state({ request, step }) {
    const { steps, known } = processOf(request).course, all = [...steps.toReversed(), -1];
    const place = placeOf(all, step, -1), level = known[steps.length - 1 - place], { x } = await stateAt(request, place);
    return { step: all[place], time: level?.time ?? 0, x, posterior: level ? posteriorOf(x, level) : null };
  },

  denoise({ x, step, names }) {
    const level = data.levels[step];
    refuse(!level, `step = ${step} must lie between 0 and ${data.levels.length - 1}.`);
    const predict = { exact: () => combined(data.points, posterior(x, 1, level), 1), gaussian: () => wiener(x, 1, level) };
    return Object.fromEntries((names ?? Object.keys(predict)).map((name) => [name, Float32Array.from(predict[name]())]));
  },

  async forks({ request, step, clones, first }, tell) {
    const process = processOf(request), { steps, known } = process.course, k = placeOf(steps, step);
    refuse(!isWhole(clones - 1, 127) || !isWhole(first, 10 ** 6), "Give 1 to 128 clones, the first numbered from 0.");
    const id = `${idOf(request)}~forks.${steps[k]}.${clones}.${first}`;
    begun(id, tell);
    const { trunk, x } = await stateAt(request, steps.length - 1 - k);
    const above = trunk.branches.filter(({ b }) => b >= k + 1);
    const key = above.reduce((own, { b, clone }) => cloneKey(own, b, clone), sampleKey(request.seed, request.index));
    const keys = Array.from({ length: clones }, (_, c) => cloneKey(key, k + 1, first + c));
    const body = { id, trunk: trunk.id, step: steps[k], time: known[k].time, clones, first };
    return runClones(body, process, repeated(x, clones), keys, k, tell);
  },

  async uturn({ request, step, returns, image, name }, tell) {
    const process = processOf(request), { steps, known, levels } = process.course, k = placeOf(steps, step);
    refuse(!isWhole(returns - 1, 127), "Give 1 to 128 returns.");
    const body = { id: `${idOf(request)}~uturns.${steps[k]}.${returns}.${name}`, step: steps[k], time: known[k].time, returns };
    begun(body.id, tell);
    const own = Array.from({ length: returns }, (_, r) => sampleKey(request.seed, request.index + r));
    const turning = repeated(image, returns), { signal, variance } = levels[k], d = image.length;
    own.forEach((key, r) => normal(foldIn(key, START), d).forEach((z, i) => {
      turning[r * d + i] = signal * image[i] + Math.sqrt(variance) * z;
    }));
    const found = await runClones(body, process, turning, own.map((key) => cloneKey(key, k + 1, 0)), k, tell);
    return { ...found.body, start: image, turning, ends: found.ends, start_fate: fatesOf(image, 1)[0] };
  },

  cancel: (id) => void stopped.add(id),
};

async function answer({ data: { call, name, argument } }) {
  try {
    const found = await operations[name](argument, (event, told) => postMessage({ call, event, told }));
    postMessage({ call, found });
  } catch (error) {
    postMessage({ call, error: { detail: error.message, status: error.status ?? 500 } });
  }
}

if (typeof WorkerGlobalScope !== "undefined") onmessage = answer;
