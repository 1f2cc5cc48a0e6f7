// What is chosen and what has been computed for it; knows nothing of the document.
import { forkText, fromFragment, toFragment } from "address";
import { makeScale } from "scale";

const PLAIN = { model: null, denoiser: null, sampler: null, calls: null, seed: 0, index: 0, branches: [], step: null, forks: [], uturn: null };
const FRAME = 40; // ms between drawings of a trunk that runs

// Where the cursor rests: at the state nearest to t_S, where a fork tells most; else at the data.
function restingPlace({ times, done }, { t_S_phi, t_S_spectrum }) {
  const t = t_S_phi?.value ?? t_S_spectrum?.value;
  const distance = (place) => Math.abs(Math.log(times[place] / t));
  return t > 0 ? times.reduce((best, _, place) => (distance(place) < distance(best) ? place : best), 0) : done - 1;
}

// Args: source, worker; draw(what): "state" at the cursor and all else, "fork", or "drawing" alone.
export function makeSession(source, worker, draw) {
  const trunks = new Map(); // done, by their request
  const session = {
    state: { ...PLAIN }, // what the address holds; step null: the cursor follows the trunk, and rests at t_S
    model: null,
    regimes: null,
    scale: null,
    trunk: null, // as GET /v1/trunks/{id} gives it, as far as it is there
    number: 0, // of the visited state at the cursor
    forks: new Map(), // by forkText: the body, with its sample's index and branches, and ends
    shown: null, // key of the fork shown
    turn: null,
  };
  const { state, forks } = session;
  const step = () => session.trunk.steps[session.number];
  const differs = (chosen) => Object.entries(chosen).some(([name, value]) => state[name] !== value);
  let saying = null;
  let drawn = 0; // when a running trunk was drawn last
  // At rest, since browsers refuse to be told of every frame.
  function say() {
    clearTimeout(saying);
    saying = setTimeout(() => history.replaceState(null, "", toFragment(state)), 150);
  }

  function requestOf({ index, branches }) {
    const { model, denoiser, sampler, calls, seed } = state;
    return { model, denoiser, sampler, calls, seed, index, branches };
  }

  function addState(trunk, { number, step, time, classes, projection }) {
    trunk.steps[number] = step;
    trunk.times[number] = time;
    if (classes) trunk.along.classes[number] = classes;
    trunk.along.projection[number] = projection;
    trunk.done = number + 1;
    const moves = state.step === null || step >= state.step; // on to where the cursor was
    if (moves) session.number = number;
    if (performance.now() < drawn + FRAME) return;
    drawn = performance.now();
    draw(moves ? "state" : "drawing");
  }

  async function run() {
    const request = requestOf(state);
    const trunk = { id: null, request, steps: [], times: [], done: 0, along: { classes: [], projection: [] } };
    Object.assign(session, { trunk, number: 0 });
    say();
    draw("drawing");
    const handlers = { begun: (id) => (trunk.id = id), state: (event) => addState(trunk, event) };
    const done = await worker.run("trunks", "The trunk runs", handlers, (guarded) => source.trunk(request, guarded));
    if (!done) return false;
    session.trunk = done;
    if (state.step === null) session.number = restingPlace(done, session.model.regimes);
    trunks.set(JSON.stringify(request), done);
    draw("state");
    return true;
  }

  // Clones of the trunk {index, branches}, which is run first where it has not been.
  async function fork(asked) {
    const { step, clones, first, index, branches } = asked;
    const request = requestOf(asked);
    const key = forkText(asked);
    const known = JSON.stringify(request);
    if (!trunks.has(known)) {
      const trunk = await worker.run("trunks", `The trunk of sample ${index} runs`, {}, (handlers) => source.trunk(request, handlers));
      if (!trunk) return false;
      trunks.set(known, trunk);
    }
    const begun = { ...asked, time: session.model.times[step], status: "running", done: 0, fates: [], paths: { projection: [] } };
    forks.set(key, begun);
    session.shown = key;
    draw("fork");
    const fates = ({ first: from, fates: some, projection }) => {
      some.forEach((fate, i) => (begun.fates[from + i] = fate));
      projection?.forEach((line, i) => (begun.paths.projection[from + i] = line));
      begun.done = begun.fates.filter(Boolean).length;
      draw("fork");
    };
    const done = await worker.run("forks", `${clones} clones run`, { fates }, async (handlers) => {
      const body = await source.forks(trunks.get(known), { step, clones, first }, handlers);
      return body.status === "done" ? { ...body, ends: await source.ends(body) } : body;
    });
    if (forks.get(key) !== begun) return false;
    if (done) forks.set(key, { ...done, index, branches });
    else forks.delete(key);
    const others = state.forks.filter((each) => forkText(each) !== key);
    state.forks = done ? [...others, asked] : others;
    say();
    draw("fork");
    return Boolean(done);
  }

  function clear() {
    forks.clear();
    trunks.clear();
    Object.assign(state, { branches: [], forks: [], uturn: null });
    Object.assign(session, { shown: null, turn: null });
  }

  // The U-turn shown is of the sample that was, whose noise it took.
  function toSample(index) {
    if (index === state.index) return;
    Object.assign(state, { index, branches: [], uturn: null });
    session.turn = null;
  }

  return Object.assign(session, {
    step,
    run,
    fork,
    shownFork: () => forks.get(session.shown) ?? null,
    moveTo(number) {
      if (!session.trunk?.done) return;
      session.number = Math.min(Math.max(number, 0), session.trunk.done - 1);
      state.step = step();
      draw("state");
      say();
    },
    // The clones of the state at the cursor that come after those that are there.
    forkHere(clones) {
      const at = { index: state.index, branches: state.branches.filter((branch) => branch.step > step()), step: step(), clones: 0, first: 0 };
      const there = [...forks.values()].filter((each) => forkText({ ...each, clones: 0, first: 0 }) === forkText(at));
      state.step = step();
      return fork({ ...at, clones, first: Math.max(0, ...there.map((each) => each.first + each.clones)) });
    },
    goTo(index, branches, step) {
      toSample(index);
      Object.assign(state, { branches, step });
      return run();
    },
    // image: {index}, or {png} of a file, which no address can hold.
    async uturn(image, step, returns) {
      const { branches, ...request } = requestOf(state);
      const turn = await worker.run("uturns", "The U-turn runs", {}, (handlers) => source.uturn({ ...request, step, returns, image }, handlers));
      if (!turn) return;
      session.turn = turn;
      state.uturn = image.index === undefined ? null : { index: image.index, step, returns };
      say();
      draw("fork");
    },
    differs,
    // Other settings than the sample's index: forks of the old ones are no longer comparable.
    choose(chosen) {
      if (differs({ ...chosen, index: state.index })) clear();
      toSample(chosen.index);
      Object.assign(state, chosen);
    },
    async open(id) {
      clear();
      const [model, regimes] = [await source.model(id), await source.regimes(id)];
      Object.assign(session, { model, regimes, scale: makeScale(model.times) });
      const known = (list, name) => (list.some((each) => each.name === name) ? name : list[0].name);
      Object.assign(state, { model: id, denoiser: known(model.denoisers, state.denoiser), sampler: known(model.samplers, state.sampler), calls: state.calls ?? model.calls.default });
    },
    // All that an address holds, computed again. ready(wrong): before it runs, with what is not as asked.
    async restore(fragment, ready) {
      const asked = { ...PLAIN, ...fromFragment(fragment) };
      Object.assign(state, asked);
      await session.open(asked.model ?? (await source.models())[0].id);
      Object.assign(state, { branches: asked.branches, forks: asked.forks, uturn: asked.uturn });
      const unknown = ["denoiser", "sampler"].filter((name) => asked[name] && asked[name] !== state[name]);
      ready(unknown.map((name) => `There is no ${name} “${asked[name]}”: this is ${state[name]}.`).join(" "));
      if (!(await run())) return;
      for (const each of asked.forks) if (!(await fork(each))) return;
      if (asked.uturn) await session.uturn({ index: asked.uturn.index }, asked.uturn.step, asked.uturn.returns);
    },
  });
}
