"""Denoisers that compare patches, pixel by pixel in float64 as they are defined."""

import jax
import numpy as np
from compiling import quick_jit

TIMES = np.array([0.01, 0.05, 0.2, 0.6, 1.2, 3.0])


def softmax_mean(squares, values, variance):
    """Of values (n, ...) under weights exp(-squares/(2 variance))."""
    logits = -np.asarray(squares) / (2 * variance)
    weights = np.exp(logits - logits.max())
    return np.tensordot(weights / weights.sum(), np.asarray(values), axes=1)


def patch_at(image, row, column, half, boundary):
    """Pixels of one patch: those in the image, or all of them on a torus."""
    height, width, _ = image.shape
    pixels = []
    for r in range(row - half, row + half + 1):
        for c in range(column - half, column + half + 1):
            if boundary == "circular":
                pixels.append(image[r % height, c % width])
            elif 0 <= r < height and 0 <= c < width:
                pixels.append(image[r, c])
    return np.array(pixels)


def cut(row, column, shape, half):
    """How a patch is cut at each of the four borders."""
    return tuple(
        min(distance, half) for distance in (row, shape[0] - 1 - row, column, shape[1] - 1 - column)
    )


def local(points, x, signal, variance, half):
    """D of one image, every patch where it is; all float64."""
    D = np.zeros_like(x)
    for row, column in np.ndindex(x.shape[:2]):
        own = patch_at(x, row, column, half, "zero")
        squares = [
            ((own - signal * patch_at(a, row, column, half, "zero")) ** 2).sum() for a in points
        ]
        D[row, column] = softmax_mean(squares, points[:, row, column], variance)
    return D


def equivariant(points, x, signal, variance, half, boundary):
    """D of one image, patches wherever they are cut alike."""
    D, places = np.zeros_like(x), list(np.ndindex(x.shape[:2]))
    for p in places:
        own, squares, values = patch_at(x, *p, half, boundary), [], []
        for q in places:
            if boundary == "circular" or cut(*q, x.shape, half) == cut(*p, x.shape, half):
                for a in points:
                    other = patch_at(a, *q, half, boundary)
                    squares.append(((own - signal * other) ** 2).sum())
                    values.append(a[q])
        D[p] = softmax_mean(squares, values, variance)
    return D


def wiener(points, signal, variance):
    """W = e^-2t C (e^-2t C + Delta)^-1, C divided by n, solved and not diagonalised (d, d)."""
    flat = points.reshape(len(points), -1)
    covariance = np.cov(flat.T, bias=True)
    return signal**2 * np.linalg.solve(
        signal**2 * covariance + variance * np.eye(len(covariance)), covariance
    )


def by_covariance(points, x, signal, variance, threshold):
    """D of one image, each component's patch from the Wiener filter; and how near a tie was."""
    flat, y = points.reshape(len(points), -1), x.reshape(-1)
    W = wiener(points, signal, variance)
    ratio = np.abs(W / np.diag(W)[:, None])
    least = threshold * ratio.max()
    D = np.zeros_like(y)
    for j in range(len(y)):
        patch = ratio[:, j] >= least
        squares = ((y[patch] - signal * flat[:, patch]) ** 2).sum(axis=1)
        D[j] = softmax_mean(squares, flat[:, j], variance)
    sizes = (ratio >= least).sum(axis=0)
    return D.reshape(x.shape), np.abs(ratio / least - 1).min(), sizes


def images(shape, n=7):
    """Few values, so that patches coincide; one image twice, and one constant."""
    points = np.random.default_rng(0).integers(0, 3, (n, *shape)) / 3 - 0.3
    points[1], points[2] = points[0], 0.1
    return points.astype(np.float32)


def noised(points, seed=1):
    """An image at each time: (x, steps, e^-t, Delta)."""
    rng, steps = np.random.default_rng(seed), np.arange(len(TIMES))
    signal, variance = np.exp(-TIMES), -np.expm1(-2 * TIMES)
    a = points[rng.integers(len(points), size=len(steps))]
    x = signal[:, None, None, None] * a
    x = x + np.sqrt(variance)[:, None, None, None] * rng.standard_normal(a.shape)
    return x.astype(np.float32), steps, signal, variance


def largest_error(found, wanted):
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


def draws(points, time, count):
    """Training images, and these with noise."""
    rng = np.random.default_rng(3)
    a = points[rng.integers(len(points), size=count)]
    x = np.exp(-time) * a + np.sqrt(-np.expm1(-2 * time)) * rng.standard_normal(a.shape)
    return a, x.astype(np.float32)


def squares(images):
    """The squared norm of each."""
    return (np.asarray(images, float) ** 2).sum(axis=(1, 2, 3))


def score(values):
    """The mean in units of its standard error."""
    return values.mean() / (values.std() / len(values) ** 0.5)


def check_derivatives(denoiser, x, step=1e-5):
    """Of D at one image x, in float64: by columns and by rows, against differences."""

    @quick_jit
    def derivatives(x):
        def D(x):
            return denoiser.predict_x_0(x[None], np.zeros(1, int))[0]

        return jax.jacfwd(D)(x), jax.jacrev(D)(x)

    moves = step * np.eye(x.size).reshape(-1, *x.shape)
    moved = denoiser.predict_x_0(np.concatenate([x + moves, x - moves]), np.zeros(2 * x.size, int))
    differences = np.subtract(*np.split(np.asarray(moved), 2)) / (2 * step)
    for found in derivatives(x):
        np.testing.assert_allclose(
            found, np.moveaxis(differences, 0, -1).reshape(2 * x.shape), atol=1e-8
        )
    assert np.abs(differences).max() > 0.1
