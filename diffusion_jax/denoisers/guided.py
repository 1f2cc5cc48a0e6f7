"""Classifier-free guidance of any pair of denoisers, with a weight that may change along time."""

import numbers
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.denoisers.protocol import Denoiser, require_steps
from diffusion_jax.errors import UserError
from diffusion_jax.schedule import NoiseSchedule, broadcast_right

# A number, or a function of Ornstein-Uhlenbeck time.
Weight = float | Callable[[Any], Any]


class GuidanceWeight:
    """A guidance weight w(t) that is a sum of functions; `guidance_window` makes one.

    Attributes:
      terms: functions of Ornstein-Uhlenbeck time t.
    """

    def __init__(self, *terms: Callable[[Any], Any]) -> None:
        self.terms = terms

    def __call__(self, time: Any) -> np.ndarray:
        """The weight at times of any shape."""
        return np.asarray(sum(np.asarray(term(time), np.float64) for term in self.terms))

    def __add__(self, other: Callable[[Any], Any]) -> "GuidanceWeight":
        """The sum of two weights, the other any function of time."""
        return GuidanceWeight(*self.terms, other)


def guidance_window(weight: float, low: float, high: float, outside: float = 0.0) -> GuidanceWeight:
    """The weight that is w from t = low to t = high, both included, and `outside` elsewhere.

    Guidance in a limited interval (Kynkaanniemi et al. 2024, arXiv:2404.07724, who find it harmful
    at high noise levels and needless at low ones). Windows add up, where they overlap too: one of
    negative weight after one of positive weight is a negative-guidance window (Ventura et al. 2026,
    arXiv:2602.00716, who propose it against the loss of variance).

    Args:
      weight: w within the window, in the convention of `GuidedDenoiser`.
      low: its lower end, an Ornstein-Uhlenbeck time.
      high: its upper end; infinity for none.
      outside: w elsewhere; 0 is the conditional denoiser itself.

    Raises:
      UserError: a weight that is not finite, or a window that does not go from a time to a larger.
    """
    if not np.isfinite([weight, outside]).all() or not low < high or high < 0:
        raise UserError(
            f"a guidance window needs finite weights and a lower time below its upper one, not "
            f"weights {weight} and {outside} and times {low} and {high}"
        )

    def window(time: Any) -> np.ndarray:
        t = np.asarray(time, np.float64)
        return np.where((t >= low) & (t <= high), weight, outside)

    return GuidanceWeight(window)


def tabulated(weight: Weight, times: np.ndarray) -> np.ndarray:
    """A weight at times (T,), float64; a function is asked for one time after another.

    Raises:
      UserError: neither a number nor a function, or a value that is no finite number.
    """
    if isinstance(weight, numbers.Real):
        values = np.full(len(times), float(weight))
    elif callable(weight):
        values = np.array([_number(weight(t), t) for t in np.asarray(times, np.float64)])
    else:
        raise UserError(
            f"a guidance weight is a number or a function of time, not {type(weight).__name__}"
        )
    if not np.isfinite(values).all():
        bad = int(np.argmin(np.isfinite(values)))
        where = f" at t = {times[bad]:.6g}" if callable(weight) else ""
        raise UserError(f"the guidance weight{where} is {values[bad]}: give finite weights")
    return values


def _number(value: Any, time: float) -> float:
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "fiu":
        raise UserError(
            f"the guidance weight at t = {time:.6g} is no number but of shape {array.shape} and "
            f"type {array.dtype}: a function of time gives one number for one time"
        )
    return float(array)


@jax.tree_util.register_pytree_node_class
class GuidedDenoiser:
    """Classifier-free guidance: one denoiser of a class pushed away from one of all data.

    eps(x, s) = (1 + w) eps_c(x, s) - w eps_u(x, s)        (Ho & Salimans 2022, arXiv:2207.12598)

    The score is score_u + (1 + w) grad log p(c | x_t) where the two are exact. w = 0 is the
    conditional denoiser and w = -1 the unconditional one, to the bit; w > 0 goes further towards
    the class, w < -1 away from it. What others call `guidance_scale` is 1 + w: 1 there is 0 here.

    For w other than 0 and -1 the samples do not follow p(x) p(c | x)^(1 + w) (Chidambaram et al.
    2024, arXiv:2409.13074), and the backward process and the probability flow have different laws:
    `regimes.guidance` has both for two Gaussians.

    The exact scores of a training set and of its class c are `EmpiricalDenoiser(schedule, points)`
    and `EmpiricalDenoiser(schedule, points[labels == c])`; of their Gaussians
    `GaussianClassesDenoiser.fit(schedule, points, labels)` and
    `GaussianDenoiser.fit(schedule, points[labels == c])`.

    It is a pytree of the two denoisers and w: compiled code serves other weights too, of the same
    kind (numbers, or functions). One call costs one of each denoiser.

    Attributes:
      conditional: eps_c.
      unconditional: eps_u, of the same steps.
      weight: w as an array, (), or (num_steps,) for one of each step.

    Raises:
      UserError: schedules that differ, of those that the denoisers have and the one given, or one
        with more steps than a denoiser knows; a weight that is not finite (of a function, the
        message says at which t), or is neither a number, a function nor one number per step; a
        function of time without any schedule; when it is called, denoisers whose noise has another
        shape than x.
    """

    conditional: Denoiser
    unconditional: Denoiser
    weight: Array

    def __init__(
        self,
        conditional: Denoiser,
        unconditional: Denoiser,
        weight: Weight | Array | np.ndarray,
        schedule: NoiseSchedule | None = None,
    ) -> None:
        """Makes the pair, and the table of w.

        Args:
          conditional: eps_c.
          unconditional: eps_u.
          weight: w, a number, a function of Ornstein-Uhlenbeck time t (of one number, vectorised or
            not), which is asked for the time of each step here and never again, or its values at
            the steps (num_steps,).
          schedule: whose times are meant; by default that of either denoiser, where it has one.
        """
        self.conditional, self.unconditional = conditional, unconditional
        schedules = [schedule, *(getattr(each, "schedule", None) for each in self._pair)]
        known = [each for each in schedules if isinstance(each, NoiseSchedule)]
        _require_equal_times(known)
        self.weight = jnp.zeros(())
        for each in known:
            # Longer, it is the schedule of other steps than theirs.
            require_steps(self, each.num_steps)
        count = known[0].num_steps if known else None
        self.weight = _table(weight, known[0] if known else None, count or self.num_steps)

    @property
    def _pair(self) -> tuple[Denoiser, Denoiser]:
        return self.conditional, self.unconditional

    @property
    def num_steps(self) -> int | None:
        """How many steps both know, and the weight; None where any number will do."""
        counts = [getattr(each, "num_steps", None) for each in self._pair]
        counts += [len(self.weight)] if self.weight.ndim else []
        return min((count for count in counts if count is not None), default=None)

    def tree_flatten(self) -> tuple[tuple[Denoiser, Denoiser, Array], None]:
        """For JAX: what is traced."""
        return (self.conditional, self.unconditional, self.weight), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any, Any, Any]) -> Self:
        """For JAX: the same with whatever it has in place of the arrays, which is not checked."""
        self = object.__new__(cls)
        self.conditional, self.unconditional, self.weight = children
        return self

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`."""
        own, other = (each(x, step) for each in self._pair)
        if not own.shape == other.shape == x.shape:
            raise UserError(
                f"the guided denoisers give noise of shapes {own.shape} and {other.shape} for x "
                f"of shape {x.shape}: take two denoisers of the same data"
            )
        weight = self.weight if self.weight.ndim == 0 else self.weight[step]
        w = broadcast_right(weight.astype(x.dtype), x.ndim)
        return (1 + w) * own - w * other


def _require_equal_times(schedules: list[NoiseSchedule]) -> None:
    """Refuses schedules of different noise levels; within compiled code they cannot be read."""
    read = [each.time for each in schedules if not isinstance(each.time, jax.core.Tracer)]
    if read:
        first, *others = (np.asarray(time, np.float64) for time in read)
        same = (len(each) == len(first) and np.allclose(each, first, 1e-3, 0) for each in others)
        if not all(same):
            lengths = " and ".join(str(len(each)) for each in (first, *others))
            raise UserError(
                f"the guided denoisers, or the weight, have different schedules ({lengths} steps), "
                f"so that a step is two noise levels: make them of one schedule"
            )


def _table(weight: Any, schedule: NoiseSchedule | None, num_steps: int | None) -> Array:
    """The weight as an array of JAX's default float type, () or (num_steps,)."""
    dtype = jnp.result_type(float)
    if isinstance(weight, Array | np.ndarray):
        _require_values(weight, num_steps)
        return jnp.asarray(weight).astype(dtype)
    if not callable(weight):
        return jnp.asarray(tabulated(weight, np.zeros(1))[0], dtype)
    if schedule is None:
        raise UserError(
            "a guidance weight that is a function of time needs a schedule, and neither denoiser "
            "has one: give schedule="
        )
    return jnp.asarray(tabulated(weight, np.asarray(schedule.time, np.float64)), dtype)


def _require_values(weight: Array | np.ndarray, num_steps: int | None) -> None:
    """Refuses an array that is neither one finite number nor one per step."""
    if weight.ndim > 1 or (weight.ndim == 1 and num_steps not in (None, len(weight))):
        steps = "num_steps" if num_steps is None else num_steps
        raise UserError(
            f"guidance weights of shape {weight.shape}: give one number, or one per step, "
            f"({steps},)"
        )
    if isinstance(weight, jax.core.Tracer):
        return
    values = np.atleast_1d(np.asarray(weight))
    if values.dtype.kind not in "fiu":
        raise UserError(f"guidance weights of type {values.dtype}: give numbers")
    if not np.isfinite(values).all():
        bad = int(np.argmin(np.isfinite(values)))
        where = f" at step {bad}" if weight.ndim else ""
        raise UserError(f"the guidance weight{where} is {values[bad]}: give finite weights")
