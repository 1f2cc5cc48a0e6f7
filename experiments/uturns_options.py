"""The options of `experiments.uturns`, and what they name: a run or a data set, and its scores."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from diffusion_jax.data.images import ImageSet
from diffusion_jax.denoisers import DENOISERS
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import transitions
from diffusion_jax.sampling import SAMPLERS, check_sampler
from diffusion_jax.sampling.backward import default_patch
from diffusion_jax.sampling.respacing import Clock
from diffusion_jax.schedule import NoiseSchedule
from diffusion_jax.schedules import SCHEDULES
from diffusion_jax.training import run
from experiments import run_or_data
from experiments.data_options import DataOptions

TRAINED = "trained"
# What brings images back by default, as far as there are a network and classes.
SCORES = (TRAINED, "exact", "classes")
# Up to which images go by default.
TIMES = np.geomspace(0.05, 3.0, 12)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """Takes images up to a time with noise and back, and measures what comes back."""

    what: Annotated[str, tyro.conf.Positional]
    """A run's folder, as experiments.train_lsun or experiments.convert writes it; or a data set of
    the list below, or the path of a folder of images, a table of them, Parquet, an .npy or an
    .npz: then without a network."""
    data: str | None = None
    """Of a run: where the images that it was trained on are now, if they moved: a path, as training
    takes it, known by their pixels."""
    out: Path | None = None
    """Folder for the results; by default RUN_DIR/uturns, of a data set runs/uturns/NAME."""
    times: tuple[float, ...] | None = None
    """Ornstein-Uhlenbeck times, rounded to the schedule's; by default 12 from 0.05 to 3."""
    images: int = 64
    """Images of the training set, and as many held-out ones; at least 2."""
    returns: int = 2
    """Returns of each image from each time; at least 2."""
    scores: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(metavar=f"{TRAINED}|{'|'.join(DENOISERS)}")
    ] = None
    """What brings images back: the network, or a score made of the training set, as
    experiments.cloning has them; by default trained, exact and classes."""
    patch: int | None = None
    """Side of the patches in pixels, odd, of the scores local and equivariant; 5 by default."""
    sampler: Annotated[str, tyro.conf.arg(metavar="|".join(SAMPLERS))] = "ancestral"
    """The sampler; with one without noise (ddim, dpm-solver-2m) returns differ by the noise going
    up."""
    calls: int | None = None
    """Denoiser calls of the way back from pure noise; ways back from lower times take the last of
    these steps. By default all steps of the schedule are taken."""
    clock: Clock = "step"
    """With fewer calls than steps: the clock over which the steps taken are spread evenly."""
    clip: bool = True
    """Keep the data that the network predicts within the data's range, as experiments.sample does;
    never where the run is faithful, and never of a score in closed form."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the network, whatever the run was trained in."""
    batch_size: int = 32
    """Images at a time; a kill costs the work on that many."""
    classifier_per_class: int | None = None
    """Images per class on which the classifier is trained; by default those of the run."""
    held_out: int | None = None
    """Images of each class to hold out where the run held out none: the next in the source's order;
    by default enough for --images."""
    accuracy: float = 5e-3
    """Target standard error of the posterior's curves."""
    seed: int = 0
    """Seed of the noise, of the choice of images, of the classifier and of the bootstrap."""

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        for name, least in (("images", 2), ("returns", 2), ("batch_size", 1), ("held_out", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                why = {
                    "images": ": intervals are over images",
                    "returns": ": the susceptibility is of differences between an image's returns",
                }.get(name, "")
                raise UserError(f"{name} = {value} must be at least {least}{why}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed = {self.seed} must lie between 0 and 2^32 - 1")
        transitions.check_accuracy(self.accuracy, transitions.MAX_DRAWS)
        check_sampler(self.sampler)
        if self.scores is not None:
            self._check_scores(self.scores)

    def _check_scores(self, scores: tuple[str, ...]) -> None:
        if unknown := [name for name in scores if name not in (TRAINED, *DENOISERS)]:
            raise UserError(
                f"there is no score {unknown[0]!r}; choose from {TRAINED}, {', '.join(DENOISERS)}"
            )
        if not scores or len(set(scores)) < len(scores):
            raise UserError(f"scores = {scores} must name at least one, and each once")

    def side(self, score: str) -> int | None:
        """The side of a score's patches; None where it has none."""
        own = default_patch(score)
        return own if own is None or self.patch is None else self.patch

    def name(self, score: str) -> str:
        """What a score is called, its patch with it: exact, local_5."""
        side = self.side(score)
        return score if side is None else f"{score}_{side}"


@dataclasses.dataclass(frozen=True)
class Subject:
    """Whose images take U-turns.

    Attributes:
      model: the run; None for a data set alone.
      images: the training images.
      schedule: the noise schedule.
      folder: where results go.
    """

    model: run.TrainedModel | None
    images: ImageSet
    schedule: NoiseSchedule
    folder: Path

    @property
    def labels(self) -> np.ndarray | None:
        """Of the training images, where there are two classes or more."""
        return self.images.labels if len(self.images.class_names) > 1 else None

    def scores(self, options: Options) -> tuple[str, ...]:
        """The scores that are asked for.

        Raises:
          UserError: a network where there is none, classes where there are none, or patches of
            scores without.
        """
        possible = {TRAINED: self.model is not None, "classes": self.labels is not None}
        if options.scores is None:
            chosen = tuple(name for name in SCORES if possible.get(name, True))
        else:
            chosen = options.scores
            if TRAINED in chosen and not possible[TRAINED]:
                raise UserError(
                    f"{options.what} is a data set, without a network: leave {TRAINED} out of "
                    f"--scores, or give a run's folder"
                )
            if "classes" in chosen and not possible["classes"]:
                raise UserError("the score classes needs images of two classes or more")
        if options.patch is not None and all(default_patch(name) is None for name in chosen):
            able = " or ".join(name for name in DENOISERS if default_patch(name) is not None)
            raise UserError(
                f"--scores {' '.join(chosen)} compare no patches: leave --patch out, or add {able}"
            )
        return chosen


def subject_of(options: Options) -> Subject:
    """Opens the run, or loads the data set.

    Raises:
      UserError: see `run_or_data.opened`.
    """
    of_runs = ("classifier_per_class", "held_out")
    model, images = run_or_data.opened(options.what, options, of_runs, options.dtype)
    schedule = SCHEDULES["linear"]() if model is None else model.sampler.schedule
    folder = run_or_data.folder_of(options.what, options, options.out, "uturns")
    return Subject(model, images, schedule, folder)
