// The time axis: a slider over the visited states, with the regimes' times as ticks.
import { element, path, resized, shape, short } from "elements";
import { nearestTime } from "scale";

// The times that are ticks: what stands below t, and after it.
const SYMBOLS = { t_S_phi: ["S", "φ"], t_S_spectrum: ["S", "Λ"], t_S_rate: ["S", "entropy peak"], t_C_phi: ["C", "φ"] };
const LANE = 15;
const BAND = 16;

const symbol = (name, below) => ["t", ...below(SYMBOLS[name][0]), SYMBOLS[name][1]];

// [name, time] of the regimes that a model has.
const known = (regimes, scale) =>
  Object.keys(SYMBOLS)
    .filter((name) => regimes?.[name] && scale.within(regimes[name].value))
    .map((name) => [name, regimes[name]]);

// Flags to the right of their ticks, in as many lanes as keep them apart; gives their height.
function drawRegimes(svg, regimes, scale, width) {
  const placed = [];
  for (const [name, { value }] of known(regimes, scale).sort((a, b) => a[1].value - b[1].value)) {
    const text = shape("text", { class: "regime" }, ...symbol(name, (letter) => [shape("tspan", { dy: 3, class: "sub" }, letter), shape("tspan", { dy: -3 }, " ")]));
    svg.append(text);
    const tick = scale.x(value, width);
    const end = tick + text.getComputedTextLength() + 10;
    const crossed = placed.filter((other) => other.tick <= end).map((other) => other.lane + 1);
    placed.push({ text, tick, lane: Math.max(0, ...crossed) });
  }
  const height = 4 + LANE * Math.max(0, ...placed.map(({ lane }) => lane + 1));
  for (const { text, tick, lane } of placed) {
    const y = height - 4 - lane * LANE;
    text.setAttribute("x", tick + 4);
    text.setAttribute("y", y);
    svg.append(shape("path", { class: "tick strong", d: path([[tick, y - 10], [tick, height + BAND]]) }));
  }
  return height;
}

// p(c | x_t) of the states so far, stacked.
function drawBand(svg, { times, classes }, scale, width, top) {
  if (!classes?.[0]) return;
  let below = classes.map(() => 0);
  for (let c = 0; c < classes[0].length; c++) {
    const above = classes.map((p, i) => below[i] + p[c]);
    const line = (heights) => heights.map((h, i) => [scale.x(times[i], width), top + BAND * (1 - h)]);
    svg.append(shape("path", { class: `area c${c % 10}`, d: path([...line(below), ...line(above).reverse()]) }));
    below = above;
  }
}

export function makeAxis(slider, move) {
  const svg = shape("svg", { "aria-hidden": "true" });
  slider.append(svg);
  let now = null; // what is shown: {scale, regimes, number, times and classes so far}
  const goto = (event) => {
    if (!now) return;
    const box = svg.getBoundingClientRect();
    move(nearestTime(now.times, now.scale.t(event.clientX - box.left, box.width)));
  };
  slider.addEventListener("pointerdown", (event) => {
    slider.setPointerCapture(event.pointerId);
    goto(event);
  });
  slider.addEventListener("pointermove", (event) => slider.hasPointerCapture(event.pointerId) && goto(event));

  function draw() {
    if (!now) return;
    const { scale, regimes, times, number } = now;
    const width = resized(svg, 10);
    const top = drawRegimes(svg, regimes, scale, width);
    const bottom = top + BAND;
    const height = bottom + 22;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    drawBand(svg, now, scale, width, top);
    svg.append(shape("rect", { class: "frame", x: scale.left, y: top, width: scale.x(0, width) - scale.left, height: BAND }));
    for (const t of [...scale.decades(), 0]) {
      const x = scale.x(t, width);
      svg.append(shape("path", { class: "tick", d: path([[x, bottom], [x, bottom + 5]]) }));
      svg.append(shape("text", { class: "mark", x, y: bottom + 17 }, t ? String(t) : "data"));
    }
    if (times.length) {
      const x = scale.x(times[number], width);
      svg.append(shape("path", { class: "thumb", d: `M${x - 6} ${bottom + 8}L${x} ${bottom}L${x + 6} ${bottom + 8}Z` }));
      svg.append(shape("path", { class: "cursor", d: path([[x, top - 2], [x, bottom]]) }));
    }
  }
  new ResizeObserver(draw).observe(slider);
  return {
    show(shown, text) {
      now = shown;
      slider.setAttribute("aria-valuemax", Math.max(0, shown.times.length - 1));
      slider.setAttribute("aria-valuenow", shown.number);
      slider.setAttribute("aria-valuetext", text);
      draw();
    },
  };
}

// Buttons that go to the regimes' times.
export const jumps = (regimes, scale, go) => known(regimes, scale).map(([name, { value }]) =>
  element("button", { type: "button", class: "quiet", click: () => go(value) }, ...symbol(name, (letter) => [element("sub", {}, letter), " "]), ` = ${short(value)}`));
