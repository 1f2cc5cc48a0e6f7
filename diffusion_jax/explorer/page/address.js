// The whole state of the page in the address's fragment, so that a link shows the same.
const NUMBERS = ["calls", "seed", "index", "step"];
const NAMES = ["model", "denoiser", "sampler"];
const MOST = { clones: 128, first: 1e6, index: 2 ** 31 - 1025, returns: 128 };

const branchesText = (branches) => branches.map(({ step, clone }) => `${step}-${clone}`).join("_");

// Whole numbers between separators by their names, or null where one is missing, no such or too large.
function numbersOf(text, separator, names) {
  const parts = text.split(separator);
  const fits = names.every((name, i) => /^\d{1,10}$/.test(parts[i]) && Number(parts[i]) <= (MOST[name] ?? Infinity));
  return fits && parts.length === names.length ? Object.fromEntries(names.map((name, i) => [name, Number(parts[i])])) : null;
}

const branchesOf = (text) => text.split("_").map((pair) => numbersOf(pair, "-", ["step", "clone"])).filter(Boolean);

export const forkText = ({ index, step, clones, first, branches }) =>
  [index, step, clones, first, branchesText(branches)].join(":").replace(/:$/, "");

function forkOf(text) {
  const parts = text.split(":");
  const fork = numbersOf(parts.slice(0, 4).join(":"), ":", ["index", "step", "clones", "first"]);
  return fork?.clones ? { ...fork, branches: branchesOf(parts[4] ?? "") } : null;
}

export function toFragment(state) {
  const parts = [...NAMES, ...NUMBERS]
    .filter((name) => state[name] !== null && state[name] !== undefined)
    .map((name) => `${name}=${encodeURIComponent(state[name])}`);
  if (state.branches.length) parts.push(`branches=${branchesText(state.branches)}`);
  if (state.forks.length) parts.push(`forks=${state.forks.map(forkText).join(",")}`);
  if (state.uturn) parts.push(`uturn=${state.uturn.index}:${state.uturn.step}:${state.uturn.returns}`);
  return `#${parts.join("&")}`;
}

// What is missing or malformed is left out.
export function fromFragment(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = {};
  for (const name of NAMES) if (given.get(name)) state[name] = given.get(name);
  for (const name of NUMBERS) if (/^-?\d+$/.test(given.get(name) ?? "")) state[name] = Number(given.get(name));
  state.branches = branchesOf(given.get("branches") ?? "");
  state.forks = (given.get("forks") ?? "").split(",").filter(Boolean).map(forkOf).filter(Boolean);
  state.uturn = numbersOf(given.get("uturn") ?? "", ":", ["index", "step", "returns"]);
  return state;
}
