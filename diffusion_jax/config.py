"""The configuration of a training run: frozen dataclasses, one per concern."""

import dataclasses
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import tyro

from diffusion_jax.errors import UserError
from diffusion_jax.nn import kernels
from diffusion_jax.nn.unet import TIME_STEPS, UNet
from diffusion_jax.runtime.backend import best_dtype
from diffusion_jax.runtime.files import expanded
from diffusion_jax.schedule import NoiseSchedule, from_time
from diffusion_jax.schedules import SCHEDULES, is_path, make_schedule, read_times
from diffusion_jax.symmetry import GROUPS, Group, check_symmetry, group_named


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images."""

    data: str = "lsun"
    """The name of a data set (data.SOURCES holds them, and commands list them above), or a path: a
    folder of images (one subfolder per class), a table of images, Parquet, an .npy or an .npz.
    docs/data.md says which files each needs and where they come from."""
    classes: tuple[str, ...] = ("church_outdoor", "conference_room")
    """The classes: LSUN categories, digits, WordNet names and so on; of a path, all by default."""
    images_per_class: int | None = 20_000
    """Images of each class, the first in the source's order; of a path, all by default."""
    held_out_per_class: int = 0
    """Images of each class that are held out, those that follow the images trained on; for
    evaluations alone (see evaluate_every). Crops of photographs overlap, so held-out ones are not
    independent of the training."""
    skip_per_class: int = 0
    """Images of each class to leave out, the first ones: those trained on come after them."""
    held_out_after: int | None = None
    """Hold out the images that come after this many of each class, so that runs on other images are
    judged by the same ones; by default those after the images trained on."""
    image_size: int | None = 64
    """Pixels per side; None takes the images of a path as they are."""
    grey: bool = False
    """Take the grey levels of colour images, 0.299 R + 0.587 G + 0.114 B."""
    data_dir: Path | None = None
    """Where the data set's files lie; by default data/NAME below the current folder."""
    prepared_dir: Path | None = None
    """Where prepared images go; by default DATA_DIR/prepared."""
    memory_gib: float | None = None
    """Limit in GiB: images that take more memory are read from a file in prepared_dir as they are
    needed; by default half of the free memory. It changes nothing in the training."""
    flat: bool = False
    """Take the images at every depth of a folder of your own as one class; by default each of its
    subfolders is a class."""

    def __post_init__(self) -> None:
        if isinstance(self.classes, str):
            raise UserError(f"classes = {self.classes!r} must be a tuple of names")
        object.__setattr__(self, "data", str(self.data))  # Python code gives paths and lists
        object.__setattr__(self, "classes", tuple(self.classes))
        for name in ("data_dir", "prepared_dir"):
            if (folder := getattr(self, name)) is not None:
                object.__setattr__(self, name, expanded(folder))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The UNet."""

    base_channels: int = 64
    """Width of the first level."""
    multiples: tuple[int, ...] = (1, 2, 4, 4)
    """Width of each level, in units of the first."""
    attention_levels: tuple[int, ...] = (2, 3)
    """Levels with self-attention, counted from 1 (the full resolution)."""
    num_res_blocks: int = 2
    """Residual blocks per level."""
    dropout: float = 0.1
    """Probability of dropping a channel in training."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type of the training; parameters are float32. auto: that of the run where it is
    resumed; else bfloat16 on TPUs and on GPUs that have it, float32 elsewhere. Commands that
    measure a trained model compute in float32."""
    remat: bool = False
    """Compute the activations again in the backward pass: less memory, more time. On the CPU XLA
    merges the two computations again, and nothing is gained."""

    def build(self, channels: int) -> UNet:
        """The model for images with this number of channels, with the device's kernels.

        `auto` means what it does for a run that begins here.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        dtype = jnp.dtype(best_dtype() if self.dtype == "auto" else self.dtype)
        return UNet(channels, **(fields | {"dtype": dtype, "kernels": kernels.best()}))


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule."""

    schedule: str = "linear"
    """A name (commands list them above), such as linear, cosine or constant; or the path of a
    schedule.json, such as experiments.regimes makes from the data. The run keeps what is in it."""
    diffusion_steps: int = 1000
    """Number of steps of the forward process; a schedule's file has its own."""
    schedule_parameters: dict[str, float] = dataclasses.field(default_factory=dict)
    """Parameters of the schedule in place of its defaults, each a name and a value, such as beta
    0.01."""
    times: tyro.conf.Suppress[tuple[float, ...] | None] = None
    """Ornstein-Uhlenbeck times of the steps, in place of all the above."""

    def settled(self) -> "ScheduleConfig":
        """The same schedule, which no longer needs a file: `times` holds what was in it.

        Raises:
          UserError: a file that cannot be used, or that has other than diffusion_steps steps.
        """
        if self.schedule in SCHEDULES or not is_path(self.schedule):
            return self
        times, asked = read_times(self.schedule), self.diffusion_steps
        if asked not in (len(times), type(self).diffusion_steps):
            raise UserError(
                f"{self.schedule} has {len(times)} steps, not diffusion_steps = {asked}"
            )
        name = Path(self.schedule).stem
        return dataclasses.replace(self, schedule=name, diffusion_steps=len(times), times=times)

    def build(self) -> NoiseSchedule:
        """The schedule.

        Raises:
          UserError: more steps than the model's time table has, or too few for the schedule, or
            what the schedule refuses.
        """
        if (settled := self.settled()) is not self:
            return settled.build()
        steps = self.diffusion_steps if self.times is None else len(self.times)
        if not 1 <= steps <= TIME_STEPS:
            raise UserError(
                f"diffusion_steps = {steps} must lie between 1 and {TIME_STEPS}, the length of the "
                f"model's time table"
            )
        if self.times is not None:
            return from_time(np.asarray(self.times))
        return make_schedule(self.schedule, steps, self.schedule_parameters)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The optimization."""

    batch_size: int = 64
    """Images per update, over all devices."""
    learning_rate: float = 1e-4
    """The optimizer's learning rate after warm-up."""
    warmup_steps: int = 1000
    """Updates of linear warm-up."""
    clip_norm: float = 1.0
    """Global norm above which gradients are scaled down."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the parameters, min(this, (1 + step)/(10 + step))."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam; or sgd, stochastic gradient descent with momentum 0.95, for which the command's
    learning_rate is 0.01 by default."""
    train_at_step: int | None = None
    """Train at one step of the schedule alone, so at one noise level. The model cannot be sampled
    from, but the theory of random features describes its training."""
    accumulation: int = 1
    """Parts into which a device's batch is split to save memory; the gradients add up."""
    steps_per_dispatch: int | Literal["auto"] = "auto"
    """Updates that the host hands to the devices at a time; more than one helps where a device is
    so fast that it waits for the host. Best a divisor of checkpoint_every, sample_every,
    evaluate_every and steps: updates that would pass one of these are handed over one by one, which
    compiles a second program. auto: 1 on CPUs, elsewhere the largest divisor of all these up to
    10."""
    faithful: bool = False
    """Reproduce the authors' code: step 0 is never trained, and sampling adds no noise at steps 1
    and 0 (by default: step 0 is trained, and no noise at step 0 alone)."""
    symmetry: Annotated[str | None, tyro.conf.arg(metavar="|".join(GROUPS))] = None
    """Train on the images moved at random by the maps of a group: each example by a map of its own,
    all equally likely. flip: left for right; dihedral: that and quarter turns, of square images;
    translations: every shift, where what leaves on one side comes back on the other. None by
    default. Moments and memorisation are then those of the images with all their moved copies."""

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        for name in (
            "batch_size",
            "accumulation",
            "steps_per_dispatch",
            "learning_rate",
            "clip_norm",
        ):
            value = getattr(self, name)
            if value != "auto" and not value > 0:  # NaN is not either
                raise UserError(f"{name} = {getattr(self, name)} must be positive")
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps = {self.warmup_steps} must not be negative")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay = {self.ema_decay} must lie in [0, 1)")
        if self.symmetry is not None:
            check_symmetry(self.symmetry)

    def group(self, shape: tuple[int, ...]) -> Group | None:
        """The group of the symmetry for images of a shape (height, width, channels), if any.

        Raises:
          UserError: see `symmetry.group_named`.
        """
        return None if self.symmetry is None else group_named(self.symmetry, shape)


# Preferred numbers, so many times 10, 100 and so on.
_PER_DECADE = (10, 15, 22, 33, 47, 68)
_FIRST_EVALUATION = 33


def log_spaced() -> Iterator[int]:
    """The updates of `--evaluate-at log`, without end; from 100 on multiples of 10."""
    for power in count():
        for number in _PER_DECADE:
            if (step := number * 10**power) >= _FIRST_EVALUATION:
                yield step


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """What a run writes; may differ when it is resumed."""

    run_dir: Path = Path("runs/lsun")
    """The run's folder; the same command in the same folder resumes."""
    log_every: int = 100
    """Updates between two lines of metrics.jsonl."""
    checkpoint_every: int = 5_000
    """Updates between two checkpoints."""
    keep_checkpoints: int = 3
    """How many of the latest checkpoints are kept."""
    sample_every: int | None = 10_000
    """Updates between two grids of samples; one more is drawn at the end. None for no grids."""
    num_samples: int = 64
    """Samples in a grid."""
    sampler: str = "ancestral"
    """Sampler of the grids and evaluations, by its name (commands list them above). Those without
    noise carry the network's early errors along (docs/sampling.md)."""
    clip: bool = True
    """Keep the data that the network predicts within the data's range, in grids and evaluations;
    never where the run is faithful."""
    evaluate_every: int | None = None
    """Updates between two evaluations, none by default: the memorised fraction and the
    nearest-neighbour ratio of samples, and the loss in bands of time on training images and on
    those held out (see held_out_per_class). These go to metrics.jsonl and memorisation.png; what
    was drawn goes to evaluations/."""
    evaluate_at: Literal["log"] | None = None
    """log: evaluate at the updates 33, 47, 68, 100, 150, 220, 330 and so on, six per decade and the
    same for every run, and at the last one; in place of evaluate_every."""
    evaluate_samples: int = 64
    """Samples per evaluation; also its number of training images, where none are held out."""
    evaluate_calls: int = 50
    """Network calls per sample of an evaluation, on steps spread evenly over the log-SNR."""
    profile: int | None = None
    """Updates to trace into RUN_DIR/profile, once the first few are done; none by default."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_dir", Path(self.run_dir))  # Python code gives strings

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise UserError(f"{field.name} = {value} must be at least 1")
        if self.evaluate_at is not None and self.evaluate_every is not None:
            raise UserError(
                f"evaluate_at = {self.evaluate_at} and evaluate_every = {self.evaluate_every} "
                f"exclude each other: leave one of them out"
            )

    @property
    def evaluates(self) -> bool:
        """Whether the run evaluates at all."""
        return self.evaluate_every is not None or self.evaluate_at is not None

    def next_evaluation(self, step: int) -> int | None:
        """The first update after `step` at which an evaluation is due; None where there is none.

        The run's last update is evaluated too.
        """
        if self.evaluate_at is not None:
            return next(each for each in log_spaced() if each > step)
        return self.evaluate_every and step - step % self.evaluate_every + self.evaluate_every


@dataclasses.dataclass(frozen=True)
class StoppingConfig:
    """When a run ends before its last update; may differ when it is resumed."""

    stop_at: Literal["memorisation"] | None = None
    """memorisation: end the run at an evaluation that shows memorisation. Two numbers are measured,
    in nats per image (docs/memorisation.md): the information U that the network has of images, down
    to the time at which the exact score knows the training images; and G, the excess of U on
    held-out images over U on training images. Changes count from the evaluation with the lowest
    held-out U. The run ends where G has grown by more than stop_nats and the memory share is above
    stop_share, or where the held-out U has risen; either by more than 3.3 standard errors. The
    checkpoint of the lowest held-out U is kept (--checkpoint best)."""
    stop_nats: float = 1.0
    """Change of G, in nats per image, above which a run memorises."""
    stop_share: float = 0.1
    """Memory share M = G/(G + K) above which a run memorises: M is 0 for a network that knows its
    training images no better than others, 1 for the exact score of the training images."""

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        if not 0 <= self.stop_nats < math.inf:
            raise UserError(f"stop_nats = {self.stop_nats} must not be negative, nor infinite")
        if not 0 <= self.stop_share <= 1:
            raise UserError(f"stop_share = {self.stop_share} must lie between 0 and 1")


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run."""

    output: OutputConfig = OutputConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    steps: int = 350_000
    """Updates in all, those before a resume included."""
    seed: int = 0
    """Seed of the initial parameters, the order of the data, the noise and the samples."""
    stopping: StoppingConfig = StoppingConfig()

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        self.output.check()
        self.training.check()
        calls, most = self.output.evaluate_calls, self.schedule.diffusion_steps
        if self.output.evaluates and not 2 <= calls <= most:
            raise UserError(
                f"evaluate_calls = {calls} must lie between 2 and diffusion_steps = {most}"
            )
        if not self.output.evaluates and self.data.held_out_per_class > 0:
            raise UserError(
                f"held_out_per_class = {self.data.held_out_per_class} is for evaluations: give "
                f"evaluate_every or evaluate_at too"
            )
        if self.data.held_out_after is not None and self.data.held_out_per_class == 0:
            raise UserError(
                f"held_out_after = {self.data.held_out_after} says where the images begin that are "
                f"held out: give held_out_per_class too"
            )
        self.stopping.check()
        if self.stopping.stop_at is not None and self.data.held_out_per_class == 0:
            raise UserError(
                f"stop_at = {self.stopping.stop_at} compares training images with others: give "
                f"held_out_per_class too, and evaluate_every or evaluate_at"
            )
        step = self.training.train_at_step
        if step is not None and not 0 <= step < self.schedule.diffusion_steps:
            raise UserError(
                f"train_at_step = {step} must lie between 0 and "
                f"{self.schedule.diffusion_steps - 1}, the schedule's last step"
            )
        if step is not None and self.stopping.stop_at is not None:
            raise UserError(
                f"stop_at = {self.stopping.stop_at} looks at all noise levels, and train_at_step = "
                f"{step} trains one: leave one of them out"
            )
        if self.steps < 1:
            raise UserError(f"steps = {self.steps} must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed = {self.seed} must lie between 0 and 2^32 - 1")
