// phi(t) and phi_C(t) as result.json has them, and what forks gave, with intervals.
import { interval, path, resized, shape, short, wilson } from "elements";

const HEIGHT = 190;
const TOP = 8;
const BOTTOM = 182;
const y = (value) => BOTTOM - (BOTTOM - TOP) * value;

const symbol = (kind) => (kind === "phi" ? ["φ"] : ["φ", shape("tspan", { class: "sub", dy: 3 }, "C")]);

function drawCurve(svg, kind, curve, scale, width) {
  const kept = curve.time.map((t, i) => [t, i]).filter(([t]) => scale.within(t)).reverse();
  if (!kept.length) return;
  const line = (values) => kept.map(([t, i]) => [scale.x(t, width), y(values[i])]);
  const low = curve.low ?? curve.mean;
  const high = curve.high ?? curve.mean;
  svg.append(shape("path", { class: `range ${kind}`, d: path([...line(low), ...line(high).reverse()]) }));
  svg.append(shape("path", { class: `line ${kind}`, d: path(line(curve.mean)) }));
  // The label stands where the curve is nearest to 0.7.
  const off = ([, i]) => Math.abs(curve.mean[i] - 0.7);
  const [t, i] = kept.reduce((best, each) => (off(each) < off(best) ? each : best), kept[0]);
  svg.append(shape("text", { class: `name ${kind}`, x: scale.x(t, width) - 6, y: y(curve.mean[i]) - 4 }, ...symbol(kind)));
}

function drawPoint(svg, { kind, time, value, low, high, said }, scale, width) {
  const x = scale.x(time, width) + (kind === "phi" ? -2 : 2); // apart where both stand at one time
  const mark = kind === "phi"
    ? shape("circle", { cx: x, cy: y(value), r: 4 })
    : shape("path", { d: `M${x - 5} ${y(value)}L${x} ${y(value) - 5}L${x + 5} ${y(value)}L${x} ${y(value) + 5}Z` });
  svg.append(shape("g", { class: `point ${kind}` }, shape("title", {}, said), shape("path", { d: path([[x, y(low)], [x, y(high)]]) }), mark));
}

// Args: scale, regimes: result.json, points: see `pooled`, cursor: its time or null.
export function drawCurves(svg, { scale, regimes, points, cursor }) {
  const width = resized(svg, HEIGHT);
  const level = (value, kind) => svg.append(shape("path", { class: kind, d: path([[scale.left, y(value)], [scale.x(0, width), y(value)]]) }));
  for (const value of [0, 0.5, 1]) {
    level(value, "grid");
    svg.append(shape("text", { class: "value", x: scale.left - 5, y: y(value) + 4 }, String(value)));
  }
  if (regimes?.phi_floor) level(regimes.phi_floor, "floor");
  const x = cursor === null ? null : scale.x(cursor, width);
  if (x !== null) svg.append(shape("path", { class: "cursor", d: path([[x, TOP - 4], [x, HEIGHT]]) }));
  for (const kind of ["phi", "phi_C"]) if (regimes?.curves?.[kind]) drawCurve(svg, kind, regimes.curves[kind], scale, width);
  for (const each of points) drawPoint(svg, each, scale, width);
  svg.setAttribute("aria-label", ["phi and phi_C over t", ...points.map(({ said }) => said)].join("; "));
}

// One point a step and measure: the pairs of all forks there, whatever their trunk.
export function pooled(forks) {
  const steps = new Map();
  for (const fork of forks) {
    for (const kind of ["phi", "phi_C"]) {
      if (!fork[kind]?.pairs) continue;
      const key = `${kind} ${fork.step}`;
      const sum = steps.get(key) ?? { kind, time: fork.time, same: 0, pairs: 0, trunks: new Set() };
      sum.same += fork[kind].same;
      sum.pairs += fork[kind].pairs;
      sum.trunks.add(fork.trunk);
      steps.set(key, sum);
    }
  }
  return [...steps.values()].map((sum) => {
    const fraction = wilson(sum.same, sum.pairs);
    const trunks = `${sum.trunks.size} trunk${sum.trunks.size > 1 ? "s" : ""}`;
    const said = `${sum.kind} at t = ${short(sum.time)} is ${interval(fraction)} (${sum.same} of ${sum.pairs} pairs, ${trunks})`;
    return { ...sum, ...fraction, said };
  });
}
