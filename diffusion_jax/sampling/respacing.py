"""Fewer steps than the denoiser was trained with: some of a schedule's steps, spread over a clock.

A schedule of N of the L steps, and the denoiser told which they are, are a schedule and a denoiser
like any other: every sampler runs on them.
"""

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.denoisers import Denoiser, require_steps
from diffusion_jax.errors import UserError
from diffusion_jax.runtime import pytrees
from diffusion_jax.schedule import NoiseSchedule, from_time

Clock = Literal["step", "time", "log-snr", "sigma"]
_MOST_GROWTH = 5


def clock(schedule: NoiseSchedule, name: Clock) -> np.ndarray:
    """A monotone reading of each step, (L,), over which steps can be spread evenly.

    step: s itself. time: the Ornstein-Uhlenbeck time t. log-snr: log(alpha_bar/(1 - alpha_bar)).
    sigma: the seventh root of sqrt((1 - alpha_bar)/alpha_bar), the spacing of Karras et al. (2022).

    Raises:
      UserError: an unknown name.
    """
    time = np.asarray(schedule.time, np.float64)
    if name == "step":
        return np.arange(len(time), dtype=np.float64)
    if name == "time":
        return time
    if name == "log-snr":
        return -2 * time - np.log(-np.expm1(-2 * time))
    if name == "sigma":
        return np.asarray(np.expm1(2 * time) ** (1 / 14))
    raise UserError(f"there is no clock {name!r}; choose from {', '.join(get_args(Clock))}")


def clock_of(schedule: NoiseSchedule, clock_or_schedule: Clock | NoiseSchedule) -> np.ndarray:
    """The readings of `clock`, or of another schedule: its real-valued step at each step's time.

    So a few steps can be spread as a schedule made from the data spreads its own. Beyond that
    schedule's first and last time its end steps go on.

    Returns:
      Readings (L,), float64.
    """
    if not isinstance(clock_or_schedule, NoiseSchedule):
        return clock(schedule, clock_or_schedule)
    own = np.asarray(schedule.time, np.float64)
    other = np.asarray(clock_or_schedule.time, np.float64)
    reading = np.interp(own, other, np.arange(len(other)))
    before, after = np.minimum(own - other[0], 0), np.maximum(own - other[-1], 0)
    first, last = (other[1] - other[0], other[-1] - other[-2]) if len(other) > 1 else (1.0, 1.0)
    return reading + before / first + after / last


def first_step(schedule: NoiseSchedule) -> int:
    """The step at which a backward process may begin: the last that does not multiply errors much.

    The step s divides the state, and any error of the predicted noise, by sqrt(1 - beta_s). The
    cosine schedule clips its last beta at 0.999, which multiplies them by 31; after the step before
    it alpha_bar is 2.4 L^-2, so that with many steps x_t is as good as pure noise there too.

    Returns:
      The last s with 1/sqrt(1 - beta_s) <= 5, or 0.
    """
    tame = np.flatnonzero(1 - np.asarray(schedule.beta, np.float64) >= 1 / _MOST_GROWTH**2)
    return int(tame[-1]) if len(tame) else 0


def spread_steps(clock: np.ndarray, num_calls: int) -> np.ndarray:
    """The steps nearest to even spacing over a clock, from the first to the last.

    Args:
      clock: increasing or decreasing readings of all steps (L,), see `clock`.
      num_calls: how many steps N, one denoiser call each.

    Returns:
      Increasing, distinct integer steps (N,), the first 0 and the last L - 1. Where even spacing
      would take a step twice, its neighbours are taken.

    Raises:
      UserError: N not in 2..L, or a clock that does not increase or decrease throughout.
    """
    last = len(clock) - 1
    if not 2 <= num_calls <= last + 1:
        raise UserError(
            f"a schedule of {last + 1} steps can be sampled with 2 to {last + 1} calls, "
            f"not {num_calls}"
        )
    direction = np.diff(clock)
    if not (np.all(direction > 0) or np.all(direction < 0)):
        raise UserError("a clock must increase, or decrease, from every step to the next")
    even = np.linspace(0, 1, num_calls)
    share = (clock - clock[0]) / (clock[-1] - clock[0])
    steps = np.rint(np.interp(even, share, np.arange(last + 1))).astype(np.int64)
    rank = np.arange(num_calls)
    steps = np.maximum.accumulate(steps - rank) + rank
    return np.minimum(steps, last + 1 - num_calls + rank)


def respaced(schedule: NoiseSchedule, steps: np.ndarray) -> NoiseSchedule:
    """The schedule of some of another's steps: the noise levels are those of the steps taken.

    beta'_k = 1 - alpha_bar_{s_k}/alpha_bar_{s_{k-1}}

    Args:
      schedule: of L steps.
      steps: increasing integer steps s_k in 0..L-1, (N,).

    Raises:
      UserError: steps that do not increase.
    """
    return from_time(np.asarray(schedule.time, np.float64)[steps])


@pytrees.dataclass
class RespacedDenoiser:
    """A denoiser of L steps as one of N: its step k is the other's step s_k.

    Attributes:
      denoiser: of the whole schedule.
      steps: s_k, integers (N,).
    """

    denoiser: Denoiser
    steps: Array

    @property
    def num_steps(self) -> int:
        """How many steps it knows."""
        return len(self.steps)

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`."""
        return self.denoiser(x, jnp.asarray(self.steps)[step])


def with_calls(
    schedule: NoiseSchedule, denoiser: Denoiser, num_calls: int, name: Clock
) -> tuple[NoiseSchedule, RespacedDenoiser]:
    """The schedule of num_calls steps spread evenly over a clock, and the denoiser that knows it.

    Raises:
      UserError: see `clock`, `spread_steps` and `require_steps`.
    """
    require_steps(denoiser, schedule.num_steps)
    steps = spread_steps(clock(schedule, name), num_calls)
    return respaced(schedule, steps), RespacedDenoiser(denoiser, jnp.asarray(steps, jnp.int32))
