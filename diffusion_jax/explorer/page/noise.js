"use strict";
// JAX's random numbers: the counter-based generator threefry2x32 (Salmon et al. 2011) and normal
// noise from its bits, so that a seed gives the same noise here as in Python.
// A key is a pair of unsigned integers of 32 bits.

const ROTATIONS = [13, 15, 26, 6, 17, 29, 16, 24];
// Polynomials of erfinv in single precision (Giles 2010), highest power first: the middle, the tail.
const MIDDLE = [
  2.81022636e-8, 3.43273939e-7, -3.5233877e-6, -4.39150654e-6, 2.1858087e-4, -1.25372503e-3,
  -4.17768164e-3, 0.246640727, 1.50140941,
];
const TAIL = [
  -2.00214257e-4, 1.00950558e-4, 1.34934322e-3, -3.67342844e-3, 5.73950773e-3, -7.6224613e-3,
  9.43887047e-3, 1.00167406, 2.83297682,
];

// The 64 bits that a key makes of a counter: of 32 each, left in `out` since this runs for each pixel.
const out = new Uint32Array(2);
function threefry(key, first, second) {
  const one = key[0], other = key[1], both = one ^ other ^ 0x1bd11bda;
  let x = (first + one) | 0, y = (second + other) | 0, round = 0;
  for (let group = 1; group <= 5; group++) {
    for (let i = 0; i < 4; i++, round = (round + 1) & 7) {
      const turn = ROTATIONS[round];
      x = (x + y) | 0;
      y = ((y << turn) | (y >>> (32 - turn))) ^ x;
    }
    const place = group % 3;
    x = (x + (place === 0 ? one : place === 1 ? other : both)) | 0;
    y = (y + (place === 0 ? other : place === 1 ? both : one) + group) | 0;
  }
  out[0] = x;
  out[1] = y;
}

// jax.random.key(seed), of a seed below 2^32.
const keyOf = (seed) => [0, seed >>> 0];

// jax.random.fold_in(key, number).
function foldIn(key, number) {
  threefry(key, 0, number >>> 0);
  return [out[0], out[1]];
}

// jax.random.bits(key, (count,)): each number's place is its counter.
function bitsOf(key, count) {
  const bits = new Uint32Array(count);
  for (let i = 0; i < count; i++) {
    threefry(key, 0, i);
    bits[i] = out[0] ^ out[1];
  }
  return bits;
}

function inverseErf(u) {
  const w = -Math.log1p(-Math.fround(u * u)); // rounded as in Python: it matters where u is near 1
  const coefficients = w < 5 ? MIDDLE : TAIL, z = w < 5 ? w - 2.5 : Math.sqrt(w) - 3;
  let sum = 0;
  for (let i = 0; i < 9; i++) sum = sum * z + coefficients[i];
  return sum * u;
}

// jax.random.normal(key, (count,)): sqrt(2) erfinv(u), u uniform in (-1, 1) from the upper 23 bits.
function normal(key, count) {
  const bits = bitsOf(key, count), noise = new Float32Array(count), lowest = -1 + 2 ** -24;
  for (let i = 0; i < count; i++) {
    noise[i] = Math.SQRT2 * inverseErf(Math.fround((bits[i] >>> 9) * 2 ** -22 + lowest));
  }
  return noise;
}
