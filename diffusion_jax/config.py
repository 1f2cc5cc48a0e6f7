"""The configuration of a training run: frozen dataclasses, one per concern."""

import dataclasses
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
    folder of images (a subfolder a class), a table of images, Parquet, an .npy or an .npz.
    docs/data.md says which files each needs and where they come from."""
    classes: tuple[str, ...] = ("church_outdoor", "conference_room")
    """The classes: LSUN categories, digits, WordNet names and so on; of a path, all by default."""
    images_per_class: int | None = 20_000
    """The first so many images of each class, in the source's order; of a path, all by default."""
    held_out_per_class: int = 0
    """How many of the images after those of each class are held out, for evaluations alone (see
    evaluate_every). Crops of photographs overlap, so theirs are not independent of the training."""
    image_size: int | None = 64
    """Pixels a side; None takes the images of a path as they are."""
    data_dir: Path | None = None
    """Where the data set's files lie; by default data/NAME below the current folder."""
    prepared_dir: Path | None = None
    """Where prepared images go; by default DATA_DIR/prepared."""
    memory_gib: float | None = None
    """Images that take more memory than so many GiB are read from a file in prepared_dir as they
    are needed; by default half of the memory that is free. Changes nothing in the training."""
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
    """Residual blocks a level."""
    dropout: float = 0.1
    """Probability of dropping a channel in training."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type of the training; parameters are float32. auto: that of the run if it goes on;
    else bfloat16 on TPUs and on GPUs that have it, float32 elsewhere. What measures a trained model
    computes in float32."""
    remat: bool = False
    """Compute the activations again in the backward pass: less memory, more time. On the CPU XLA
    merges the two computations again, and nothing is gained."""

    def build(self, channels: int) -> UNet:
        """The model for images of so many channels, with the device's kernels.

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
    """Number of steps of the forward process; that of a schedule's file comes from the file."""
    schedule_parameters: dict[str, float] = dataclasses.field(default_factory=dict)
    """Parameters of the schedule other than its own values, each a name and a value, such as
    beta 0.01."""
    times: tyro.conf.Suppress[tuple[float, ...] | None] = None
    """Ornstein-Uhlenbeck times of the steps, in place of all the above."""

    def settled(self) -> "ScheduleConfig":
        """The same schedule without need of a file: `times` holds what was in it.

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
    """Images an update, over all devices."""
    learning_rate: float = 1e-4
    """Adam's learning rate after warm-up."""
    warmup_steps: int = 1000
    """Updates of linear warm-up."""
    clip_norm: float = 1.0
    """Global norm above which gradients are scaled down."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the parameters, min(this, (1 + step)/(10 + step))."""
    accumulation: int = 1
    """Parts into which a device's batch is split to save memory; the gradients add up."""
    steps_per_dispatch: int | Literal["auto"] = "auto"
    """Updates that the host hands to the devices at a time; more help where a device is so fast
    that it waits for the host. Best a divisor of checkpoint_every, sample_every, evaluate_every and
    steps: updates that would pass one of these are handed over singly, which compiles a second
    program. auto: on CPUs 1, elsewhere the largest divisor of all these up to 10."""
    faithful: bool = False
    """Reproduce the authors' code: step 0 is never trained, and sampling adds no noise at steps 1
    and 0 (by default: step 0 is trained, and no noise at step 0 alone)."""
    symmetry: Annotated[str | None, tyro.conf.arg(metavar="|".join(GROUPS))] = None
    """Train on the images moved at random by the maps of a group: each example by a map of its own,
    all equally likely. flip: left for right; dihedral: that and quarter turns, of square images;
    translations: every shift, with what leaves on one side coming back on the other. None by
    default. Moments and memorisation are then those of the images with all their moved ones."""

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
    sample_every: int = 10_000
    """Updates between two grids of samples."""
    num_samples: int = 64
    """Samples in a grid."""
    sampler: str = "ancestral"
    """Sampler of the grids and evaluations, by its name (commands list them above). Those without
    noise carry the network's early errors along (docs/sampling.md)."""
    clip: bool = True
    """Keep what the network predicts of the data, in grids and evaluations, within their range;
    never where the run is faithful."""
    evaluate_every: int | None = None
    """Updates between two evaluations, none by default: the memorised fraction and the
    nearest-neighbour ratio of samples, and the loss in bands of time on training images and on
    those held out (see held_out_per_class). They go to metrics.jsonl and memorisation.png."""
    evaluate_samples: int = 64
    """Samples an evaluation; and its training images, where none are held out."""
    evaluate_calls: int = 50
    """Calls of the network per sample of an evaluation, on steps spread evenly over the log-SNR."""
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

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        self.output.check()
        self.training.check()
        calls, most = self.output.evaluate_calls, self.schedule.diffusion_steps
        if self.output.evaluate_every is not None and not 2 <= calls <= most:
            raise UserError(
                f"evaluate_calls = {calls} must lie between 2 and diffusion_steps = {most}"
            )
        if self.output.evaluate_every is None and self.data.held_out_per_class > 0:
            raise UserError(
                f"held_out_per_class = {self.data.held_out_per_class} is for evaluations: give "
                f"evaluate_every too"
            )
        if self.steps < 1:
            raise UserError(f"steps = {self.steps} must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed = {self.seed} must lie between 0 and 2^32 - 1")
