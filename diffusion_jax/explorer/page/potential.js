// For two Gaussians at +-m: the potential of x_t's component along m, and the state in it.
import { path, resized, shape, short } from "elements";

const HEIGHT = 180;

// V(q) = -log p_t(q) + const; p_t is the even mixture of N(+-sqrt(d) mu e^-t, Delta_t + sigma^2 e^-2t).
export function potential({ dimension, mu, sigma }, t) {
  const centre = Math.sqrt(dimension) * mu * Math.exp(-t);
  const variance = -Math.expm1(-2 * t) + sigma ** 2 * Math.exp(-2 * t);
  // log cosh without overflow, from both Gaussians' common factor
  const logCosh = (u) => Math.abs(u) + Math.log1p(Math.exp(-2 * Math.abs(u))) - Math.LN2;
  return { centre, variance, V: (q) => (q ** 2 + centre ** 2) / (2 * variance) - logCosh((q * centre) / variance) };
}

export const overlap = (x) => x.reduce((sum, value) => sum + value, 0) / Math.sqrt(x.length);

export function drawPotential(svg, mixture, t, x) {
  const width = resized(svg, HEIGHT);
  const { centre, variance, V } = potential(mixture, t);
  const q = overlap(x);
  const most = Math.max(3 * Math.sqrt(variance) + Math.abs(centre), Math.abs(q)) * 1.05;
  const grid = Array.from({ length: 201 }, (_, i) => most * (i / 100 - 1));
  const bottom = grid.reduce((least, each) => Math.min(least, V(each)), Infinity);
  const height = Math.max(4, V(q) - bottom);
  const at = (each) => [((each + most) / (2 * most)) * width, 150 - (130 * (V(each) - bottom)) / height];
  svg.append(shape("path", { class: "line phi", d: path(grid.map(at).filter(([, y]) => y > 2)) }));
  const [px, py] = at(q);
  svg.append(shape("circle", { class: "here", cx: px, cy: py, r: 6 }));
  for (const each of [-centre, 0, centre]) svg.append(shape("text", { class: "mark", x: at(each)[0], y: 172 }, short(each)));
  svg.setAttribute("aria-label", `Potential at t = ${short(t)} with minima near ${short(-centre)} and ${short(centre)}; the state is at q = ${short(q)}`);
}
