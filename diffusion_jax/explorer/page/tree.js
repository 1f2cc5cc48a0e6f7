// Trunk and clones in the first two principal components of the training images.
import { path, resized, shape } from "elements";

const HEIGHT = 260;
const MARGIN = 14;

// Maps points to the drawing with one scale for both axes.
function frame(points, width) {
  const ends = [0, 1].map((axis) => points.map((p) => p[axis]));
  const [low, high] = [ends.map((v) => v.reduce((a, b) => Math.min(a, b))), ends.map((v) => v.reduce((a, b) => Math.max(a, b)))];
  const scale = Math.min((width - 2 * MARGIN) / (high[0] - low[0] || 1), (HEIGHT - 2 * MARGIN) / (high[1] - low[1] || 1));
  return ([a, b]) => [width / 2 + scale * (a - (low[0] + high[0]) / 2), HEIGHT / 2 - scale * (b - (low[1] + high[1]) / 2)];
}

// Args: trunk [[a, b]..] of the states so far, forks with `paths` and `fates`, number of the state at the cursor.
export function drawTree(svg, trunk, forks, number) {
  const width = resized(svg, HEIGHT);
  if (!trunk.length) return;
  const clones = forks.flatMap((fork) => (fork.paths?.projection ?? []).map((line, i) => ({ line, fate: fork.fates[i] })).filter(({ line }) => line));
  const place = frame([...trunk, ...clones.flatMap(({ line }) => line)], width);
  for (const { line, fate } of clones) {
    const [x, y] = place(line.at(-1));
    const kind = `c${(fate?.class ?? 0) % 10}`;
    svg.append(shape("path", { class: `branch ${kind}`, d: path(line.map(place)) }), shape("circle", { class: `leaf ${kind}`, cx: x, cy: y, r: 2.5 }));
  }
  svg.append(shape("path", { class: "trunk", d: path(trunk.map(place)) }));
  const [x, y] = place(trunk[number]);
  svg.append(shape("circle", { class: "here", cx: x, cy: y, r: 6 }));
  svg.setAttribute("aria-label", `Tree: a trunk and ${clones.length} clones; the cursor is at ${trunk[number].map((v) => v.toFixed(1)).join(", ")}`);
}
