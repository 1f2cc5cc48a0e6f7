// The whole state of the page in the address's fragment, so that a link shows the same.
const NUMBERS = ["calls", "seed", "index", "step"];
const NAMES = ["model", "denoiser", "sampler"];

const branchesText = (branches) => branches.map(({ step, clone }) => `${step}-${clone}`).join("_");

function branchesOf(text) {
  const pairs = text.split("_").filter(Boolean).map((pair) => pair.split("-").map(Number));
  return pairs.map(([step, clone]) => ({ step, clone })).filter(({ step, clone }) => Number.isInteger(step) && Number.isInteger(clone));
}

export const forkText = ({ index, step, clones, first, branches }) =>
  [index, step, clones, first, branchesText(branches)].join(":").replace(/:$/, "");

function forkOf(text) {
  const [index, step, clones, first] = text.split(":").slice(0, 4).map(Number);
  const fork = { index, step, clones, first, branches: branchesOf(text.split(":")[4] ?? "") };
  return [index, step, clones, first].every(Number.isInteger) ? fork : null;
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
  const [index, step, returns] = (given.get("uturn") ?? "").split(":").map(Number);
  state.uturn = [index, step, returns].every(Number.isInteger) ? { index, step, returns } : null;
  return state;
}
