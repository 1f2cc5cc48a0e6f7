"""What tells generalisation from memorisation while a model trains.

A model generalises while its loss on held-out images falls with that on the training images; it
memorises from where the two part, first at small times, and its samples come to lie on training
images ("Why diffusion models don't memorize", 2025).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.data.images import ImageSet
from diffusion_jax.denoisers import Denoiser, EmpiricalDenoiser
from diffusion_jax.process import diffuse
from diffusion_jax.regimes.loss_information import Losses, Strata, known_time
from diffusion_jax.regimes.neighbours import nearest
from diffusion_jax.runtime.devices import few_sizes, fold_in_each, in_batches, replicate, shard
from diffusion_jax.sampling import Backward
from diffusion_jax.schedule import NoiseSchedule
from diffusion_jax.symmetry import Group
from diffusion_jax.training.evaluations import Evaluation, Exact
from diffusion_jax.training.metrics import FRACTION, HELD_OUT, RATIO, TRAINING

# Ornstein-Uhlenbeck times between the bands. They are fixed, so that runs on other schedules and
# data compare; collapse and speciation of images, at 0.3 to 1.5, fall into the middle ones.
_EDGES = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0, np.inf)
_STRATA = 2**31 - 1


class Band(NamedTuple):
    """The steps first, ..., stop - 1 of a schedule; `name` tells their times, as t_0.05_0.2."""

    name: str
    first: int
    stop: int


def time_bands(schedule: NoiseSchedule, faithful: bool = False) -> list[Band]:
    """The steps of a schedule by their Ornstein-Uhlenbeck time t_s, in bands lower <= t_s < upper.

    Args:
      schedule: noise schedule of L steps.
      faithful: leave out step 0, which the authors' code never trains.

    Returns:
      Bands between the times 0, 0.05, 0.2, 0.5, 1, 2 and infinity, except for those without a step.
    """
    cuts = np.searchsorted(np.asarray(schedule.time, np.float64), _EDGES)
    cuts = np.maximum(cuts, int(faithful))
    return [
        Band(f"t_{lower:g}_{upper:g}", int(first), int(stop))
        for lower, upper, first, stop in zip(
            _EDGES[:-1], _EDGES[1:], cuts[:-1], cuts[1:], strict=True
        )
        if first < stop
    ]


def band_of_step(schedule: NoiseSchedule, step: int) -> Band:
    """The band of one step alone, named after the times of this one and the next."""
    time = np.append(np.asarray(schedule.time, np.float64), np.inf)
    return Band(f"t_{time[step]:.4g}_{time[step + 1]:.4g}", step, step + 1)


@jax.jit
def _errors(
    denoiser: Denoiser, schedule: NoiseSchedule, x_0: Array, step: Array, keys: Array
) -> Array:
    """Mean squared error of the predicted noise of each example (batch,)."""
    noise = jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:], x_0.dtype))(keys)
    difference = denoiser(diffuse(schedule, x_0, step, noise), step) - noise
    return jnp.mean(difference**2, axis=tuple(range(1, x_0.ndim)))


def denoising_losses(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_0: np.ndarray,
    key: Array,
    bands: list[Band],
    batch_size: int = 64,
) -> np.ndarray:
    """Mean squared error of the predicted noise, for each band of steps, on all devices.

    E |noise - eps(sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s) noise, s)|^2 / d, s in the band

    Each image is taken once per band. Its step and noise follow from `key`, the band's first step
    and the image's place alone, so that with one key the losses of two denoisers differ by what
    these predict; the steps of all images are spread evenly over the band, in random order.

    Args:
      denoiser: a denoiser that is a pytree, see `Denoiser`.
      schedule: its schedule.
      x_0: images (n, ...), float32, mean removed.
      key: typed PRNG key.
      bands: of the schedule's steps, see `time_bands`.
      batch_size: images at a time, rounded up to a multiple of the number of devices.

    Returns:
      float64 (bands,), averaged over images and components.
    """
    n, losses = len(x_0), []
    errors = _of_rows(denoiser, schedule, x_0)
    for band in bands:
        band_key = jax.random.fold_in(key, band.first)
        order_key, offset_key, noise_key = jax.random.split(band_key, 3)
        rank = np.asarray(jax.random.permutation(order_key, n))
        place = (rank + np.asarray(jax.random.uniform(offset_key, (n,)), np.float64)) / n
        steps = band.first + (place * (band.stop - band.first)).astype(np.int32)
        losses.append(errors(noise_key, steps, batch_size).mean(dtype=float))
    return np.array(losses)


def _of_rows(
    denoiser: Denoiser, schedule: NoiseSchedule, x_0: np.ndarray
) -> Callable[[Array, np.ndarray, int], np.ndarray]:
    """A function of key, steps (n,) and batch size: the errors of all images (n,), on all devices.

    The noise of each follows from the key and the image's place.
    """
    n = len(x_0)
    denoiser, schedule = replicate((denoiser, schedule))

    def errors(key: Array, steps: np.ndarray, batch_size: int) -> np.ndarray:
        def compute(numbers: np.ndarray) -> Array:
            index = np.minimum(numbers, n - 1)
            parts = shard((x_0[index], steps[index], fold_in_each(key, index)))
            return _errors(denoiser, schedule, *parts)

        found: np.ndarray = in_batches(compute, n, few_sizes(n, batch_size))
        return found

    return errors


def stratified_losses(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_0: np.ndarray,
    image: np.ndarray,
    key: Array,
    strata: Strata,
    batch_size: int = 64,
) -> Losses:
    """Losses at one step of each stratum of the log-SNR for every row, on all devices.

    Steps and noise follow from `key`, the stratum and the row's place alone: those of two denoisers
    or of two sets are drawn alike.

    Args:
      denoiser: a denoiser that is a pytree, see `Denoiser`.
      schedule: its schedule.
      x_0: images (rows, ...), float32, mean removed.
      image: which image each row is (rows,).
      key: typed PRNG key.
      strata: of the schedule; see `regimes.loss_information`.
      batch_size: images at a time, rounded up to a multiple of the number of devices.
    """
    place_key, noise_key = jax.random.split(key)
    # A place of each row's own, whatever the number of rows.
    own = fold_in_each(place_key, np.arange(len(x_0)))
    places = np.asarray(jax.vmap(partial(jax.random.uniform, shape=(strata.count,)))(own))
    steps = strata.steps(places.astype(np.float64))
    errors, components = _of_rows(denoiser, schedule, x_0), math.prod(x_0.shape[1:])
    columns = [
        errors(jax.random.fold_in(noise_key, j), steps[:, j], batch_size)
        for j in range(strata.count)
    ]
    return Losses(image, steps, np.stack(columns, 1).astype(np.float32) * np.float32(components))


def memorisation(
    samples: np.ndarray, points: np.ndarray, group: Group | None = None
) -> dict[str, float]:
    """How close samples lie to training points.

    Args:
      samples: (N, ...).
      points: training points (n, ...), n >= 2, in the units of the samples.
      group: with it, every map of a training point counts as that point; see `neighbours.nearest`.

    Returns:
      memorised_fraction: of the samples, those three times nearer to their nearest training point
        than to the second nearest.
      neighbour_ratio: median over samples of the nearest distance over the second nearest, which
        is 1 where no training point stands out and 0 for copies.

    Raises:
      UserError: see `neighbours.nearest`.
    """
    found = nearest(samples, points, group)
    return {
        FRACTION: float(found.memorised.mean()),
        RATIO: float(np.median(found.ratio)),
    }


# Images of each set whose losses are kept; those of the exact score that tell its time; bytes of a
# training set that has an exact score here.
_ROWS, _EXACT_ROWS, _MOST_BYTES = 64, 512, 2**30


def key_of(seed: int) -> Array:
    """The key of a run's evaluations, the same at every one.

    It is their own, so that evaluating changes nothing in the training, which has the keys that
    folding with 0 and 1 gives; folding with 3 gives that of the samples.
    """
    return jax.random.fold_in(jax.random.key(seed), 2)


def rows_of(num_images: int, count: int = _ROWS) -> np.ndarray:
    """Images of a set, evenly spaced (count,); of a smaller set each comes more than once.

    Then each row has noise of its own.
    """
    return np.arange(count) * num_images // count


def exact_of(
    schedule: NoiseSchedule,
    training: ImageSet,
    key: Array,
    strata: Strata,
    group: Group | None = None,
) -> Exact | None:
    """What the exact score knows of the noised training images that `evaluate` takes with this key.

    Args:
      schedule: of L steps.
      training: the training set.
      key: that of `evaluate`.
      strata: that of `evaluate`.
      group: with it, the score of the set with all its images under the group.

    Returns:
      None for a training set of more than 1 GiB in float32, which is not compared.
    """
    if 4 * training.images.size > _MOST_BYTES:
        return None
    points = jnp.asarray(training.centred())
    denoiser = EmpiricalDenoiser(schedule, points, group)
    losses = _kept_losses(denoiser, training, training, key, strata)
    many = _kept_losses(denoiser, training, training, key, strata, _EXACT_ROWS)
    return Exact(losses, known_time(strata, many))


def _kept_losses(
    denoiser: Denoiser,
    images: ImageSet,
    training: ImageSet,
    key: Array,
    strata: Strata,
    rows: int = _ROWS,
) -> Losses:
    chosen = rows_of(len(images.images), rows)
    x_0 = images.images[chosen].astype(np.float32) / np.float32(255) - training.mean
    _, loss_key = jax.random.split(key)
    # Not a key of any band: these fold the loss key with their first step.
    own = jax.random.fold_in(loss_key, _STRATA)
    return stratified_losses(denoiser, strata.schedule, x_0, chosen, own, strata)


def evaluate(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    training: ImageSet,
    held_out: ImageSet | None,
    key: Array,
    num_samples: int,
    process: Backward,
    strata: Strata,
    bands: list[Band],
    group: Group | None = None,
) -> tuple[dict[str, float], Evaluation]:
    """All that is measured of a model in training.

    With the same key, every call sees the same images, steps and noise.

    Args:
      denoiser: a denoiser that is a pytree.
      schedule: its schedule of L steps.
      training: the training set, grey levels in uint8. Its loss is that of as many images as are
        held out, of num_samples where none are, evenly spaced in the set; of a smaller set some
        come more than once, with noise of their own.
      held_out: images that were not trained on, or None.
      key: typed PRNG key.
      num_samples: how many samples.
      process: draws the samples, with this denoiser; see `sampling.backward`.
      strata: of the schedule's log-SNR, for the losses that are kept: of 64 images of each set.
      bands: of the schedule's steps, for the losses that are logged: see `time_bands`.
      group: that of the symmetry with which the model is trained, so that a moved training image
        is a copy too. The losses are those of the images as they are.

    Returns:
      The two of `memorisation`, training_loss/BAND for each band, and
      held_out_loss/BAND where images are held out; and what is kept.
    """
    sample_key, loss_key = jax.random.split(key)
    samples = process.sample(sample_key, num_samples, training.images.shape[1:])
    # In grey levels, so that the training set is not copied into floats.
    metrics = memorisation(255 * (samples + training.mean), training.images, group)
    n, most = len(training.images), num_samples if held_out is None else len(held_out.images)
    sets = {TRAINING: training.images[rows_of(n, most)]}
    if held_out is not None:
        sets[HELD_OUT] = held_out.images
    for name, images in sets.items():
        x_0 = images.astype(np.float32) / np.float32(255) - training.mean
        losses = denoising_losses(denoiser, schedule, x_0, loss_key, bands)
        metrics |= {
            f"{name}/{band.name}": float(loss) for band, loss in zip(bands, losses, strict=True)
        }
    others = None
    if held_out is not None:
        others = _kept_losses(denoiser, held_out, training, key, strata)
    own = _kept_losses(denoiser, training, training, key, strata)
    return metrics, Evaluation(samples, own, others)
