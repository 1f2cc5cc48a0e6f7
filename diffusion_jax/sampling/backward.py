"""A backward process by name: the sampler, the denoiser that goes with its steps, and the start."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.denoisers import DENOISERS, ClippedDenoiser, Denoiser, require_steps
from diffusion_jax.errors import UserError
from diffusion_jax.sampling.ancestral import AncestralSampler
from diffusion_jax.sampling.loop import Sampler, Start, sample, sample_batches
from diffusion_jax.sampling.ode import DDIMSampler, DPMSolver2M
from diffusion_jax.sampling.respacing import (
    Clock,
    RespacedDenoiser,
    clock_of,
    first_step,
    respaced,
    spread_steps,
)
from diffusion_jax.schedule import NoiseSchedule

# The samplers that commands know by name; each is made from a schedule.
SAMPLERS: dict[str, type[Sampler]] = {
    "ancestral": AncestralSampler,
    "ddim": DDIMSampler,
    "dpm-solver-2m": DPMSolver2M,
}
# With fewer, ancestral samples are measurably not the data's: docs/sampling.md.
LEAST_ANCESTRAL_CALLS = 100


class Backward(NamedTuple):
    """What `sample` and `fork` take: a sampler, a denoiser of its steps, and where to start.

    Attributes:
      sampler: with the schedule of the steps taken.
      denoiser: of these steps.
      start: see `Start`; None for N(0, I).
      clipped: whether the predicted data are kept within their range.
    """

    sampler: Sampler
    denoiser: Denoiser
    start: Start | None = None
    clipped: bool = False

    @property
    def calls(self) -> int:
        """Calls of the denoiser per sample."""
        return self.sampler.schedule.num_steps * self.sampler.calls_per_step

    def warning(self) -> str | None:
        """A sentence on ancestral sampling that leaves out too many steps; else None.

        docs/sampling.md has what fewer than 100 calls do to samples, clipped or not.
        """
        few = isinstance(self.sampler, AncestralSampler) and self.calls < LEAST_ANCESTRAL_CALLS
        if not few or not isinstance(self.denoiser, RespacedDenoiser):
            return None
        if np.all(np.diff(self.denoiser.steps) == 1):  # a short schedule, or one cut at its end
            return None
        what = "contract" if self.clipped else "are too wide"
        return (
            f"ancestral sampling with {self.calls} calls: samples {what}, and phi and classes go "
            f"wrong with them; take {LEAST_ANCESTRAL_CALLS} or more, or ddim / dpm-solver-2m for "
            f"samples"
        )

    def described(self) -> str:
        """What is done about the denoiser's errors, in words."""
        predictions = "kept within the data's range" if self.clipped else "not clipped"
        start = "N(0, I)" if self.start is None else "the data's own moments"
        return f"predictions {predictions}, from {start}"

    def sample(
        self, key: Array, num_samples: int, shape: tuple[int, ...], batch_size: int = 64
    ) -> np.ndarray:
        """See `sampling.sample`."""
        return sample(
            self.sampler, self.denoiser, key, num_samples, shape, batch_size, start=self.start
        )

    def batches(
        self, key: Array, numbers: range, shape: tuple[int, ...], batch_size: int = 64
    ) -> Iterator[np.ndarray]:
        """See `sampling.sample_batches`."""
        return sample_batches(
            self.sampler, self.denoiser, key, numbers, shape, batch_size, self.start
        )


def check_sampler(name: str) -> None:
    """Refuses a name that is not in SAMPLERS.

    Raises:
      UserError: it is not; the message lists those that are.
    """
    if name not in SAMPLERS:
        raise UserError(f"there is no sampler {name!r}; choose from {', '.join(SAMPLERS)}")


def backward(
    schedule: NoiseSchedule,
    denoiser: Denoiser,
    sampler: str = "ancestral",
    calls: int | None = None,
    clock: Clock | NoiseSchedule = "log-snr",
    bounds: tuple[np.ndarray | float, np.ndarray | float] | None = None,
    start: Callable[[NoiseSchedule], Start] | None = None,
    faithful: bool = False,
) -> Backward:
    """The backward process of a denoiser that may err, as the commands run it.

    It begins at the last step from which it is safe to (`first_step`), takes the steps that the
    given calls allow, and predicts no data outside their range (`ClippedDenoiser`).

    Args:
      schedule: the denoiser's schedule of L steps.
      denoiser: see `Denoiser`.
      sampler: a name in `SAMPLERS`.
      calls: of the denoiser per sample; by default, or where they suffice, all steps are taken
        from that at which it begins.
      clock: what fewer steps are spread evenly over, see `clock_of`.
      bounds: least and largest value of the data, mean removed, a number or one per channel;
        without it nothing is clipped.
      start: makes the start for the schedule of the steps taken, such as `matched_start` with the
        data's moments; N(0, I) without it.
      faithful: as the code of Biroli et al. (2024) samples: no noise at steps 1 and 0, nothing
        clipped, from N(0, I) at the last step of all.

    Raises:
      UserError: an unknown sampler, calls that it cannot make, or more steps than the denoiser
        knows.
    """
    check_sampler(sampler)
    require_steps(denoiser, schedule.num_steps)
    kind: Any = SAMPLERS[sampler]
    clipped = bounds is not None and not faithful
    if bounds is not None and clipped:
        low, high = (jnp.asarray(bound, jnp.float32) for bound in bounds)
        denoiser = ClippedDenoiser(denoiser, schedule, low, high)
    usable = schedule.num_steps if faithful else first_step(schedule) + 1
    steps = np.arange(usable)
    if calls is not None:
        each, most = kind.calls_per_step, schedule.num_steps * kind.calls_per_step
        if not 2 * each <= calls <= most or calls % each:
            multiple = f", and be a multiple of {each}" if each > 1 else ""
            raise UserError(
                f"calls = {calls} must lie between {2 * each} and {most}{multiple} for {sampler}"
            )
        steps = spread_steps(clock_of(schedule, clock)[:usable], min(calls // each, usable))
    if len(steps) < schedule.num_steps:
        schedule = respaced(schedule, steps)
        denoiser = RespacedDenoiser(denoiser, jnp.asarray(steps, jnp.int32))
    fields = {field.name for field in dataclasses.fields(kind)}
    options = {"faithful": faithful} if "faithful" in fields else {}
    where = None if start is None or faithful else start(schedule)
    return Backward(kind(schedule, **options), denoiser, where, clipped)


def default_patch(score: str) -> int | None:
    """The side in pixels of the patches that a score in closed form has by default; None without.

    Args:
      score: a name in `DENOISERS`; any other has no patches.
    """
    if score not in DENOISERS:
        return None
    patch = inspect.signature(DENOISERS[score]).parameters.get("patch")
    return None if patch is None else int(patch.default)


def closed_form(
    score: str,
    schedule: NoiseSchedule,
    points: np.ndarray,
    labels: np.ndarray | None,
    sampler: str = "ancestral",
    calls: int | None = None,
    clock: Clock | NoiseSchedule = "log-snr",
    patch: int | None = None,
    faithful: bool = False,
) -> Backward:
    """The backward process of a score in closed form, which a training set makes.

    Args:
      score: a name in `DENOISERS`.
      schedule: the noise schedule.
      points: training points (n, ...), mean removed.
      labels: of the points (n,), or None.
      sampler: see `backward`, as for calls, clock, faithful and the errors.
      calls: see there.
      clock: see there.
      patch: side of the patches in pixels, of a score that has them; see `default_patch`.
      faithful: see there.
    """
    side = default_patch(score) if patch is None else patch
    options = {} if side is None else {"patch": side}
    denoiser = DENOISERS[score](schedule, points, labels, **options)
    return backward(schedule, denoiser, sampler, calls, clock, faithful=faithful)
