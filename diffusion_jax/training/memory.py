"""What a run's kept evaluations say of its memory, update by update: G, M, and when to stop."""

import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from diffusion_jax.config import StoppingConfig
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.loss_information import Strata, information
from diffusion_jax.runtime.files import parse_json
from diffusion_jax.training import evaluations
from diffusion_jax.training.evaluations import Evaluation, Exact

SUMMARY = "summary.json"
# Of the summary: which checkpoint early stopping keeps, and why it ended the run.
MEMORISATION = "memorisation"
# Of metrics.jsonl: U of the training images and of those held out, G and M, all down to the time.
TIME = "information_time"
TRAINING, HELD_OUT = "training_nats", "held_out_nats"
GAP, SHARE = "nats_per_image", "memory_share"
# Where the exact score is not compared.
_TIME = 0.05
# Standard errors by which a change must lie above a threshold.
_SURE = 3.3


def time_of(exact: Exact | None) -> float:
    """The time down to which a run's information is given: see `Exact`; 0.05 without it."""
    return _TIME if exact is None else exact.time


def metrics_of(strata: Strata, drawn: Evaluation, exact: Exact | None) -> dict[str, float]:
    """What metrics.jsonl says of one evaluation: without held-out images neither G nor M."""
    time = time_of(exact)
    above = strata.above(time)
    if drawn.held_out is None:
        return {TIME: time, TRAINING: float(drawn.training.per_image(above).mean())}
    known = None if exact is None else exact.losses
    found = information(drawn.training, drawn.held_out, above, known)
    values = {TRAINING: found.training, HELD_OUT: found.held_out, GAP: found.gap}
    if found.share is not None:
        values[SHARE] = found.share
    numbers = {TIME: time} | {name: float(each.value) for name, each in values.items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Verdict:
    """Whether a run memorises at an evaluation.

    Attributes:
      step: of the evaluation.
      best: that of the one with the lowest held-out U so far.
      time: down to which U, G and M are taken.
      held_out: U at the best one, in nats per image.
      gained: change of G from the best one, with 3.3 standard errors to either side.
      rise: change of the held-out U from the best one, likewise.
      share: M; NaN where it says nothing, None where the exact score is not compared.
      why: what ends the run, None where it goes on.
      by_gap: whether that is G, for which there are thresholds.
    """

    step: int
    best: int
    time: float
    held_out: float
    gained: Estimate
    rise: Estimate
    share: float | None
    why: str | None
    by_gap: bool

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of `dataclasses.asdict`."""
        found = {name: Estimate(**values[name]) for name in ("gained", "rise")}
        return cls(**(values | found))

    def described(self, stopping: StoppingConfig) -> str:
        """How far the run is from its end."""
        share = "" if self.share is None else f", M {self.share:.2f} of {stopping.stop_share:g}"
        if self.best == self.step:
            return f"the held-out U is the lowest so far, {self.held_out:.2f} nats{share}"
        return (
            f"since step {self.best} G has changed by {_shown(self.gained)} of "
            f"{stopping.stop_nats:g} nats, the held-out U by {_shown(self.rise)}{share}"
        )

    def to_json(self) -> dict[str, Any]:
        """What summary.json says of it."""
        return {
            "best_step": self.best,
            "held_out_nats": self.held_out,
            "time": self.time,
            "stopped": None if self.why is None else {"step": self.step, "why": self.why},
        }


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def judge(
    drawn: dict[int, Evaluation],
    strata: Strata,
    exact: Exact | None,
    stopping: StoppingConfig,
) -> Verdict:
    """Whether a run memorises at the last of some evaluations.

    A change counts where it lies by 3.3 standard errors above its threshold. There are many looks,
    and they compare with the lowest held-out U so far, which is low by chance too: at 95 % a
    quarter to a third of the runs that neither improve nor memorise would end within 15 looks, so
    less than 1 in 100 does (simulated with the scatter of networks trained on digits).

    Args:
      drawn: evaluations by their updates, increasing, with held-out images.
      strata: of their losses.
      exact: what the exact score knows of the same training images; without it G alone decides.
      stopping: how much of G and M is memory; see `StoppingConfig`.

    Raises:
      UserError: an evaluation without held-out images.
    """
    time, known = time_of(exact), None if exact is None else exact.losses
    sets = {step: each.both for step, each in drawn.items()}
    above, last = strata.above(time), max(sets)
    held_out = {step: float(each[1].per_image(above).mean()) for step, each in sets.items()}
    best = min(held_out, key=held_out.__getitem__)
    (own, other), reference = sets[last], sets[best]
    found = information(own, other, above, known)
    change = information(own - reference[0], other - reference[1], above)
    gained, rise = change.gap.within(_SURE), change.held_out.within(_SURE)
    share = None if found.share is None else float(found.share.value)
    why, by_gap = None, False
    if gained.low > stopping.stop_nats and (share is None or share > stopping.stop_share):
        by_gap, why = (
            True,
            (
                f"G has grown by {_shown(gained)} nats per image since step {best}, over "
                f"{stopping.stop_nats:g}"
            ),
        )
        if share is not None:
            why += f", and the memory share is {share:.2f}, over {stopping.stop_share:g}"
    elif rise.low > 0:
        why = f"the held-out U has risen by {_shown(rise)} nats per image since step {best}"
    return Verdict(last, best, time, held_out[best], gained, rise, share, why, by_gap)


def judge_run(
    run_dir: Path,
    step: int,
    saved: Collection[int],
    strata: Strata,
    exact: Exact | None,
    stopping: StoppingConfig,
) -> Verdict | None:
    """`judge` of an update's evaluation, beside those whose checkpoints are saved.

    The best one is among these, unless early stopping was asked for too late to keep it.

    Args:
      run_dir: the run's folder.
      step: updates done.
      saved: steps of the checkpoints.
      strata: see `judge`.
      exact: see `judge`.
      stopping: see `judge`.

    Returns:
      None where there is no evaluation with held-out images.

    Raises:
      UserError: an evaluation is damaged.
    """
    kept = evaluations.kept(run_dir)
    steps = [each for each in kept if each == step or (each < step and each in saved)]
    found = {each: Evaluation.load(evaluations.path_of(run_dir, each)) for each in steps}
    drawn = {each: kept for each, kept in found.items() if kept.held_out is not None}
    return judge(drawn, strata, exact, stopping) if drawn else None


def memory_of(run_dir: Path) -> dict[str, Any] | None:
    """What a run's summary says of early stopping, None where nothing; see `Verdict.to_json`."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # none of this version, or damaged
        found = parse_json((run_dir / SUMMARY).read_bytes())[MEMORISATION]
        return found if isinstance(found["best_step"], int) else None
    return None


def best_step(run_dir: Path) -> int:
    """The update with the lowest held-out U, whose checkpoint a run keeps.

    Raises:
      UserError: the run was not trained with --stop-at.
    """
    if (found := memory_of(run_dir)) is None:
        raise UserError(
            f"{run_dir / SUMMARY} names no best checkpoint: a run keeps one where it is trained "
            f"with --stop-at memorisation"
        )
    step: int = found["best_step"]
    return step
