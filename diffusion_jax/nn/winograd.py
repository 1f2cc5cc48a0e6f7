"""3x3 convolutions in fewer products on the CPU, with a backward pass in as few.

The minimal filtering algorithm F(2x2, 3x3) (Winograd 1980; Lavin & Gray 2016) gives a 2x2 tile of
the result from a 4x4 tile d of the features by 16 products in place of 36:

    y = A^T [(G g G^T) * (B^T d B)] A

with * elementwise. Summed over channels these are 16 matrix products, which XLA's CPU backend also
runs closer to the peak than convolutions. The kernel's gradient is G^T [(B^T d B) * (A dy A^T)] G,
summed over tiles. Rounding errors stay those of float32; larger tiles would not keep them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.nn import plain

# Of features and result. With fewer, the transforms of the tiles cost more than the products that
# they save: measured on two cores.
_LEAST_CHANNELS = 64

Parts = Sequence[Array]


@jax.jit  # equal convolutions are traced and lowered once
def conv3x3(h: Array, kernel: Array) -> Array:
    """`plain.conv3x3`, tiled where that pays. There only reverse differentiation is defined."""
    _, height, width, channels = h.shape
    even = height % 2 == width % 2 == 0 and min(height, width) >= 4
    enough = min(channels, kernel.shape[-1]) >= _LEAST_CHANNELS
    wide = h.dtype in (jnp.float32, jnp.float64)
    tiled = even and enough and wide
    return _tiled(h, kernel) if tiled else plain.conv3x3(h, kernel)


def _data(d: Parts) -> Parts:
    """B^T d."""
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _kernel(g: Parts) -> Parts:
    """G g."""
    ends, middle = g[0] + g[2], g[1]
    return g[0], (ends + middle) * 0.5, (ends - middle) * 0.5, g[2]


def _kernel_transposed(u: Parts) -> Parts:
    """G^T u."""
    ends = (u[1] + u[2]) * 0.5
    return u[0] + ends, (u[1] - u[2]) * 0.5, ends + u[3]


def _result(m: Parts) -> Parts:
    """A^T m."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _result_transposed(y: Parts) -> Parts:
    """A y."""
    return y[0], y[0] + y[1], y[0] - y[1], -y[1]


def _windows(x: Array, axis: int) -> Parts:
    """The pixels 2 t + i, i = 0..3, of the tiles t along an axis padded by 1."""
    last = x.shape[axis] - 3
    return [jax.lax.slice_in_dim(x, i, i + last, 2, axis) for i in range(4)]


def padded(x: Array) -> Array:
    """One pixel of zeros on all sides.

    XLA's CPU backend keeps the result in memory; what is not padded it computes anew in each
    transform that reads it, unless it is expensive by XLA's measure.
    """
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def parities(y: Array, axis: int) -> Parts:
    """The pixels 2 t + i, i = 0, 1, of the tiles t along an axis padded by 1."""
    return [jax.lax.slice_in_dim(y, i, y.shape[axis] - 1, 2, axis) for i in (1, 2)]


def from_parities(columns: Iterable[Parts], batch: int, height: int, width: int) -> Array:
    """(batch, 2 height, 2 width, features) from its pixels (2 t + i, 2 u + j), `columns[j][i]`."""
    left, right = (
        [part.reshape(batch, height, width, -1) for part in column] for column in columns
    )
    rows = [jnp.stack(pair, axis=3) for pair in zip(left, right, strict=True)]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def taps(kernel: Array, axis: int) -> Parts:
    """The three taps along an axis."""
    return [jax.lax.slice_in_dim(kernel, i, i + 1, 1, axis) for i in range(3)]


def transform(x: Array, cut: Callable[[Array, int], Parts], by: Callable[[Parts], Parts]) -> Parts:
    """Transforms along the axes 1 and 2: n rows of n matrices (n, all other axes, the last)."""
    rows = [by(cut(row, 2)) for row in by(cut(x, 1))]
    return [jnp.stack([part.reshape(-1, part.shape[-1]) for part in row]) for row in rows]


def products(a: Parts, b: Parts, summed: tuple[int, int]) -> Parts:
    """The products of the matrices, summed over an axis of each.

    A row in one: single ones run as fast, but XLA takes longer over them, above all to read the
    compiled program back, for which it searches all of it once for each product.
    """
    contracted = ((summed[0] + 1,), (summed[1] + 1,))
    numbers = (contracted, ((0,), (0,)))
    return [jax.lax.dot_general(x, y, numbers) for x, y in zip(a, b, strict=True)]


def join(rows: Iterable[Any], by: Callable[[Parts], Parts]) -> list[Parts]:
    """Transforms n rows of n along both indices; the first index of the result is the column."""
    return [by(column) for column in zip(*(by(row) for row in rows), strict=True)]


def _convolved(h: Array, kernel: Array, axis: int) -> Array:
    """The convolution of h, padded, summed over the kernel's axis 2 (channels) or 3 (features)."""
    batch, height, width, _ = h.shape
    kernels = transform(kernel[None], taps, _kernel)
    joint = products(transform(h, _windows, _data), kernels, (1, axis - 2))
    return from_parities(join(joint, _result), batch, height // 2 - 1, width // 2 - 1)


@jax.custom_vjp
def _tiled(h: Array, kernel: Array) -> Array:
    return _convolved(padded(h), kernel, 2)


def _forward(h: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _tiled(h, kernel), (h, kernel)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    h, kernel = kept
    gradient = padded(gradient)
    # The gradient of h is the convolution of that of y with the kernel turned by 180 degrees.
    dh = _convolved(gradient, kernel[::-1, ::-1], 3)
    windows = transform(padded(h), _windows, _data)
    tiles = transform(gradient, parities, _result_transposed)
    joint = products(windows, tiles, (0, 0))
    columns = join(joint, _kernel_transposed)
    return dh, jnp.stack([jnp.stack(column) for column in columns], axis=1)


_tiled.defvjp(_forward, _backward)
