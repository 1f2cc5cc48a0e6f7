"""The closed-form theories that a trained network may resemble, and what it costs to ask them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jax import Array

from diffusion_jax.denoisers import (
    Denoiser,
    EmpiricalDenoiser,
    EquivariantLocalDenoiser,
    GaussianClassesDenoiser,
    GaussianDenoiser,
    LocalDenoiser,
)
from diffusion_jax.errors import UserError
from diffusion_jax.schedule import NoiseSchedule

# Of the schedule, the training points (n, ...), their labels or None, and the patch.
Make = Callable[[NoiseSchedule, Array, np.ndarray | None, int | None], Denoiser]
# Patches that are compared by default, where they are smaller than what the theory ends in.
PATCHES = (3, 5, 9, 17)
EQUIVARIANT_PATCHES = (3, 5, 9)
# A family that is estimated to take longer is compared where it is asked for by name alone.
MOST_SECONDS = 2 * 3600.0


@dataclass(frozen=True)
class Family:
    """A theory, or one for each patch.

    Attributes:
      about: what it is, in a line.
      make: the denoiser.
      seconds: that it takes per image on two cores, a function of the number of training points,
        the shape of an image, and the patch. Equal patches, such as blank ones, cost less.
      local: whether there is one for each patch.
      equivariant: whether it compares each place with all others, at the price of that.
      needs_classes: whether it needs labels of two or more classes.
      by_modes: whether it needs all modes of the covariance.
      by_default: whether it is compared without being asked for.
    """

    about: str
    make: Make
    seconds: Callable[[int, tuple[int, ...], int | None], float]
    local: bool = False
    equivariant: bool = False
    needs_classes: bool = False
    by_modes: bool = False
    by_default: bool = True


def _small(n: int, shape: tuple[int, ...], patch: int | None) -> float:
    return 3e-10 * n * math.prod(shape)


def _every_patch(n: int, shape: tuple[int, ...], patch: int | None) -> float:
    return 3e-10 * n * math.prod(shape) * sum(shape[:2])


def _every_pair(n: int, shape: tuple[int, ...], patch: int | None) -> float:
    height, width, channels = shape
    return (1e-9 + 2e-11 * channels * (patch or 1) ** 2) * n * (height * width) ** 2


FAMILIES: dict[str, Family] = {
    "exact": Family(
        "the exact score of the training set",
        lambda schedule, points, labels, patch: EmpiricalDenoiser(schedule, points),
        _small,
    ),
    "gaussian": Family(
        "the score of one Gaussian with its mean and covariance",
        lambda schedule, points, labels, patch: GaussianDenoiser.fit(schedule, np.asarray(points)),
        _small,
        by_modes=True,
    ),
    "classes": Family(
        "the score of a Gaussian for each class",
        lambda schedule, points, labels, patch: GaussianClassesDenoiser.fit(
            schedule, np.asarray(points), labels
        ),
        _small,
        needs_classes=True,
        by_modes=True,
    ),
    "local": Family(
        "the exact score if each pixel saw only a patch around it",
        lambda schedule, points, labels, patch: LocalDenoiser(schedule, points, patch),
        _every_patch,
        local=True,
    ),
    "equivariant": Family(
        "the same if a pixel knew its place only by the borders that it sees",
        lambda schedule, points, labels, patch: EquivariantLocalDenoiser(
            schedule, points, patch, "zero"
        ),
        _every_pair,
        local=True,
        equivariant=True,
    ),
    "circular": Family(
        "the same on a torus, without borders",
        lambda schedule, points, labels, patch: EquivariantLocalDenoiser(
            schedule, points, patch, "circular"
        ),
        _every_pair,
        local=True,
        equivariant=True,
        by_default=False,
    ),
}


def modes_cost(n: int, shape: tuple[int, ...]) -> tuple[float, int]:
    """What all modes of the covariance of n images cost, roughly: seconds and bytes."""
    d = math.prod(shape)
    m = min(n, d)
    return 5e-11 * (float(n) * d * m + 5 * float(m) ** 3), 8 * (3 * m * m + 2 * m * d)


@dataclass(frozen=True)
class Theory:
    """A theory that a network is compared with.

    Attributes:
      name: of the family, and its patch: exact, local_5.
      family: a name in `FAMILIES`.
      patch: side of the patch in pixels; None for a theory without.
    """

    name: str
    family: str
    patch: int | None = None

    def make(self, schedule: NoiseSchedule, points: Array, labels: np.ndarray | None) -> Denoiser:
        """Its denoiser, of these training points (n, ...), mean removed."""
        return FAMILIES[self.family].make(schedule, points, labels, self.patch)

    def seconds(self, n: int, shape: tuple[int, ...]) -> float:
        """About what it takes for an image of this shape, n training points and two cores."""
        return FAMILIES[self.family].seconds(n, shape, self.patch)


def check_families(names: Sequence[str]) -> None:
    """Refuses names that are not in `FAMILIES`, and one given twice.

    Raises:
      UserError: it is named.
    """
    if unknown := [name for name in names if name not in FAMILIES]:
        raise UserError(f"there is no theory {unknown[0]!r}; choose from {', '.join(FAMILIES)}")
    if len(set(names)) < len(names) or not names:
        raise UserError(f"theories = {tuple(names)} must name at least one, and each once")


def theories_of(
    families: Sequence[str],
    patches: tuple[int, ...] | None,
    equivariant_patches: tuple[int, ...] | None,
    shape: tuple[int, ...],
) -> list[Theory]:
    """The theories of these families, in their order in `FAMILIES`, cheap ones first.

    Args:
      families: names in `FAMILIES`.
      patches: of the local theory; by default 3, 5, 9 and 17, as far as they are smaller than what
        makes it the exact score.
      equivariant_patches: of the equivariant ones; by default 3, 5 and 9, as far as they are
        smaller than the image.
      shape: of an image (height, width, channels).

    Raises:
      UserError: patches given twice, or none.
    """
    side = max(shape[:2])
    found = []
    for name, family in FAMILIES.items():
        if name not in families:
            continue
        if not family.local:
            found.append(Theory(name, name))
            continue
        asked = equivariant_patches if family.equivariant else patches
        if asked is not None and (len(set(asked)) < len(asked) or not asked):
            option = "equivariant_patches" if family.equivariant else "patches"
            raise UserError(f"{option} = {asked} must name at least one patch, and each once")
        default, bound = (
            (EQUIVARIANT_PATCHES, min(shape[:2]))
            if family.equivariant
            else (
                PATCHES,
                2 * side - 1,
            )
        )
        taken = asked or tuple(patch for patch in default if patch < bound) or (1,)
        found += [Theory(f"{name}_{patch}", name, patch) for patch in sorted(taken)]
    return found


def check_patches(
    theories: Sequence[Theory],
    schedule: NoiseSchedule,
    points: np.ndarray,
    labels: np.ndarray | None,
) -> None:
    """Makes each theory with a patch from one point, which refuses what cannot be.

    Raises:
      UserError: an even patch, or one too large for the images.
    """
    for theory in theories:
        if theory.patch is not None:
            own = None if labels is None else labels[:1]
            theory.make(schedule, np.asarray(points[:1]), own)  # type: ignore[arg-type]
