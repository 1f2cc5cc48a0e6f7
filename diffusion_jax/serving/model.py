"""A model that is served: a run or a data set, with every denoiser that answers for it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax import forking
from diffusion_jax.covariance import Rows
from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.names import slug
from diffusion_jax.denoisers import (
    DENOISERS,
    ClippedDenoiser,
    Denoiser,
    EmpiricalDenoiser,
    GaussianMixtureDenoiser,
    require_steps,
)
from diffusion_jax.errors import UserError
from diffusion_jax.judging.classifier import TrainedClassifier
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.regimes.spectrum import eigenmodes, signed
from diffusion_jax.regimes.theories import FAMILIES, modes_cost
from diffusion_jax.sampling import Backward, backward
from diffusion_jax.sampling.backward import default_patch
from diffusion_jax.schedule import NoiseSchedule
from diffusion_jax.serving.programs import Process, padded
from diffusion_jax.training.run import TrainedModel

TRAINED, MIXTURE = "trained", "mixture"
# A theory that takes longer, in seconds of two cores, is served where it is asked for by name: for
# a call of one image, and to be made.
_MOST_PER_CALL, _MOST_TO_MAKE = 0.05, 120.0
_ABOUT = {
    TRAINED: "the network, its predictions kept within the data's range",
    MIXTURE: "the exact score of the mixture itself, not of its points",
    **{name: FAMILIES[name].about for name in DENOISERS if name in FAMILIES},
}


@dataclass(frozen=True, eq=False)
class Model:
    """What requests are answered from.

    Attributes:
      id: its name and a digest of all that its answers depend on.
      name: as it was given.
      kind: "run" or "data".
      images: the training images.
      points: the same, mean removed (n, height, width, channels).
      schedule: the noise schedule.
      denoisers: by name; of the network its predictions are clipped.
      exact: the exact score, which tells p(c | x_t) and the nearest images.
      member: (n, C), one where an image is of a class; of no columns for less than two classes.
      modes: the first two modes of the covariance of all channels (2, d).
      result: what experiments.regimes says of the images, as its result.json has it.
      judge: the classifier of what other denoisers make; None where the nearest image's class is
        taken.
      run: the trained model, of a run.
      mixture: the law of the points, where they were drawn from one that is known.
    """

    id: str
    name: str
    kind: str
    images: ImageSet
    points: np.ndarray
    schedule: NoiseSchedule
    denoisers: dict[str, Denoiser]
    exact: EmpiricalDenoiser
    member: Array
    modes: Array
    result: dict[str, Any]
    judge: TrainedClassifier | None
    run: TrainedModel | None = None
    mixture: GaussianMixture | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width, channels) of an image."""
        return self.points.shape[1:]

    @property
    def has_classes(self) -> bool:
        """Whether there are two classes or more."""
        return self.member.shape[1] > 1

    def about(self, denoiser: str) -> str:
        """What a denoiser is, in a line."""
        side, line = default_patch(denoiser), _ABOUT.get(denoiser, denoiser)
        return line if side is None else f"{line}, of {side} x {side} pixels"

    def backward(self, denoiser: str, sampler: str, calls: int) -> Backward:
        """The backward process with this number of calls.

        Raises:
          UserError: see `sampling.backward`.
        """
        start, faithful = None, False
        if denoiser == TRAINED and self.run is not None:
            start, faithful = self.run.start, self.run.sampler.faithful
        named = self.denoisers[denoiser]
        return backward(self.schedule, named, sampler, calls, start=start, faithful=faithful)

    def process(self, denoiser: str, sampler: str, calls: int) -> Process:
        """The backward process in tables of one length, see `programs.padded`."""
        return _process(self, denoiser, sampler, calls)


@lru_cache(maxsize=64)  # every request about a trunk asks for its process
def _process(model: Model, denoiser: str, sampler: str, calls: int) -> Process:
    return padded(model.backward(denoiser, sampler, calls), model.schedule.num_steps)


def chosen_denoisers(
    images: ImageSet, trained: bool, mixture: bool, asked: tuple[str, ...] | None
) -> list[str]:
    """Names of the denoisers that are served.

    Args:
      images: the training images.
      trained: whether there is a network.
      mixture: whether the images' law is known.
      asked: names; by default the network and all closed forms that answer quickly.

    Raises:
      UserError: a name that is none, or that these images have no denoiser of.
    """
    own = [TRAINED] * trained + [MIXTURE] * mixture
    n, shape = len(images.images), images.images.shape[1:]
    classes = images.labels is not None and len(images.class_names) > 1
    possible = [name for name in DENOISERS if name != "classes" or classes]
    if asked is not None:
        if unknown := [name for name in asked if name not in (*own, *possible)]:
            raise UserError(
                f"there is no denoiser {unknown[0]!r} for these images; choose from "
                f"{', '.join((*own, *possible))}"
            )
        # The exact score tells the classes and the neighbours anyway.
        return [name for name in (*own, *possible) if name in asked or name == "exact"]

    def quick(name: str) -> bool:
        if name not in FAMILIES:
            return True
        family = FAMILIES[name]
        made = modes_cost(n, shape)[0] if family.by_modes else 0.0
        called = family.seconds(n, shape, default_patch(name))
        quick = called < _MOST_PER_CALL and made < _MOST_TO_MAKE
        # The mixture's components are no pixels: a patch of them means nothing.
        return name == "exact" or (quick and not (mixture and family.local))

    return own + [name for name in possible if quick(name)]


def digest_of(images: ImageSet, run: TrainedModel | None, schedule: NoiseSchedule) -> str:
    """Eight hexadecimal digits of all that a model's answers depend on, besides the code."""
    parts = [fingerprint(images), forking.digest(schedule), images.mean.tobytes().hex()]
    if run is not None:
        start = None if run.start is None else run.start(schedule)
        parts += [forking.digest(run.denoiser.params), forking.digest(start)]
        parts += [repr(run.denoiser.model), str(run.sampler.faithful)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def make(
    name: str,
    images: ImageSet,
    schedule: NoiseSchedule,
    names: list[str],
    result: dict[str, Any],
    judge: TrainedClassifier | None,
    run: TrainedModel | None = None,
    mixture: GaussianMixture | None = None,
    said: Callable[[str], None] = lambda what: None,
) -> Model:
    """A model, its denoisers fitted.

    Args:
      name: of the model.
      images: the training images.
      schedule: the noise schedule; that of the run, if there is one.
      names: of the denoisers, see `chosen_denoisers`.
      result: see `Model`, as for the arguments after it.
      judge: see there.
      run: see there.
      mixture: see there.
      said: called with the name of each denoiser before it is fitted.
    """
    points, labels = images.centred(), images.labels
    num_classes = len(images.class_names) if labels is not None else 0
    exact = EmpiricalDenoiser.fit(schedule, points, labels)
    denoisers: dict[str, Denoiser] = {}
    if run is not None:
        denoisers[TRAINED] = _clipped(run, schedule)
    for each in names:
        said(each)
        if each == MIXTURE and mixture is not None:
            centre = jnp.full(points.shape[1:], mixture.mu, jnp.float32)
            mixed = GaussianMixtureDenoiser(schedule, centre, jnp.float32(mixture.sigma))
            denoisers[each] = mixed
        elif each != TRAINED:
            side = default_patch(each)
            options = {} if side is None else {"patch": side}
            fit = DENOISERS[each]
            made = exact if each == "exact" else fit(schedule, points, labels, **options)
            denoisers[each] = made
    member = np.zeros((len(points), num_classes if num_classes > 1 else 0), np.float32)
    if labels is not None and num_classes > 1:
        member[np.arange(len(points)), labels] = 1
    return Model(
        id=f"{slug(name)}-{digest_of(images, run, schedule)}",
        name=name,
        kind="data" if run is None else "run",
        images=images,
        points=points,
        schedule=schedule,
        denoisers=denoisers,
        exact=exact,
        member=jnp.asarray(member),
        modes=jnp.asarray(first_modes(points), jnp.float32),
        result=result,
        judge=judge,
        run=run,
        mixture=mixture,
    )


def _clipped(run: TrainedModel, schedule: NoiseSchedule) -> Denoiser:
    """The network as samples are drawn from it, see `TrainedModel.backward`."""
    require_steps(run.denoiser, schedule.num_steps)
    if run.bounds is None or run.sampler.faithful:
        return run.denoiser
    low, high = (jnp.asarray(bound, jnp.float32) for bound in run.bounds)
    return ClippedDenoiser(run.denoiser, schedule, low, high)


def first_modes(points: np.ndarray) -> np.ndarray:
    """The first two modes of the covariance of all channels, orthonormal rows (2, d).

    An image of one value has one: the other row is zero. Their sign is that of `signed`.
    """
    rows = Rows(points, all_channels=True)
    found = eigenmodes(rows, min(2, max(1, rows.d - 1)))[1]
    modes = np.zeros((2, rows.d), np.float32)
    modes[: len(found)] = found
    return signed(modes)


def count_parameters(run: TrainedModel) -> int:
    """Number of a network's parameters."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(run.denoiser.params))
