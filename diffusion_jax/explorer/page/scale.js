// Time t from noise (left) to data (right), logarithmic; t = 0 has a place of its own at the end.
const LEFT = 30;
const RIGHT = 22;
const GAP = 26;

export function makeScale(times) {
  const most = Math.log(Math.max(...times));
  const least = Math.log(Math.min(...times.filter((t) => t > 0)));
  const room = (width) => width - LEFT - RIGHT - GAP;
  return {
    left: LEFT,
    x: (t, width) => (t > 0 ? LEFT + (room(width) * (most - Math.log(t))) / (most - least) : width - RIGHT),
    t: (x, width) => (x > width - RIGHT - GAP / 2 ? 0 : Math.exp(most - ((x - LEFT) / room(width)) * (most - least))),
    within: (t) => Math.log(t) <= most + 1e-9 && Math.log(t) >= least - 1e-9,
    decades: () => {
      const powers = [];
      for (let p = Math.ceil(least / Math.LN10); p <= most / Math.LN10; p++) powers.push(Number(`1e${p}`));
      return powers;
    },
  };
}

// The place in `times`, which descend, that is nearest to t.
export function nearestTime(times, t) {
  const far = (other) => Math.abs(t > 0 && other > 0 ? Math.log(other / t) : t === other ? 0 : 1e9);
  return times.reduce((best, other, i) => (far(other) < far(times[best]) ? i : best), 0);
}
