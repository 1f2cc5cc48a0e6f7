// The exact and the Gaussian score of the data, and what a state says. It runs between noise.js and
// engine.js in one worker. Arrays of several states or rows are flat, one behind another.

const NEGLIGIBLE = 1e-12; // a weight that changes nothing in single precision

let data = null; // what the page sends first, see `begin` in engine.js

// Inner products of all rows (n, d) with `count` vectors, as (count, n); four rows a pass.
function products({ values, n, d }, xs, count) {
  const result = new Float64Array(count * n);
  for (let row = 0; row < n; row += 4) {
    const [p, q, r, s] = [0, 1, 2, 3].map((i) => Math.min(row + i, n - 1));
    for (let c = 0; c < count; c++) {
      let one = 0, two = 0, three = 0, four = 0;
      for (let i = 0, x = c * d, a = p * d, b = q * d, e = r * d, f = s * d; i < d; i++) {
        const value = xs[x + i];
        one += value * values[a + i];
        two += value * values[b + i];
        three += value * values[e + i];
        four += value * values[f + i];
      }
      [result[c * n + p], result[c * n + q], result[c * n + r], result[c * n + s]] = [one, two, three, four];
    }
  }
  return result;
}

// Sums of the rows with weights (count, n), as (count, d); those that weigh nothing are skipped.
function combined({ values, n, d }, weights, count) {
  const result = new Float64Array(count * d), rows = new Int32Array(n + 3), shares = new Float64Array(n + 3);
  for (let c = 0; c < count; c++) {
    let some = 0;
    for (let row = 0; row < n; row++) {
      const weight = weights[c * n + row];
      if (Math.abs(weight) > NEGLIGIBLE) [rows[some], shares[some++]] = [row * d, weight];
    }
    rows.fill(0, some, some + 3);
    shares.fill(0, some, some + 3);
    for (let k = 0, at = c * d; k < some; k += 4) {
      const p = rows[k], q = rows[k + 1], r = rows[k + 2], s = rows[k + 3];
      const one = shares[k], two = shares[k + 1], three = shares[k + 2], four = shares[k + 3];
      for (let i = 0; i < d; i++) {
        result[at + i] += one * values[p + i] + two * values[q + i] + three * values[r + i] + four * values[s + i];
      }
    }
  }
  return result;
}

// -|x_t - e^-t a_nu|^2/(2 Delta_t) + |x_t|^2/(2 Delta_t) of the training points, (count, n).
function logitsOf(xs, count, { signal, variance }) {
  const { squares, points } = data;
  return products(points, xs, count).map((along, i) => signal * (along - signal * squares[i % points.n] / 2) / variance);
}

// p(nu | x_t), the softmax of the logits, over the training points, (count, n).
function posterior(xs, count, level, weights = logitsOf(xs, count, level)) {
  const { n } = data.points;
  for (let from = 0; from < count * n; from += n) {
    let top = -Infinity, total = 0;
    for (let i = 0; i < n; i++) if (weights[from + i] > top) top = weights[from + i];
    for (let i = 0; i < n; i++) total += weights[from + i] = Math.exp(weights[from + i] - top);
    for (let i = 0; i < n; i++) weights[from + i] /= total;
  }
  return weights;
}

// E[a | x_t] = m + C e^-t (e^-2t C + Delta)^-1 (x_t - e^-t m), C = V'diag(l)V + f (1 - V'V).
function wiener(xs, count, { signal, variance }) {
  const { modes, eigenvalues, floor, mean } = data.gaussian, { n, d } = modes;
  const filter = (c) => signal * c / (signal * signal * c + variance), outside = filter(floor);
  const centred = xs.map((x, i) => x - signal * mean[i % d]);
  const along = products(modes, centred, count).map((w, i) => (filter(eigenvalues[i % n]) - outside) * w);
  return combined(modes, along, count).map((each, i) => mean[i % d] + outside * centred[i] + each);
}

// p(c | x_t), its entropy, and exp(entropy) of p(nu | x_t); `from` is where its weights begin.
function said(weights, from = 0) {
  const { names, labels, points: { n } } = data, classes = new Array(names.length).fill(0);
  const entropyOf = (sum, p) => (p > 0 ? sum - p * Math.log(p) : sum);
  const own = weights.subarray(from, from + n);
  if (labels) own.forEach((p, i) => { classes[labels[i]] += p; });
  return {
    classes: labels ? classes : null,
    entropy: labels ? classes.reduce(entropyOf, 0) : null,
    effective: Math.exp(own.reduce(entropyOf, 0)),
  };
}

const classOf = (index) => (data.labels ? data.labels[index] : null);

// The same with the eight nearest training images, by their logits: the weights may be 0.
function posteriorOf(x, level) {
  const logits = logitsOf(x, 1, level), weights = posterior(x, 1, level, logits.slice());
  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b).slice(0, 8);
  return { ...said(weights), nearest: order.map((index) => ({ index, weight: weights[index], class: classOf(index) })) };
}

// Components along the first two modes of the data; data of one mode have no second.
function projected(xs, count) {
  const { values, n, d } = data.gaussian.modes, kept = Math.min(n, 2);
  const along = products({ values, n: kept, d }, xs, count);
  return Array.from({ length: count }, (_, c) => [along[c * kept], kept > 1 ? along[c * kept + 1] : 0]);
}

// Where clean images came to lie: the nearest training image, and how much nearer than the next.
function fatesOf(xs, count) {
  const { values, n, d } = data.points, weights = posterior(xs, count, data.levels[0]);
  return Array.from({ length: count }, (_, c) => {
    let best = -1, least = Infinity, second = Infinity;
    for (let row = 0; row < n; row++) {
      let sum = 0;
      for (let i = 0; i < d && sum < second; i++) sum += (xs[c * d + i] - values[row * d + i]) ** 2;
      if (sum < least) [second, least, best] = [least, sum, row];
      else if (sum < second) second = sum;
    }
    const ratio = second > 0 ? Math.sqrt(least / second) : 1, own = classOf(best);
    const probability = own === null ? null : said(weights, c * n).classes[own];
    return { class: own, probability, nearest: best, ratio, memorised: ratio < 1 / 3 };
  });
}

