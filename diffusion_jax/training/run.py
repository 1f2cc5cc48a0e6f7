"""A training run's folder: claimed, described, and opened again to sample from.

It holds config.json, summary.json, metrics.jsonl, tensorboard/, checkpoints/, samples/ and
loss.png, and memorisation.png and profile/ if asked for; converted.json if its first parameters
are another program's.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

import jax
import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.data.images import ImageSet
from diffusion_jax.denoisers import Denoiser, SymmetricDenoiser, TrainedDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.nn.network import Network, described, require_network
from diffusion_jax.runtime import lock
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.runtime.distributed import from_first, require_same, wait_until_seen
from diffusion_jax.runtime.files import write_json, write_npy
from diffusion_jax.runtime.patience import names_in
from diffusion_jax.runtime.text import shown
from diffusion_jax.sampling import AncestralSampler, Backward, Start, backward
from diffusion_jax.sampling.respacing import Clock
from diffusion_jax.schedule import NoiseSchedule
from diffusion_jax.symmetry import Group
from diffusion_jax.training import saved_config
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.memory import best_step
from diffusion_jax.training.moments import start_of
from diffusion_jax.training.saved_state import (
    FORMAT,
    SavedState,
    structure_of,
    to_saved,
    upgrade,
)
from diffusion_jax.training.step import init_state, make_optimizer, state_of

Dtype = Literal["float32", "bfloat16"]
# By which a channel's mean in [0, 1] may differ from a kept one: a sum over millions of pixels in
# float32, or seven typed digits, are off by as much; every grey level of an image counts for more
# in sets of up to 4 000 pixels, and in larger ones the fingerprint tells.
MEAN_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """What sampling needs of a run.

    Attributes:
      config: the run's configuration.
      denoiser: the UNet with the averaged parameters.
      sampler: the ancestral sampler on the run's schedule.
      shape: (height, width, channels) of an image.
      mean: per-channel mean of the training set (channels,).
      class_names: the training set's classes.
      step: updates done.
      fingerprint: that of the training set, where it was kept; see `data.fingerprint`.
      bounds: least and largest value that an image may have, mean removed (channels,) each; None
        for data without.
      start: makes the start that has the training set's moments, see `sampling.matched_start`; None
        where they were not kept.
    """

    config: Config
    denoiser: TrainedDenoiser
    sampler: AncestralSampler
    shape: tuple[int, int, int]
    mean: np.ndarray
    class_names: tuple[str, ...]
    step: int
    fingerprint: str | None = None
    bounds: tuple[np.ndarray, np.ndarray] | None = None
    start: Callable[[NoiseSchedule], Start] | None = None

    def backward(
        self,
        sampler: str = "ancestral",
        calls: int | None = None,
        clock: Clock | NoiseSchedule = "log-snr",
        clip: bool = True,
        symmetrise: Group | None = None,
    ) -> Backward:
        """The model's backward process, as experiments.sample runs it.

        `model.mean + model.backward("ddim", 50).sample(key, 16, model.shape)` are 16 images.

        Args:
          sampler: a name in `sampling.SAMPLERS`.
          calls: of the network per sample; by default all steps are taken.
          clock: what fewer steps are spread over, see `sampling.backward`.
          clip: keep predictions of the data within their range; a faithful run never does.
          symmetrise: the network is averaged over this group, before anything is clipped: each call
            is then |G| calls of the network. See `denoisers.SymmetricDenoiser`.

        Raises:
          UserError: see `sampling.backward`; a group that does not map the model's images.
        """
        denoiser: Denoiser = self.denoiser
        if symmetrise is not None:
            symmetrise.require(self.shape)
            denoiser = SymmetricDenoiser(denoiser, symmetrise)
        bounds = self.bounds if clip else None
        schedule, faithful = self.sampler.schedule, self.sampler.faithful
        return backward(schedule, denoiser, sampler, calls, clock, bounds, self.start, faithful)

    def with_data(self, data: Path | str | None = None, data_dir: Path | None = None) -> Self:
        """The same model with the place where its run's data are now.

        Args:
          data: in place of the configuration's `data`; that, by default.
          data_dir: in place of its `data_dir`; that, by default.
        """
        moved: dict[str, Any] = {
            name: value
            for name, value in (("data", data and str(data)), ("data_dir", data_dir))
            if value is not None
        }
        config = dataclasses.replace(
            self.config, data=dataclasses.replace(self.config.data, **moved)
        )
        return dataclasses.replace(self, config=config)

    def own_images(self, images: ImageSet) -> ImageSet:
        """The images, with the mean that the model was trained with, if they are its training set.

        Raises:
          UserError: they are not.
        """
        known = {
            "shape": list(self.shape),
            "mean": self.mean.tolist(),
            "classes": list(self.class_names),
            "fingerprint": self.fingerprint,
        }
        if difference := _difference(known, data_of(images)):
            raise UserError(
                f"the training images changed since the run: {difference}; give the run its own "
                f"data back, or say with --data and --data-dir where they are now"
            )
        return dataclasses.replace(images, kept_mean=self.mean)


def has_checkpoint(folder: Path) -> bool:
    """Whether something of a run is saved, complete or not, so that it binds those who go on."""
    return any(name.isdigit() for name in names_in(folder / "checkpoints"))


def steps_of(run_dir: Path) -> list[int]:
    """The steps of the checkpoints that are kept, damaged or not, increasing."""
    folder = run_dir / "checkpoints"

    def steps() -> str:
        kept = Checkpoints(folder, read_only=True) if folder.is_dir() else None
        return json.dumps([] if kept is None else kept.steps())

    found: list[int] = json.loads(from_first(steps))
    return found


def claim(config: Config) -> None:
    """Makes the run's folder, or checks that the run in it has the same configuration.

    Where that binds, config.json stays as it is: `saved_config.write` it once all is well.

    Raises:
      UserError: it has another one, or another run trains in it now, or it cannot be written to, or
        is not the same folder for all processes; or these have different configurations.
    """
    require_same("configuration", saved_config.text_of(config))
    try:
        str(place := config.output.run_dir.absolute()).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the path of the run's folder, {shown(str(place))}, is no UTF-8, and checkpoints "
            f"cannot be kept there; give another --run-dir"
        ) from error
    if is_first_process():
        _claim(config)
    path = config.output.run_dir / saved_config.NAME
    text = from_first(path.read_text)  # it is there now
    wait_until_seen(path, lambda: path.read_text() == text)


def _claim(config: Config) -> None:
    folder = config.output.run_dir
    try:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        lock.lock(folder)
    except OSError as error:
        raise UserError(
            f"cannot write to the run's folder {folder}: {error}; give another --run-dir"
        ) from error
    saved_config.settle(config, binding=has_checkpoint(folder))


def data_of(images: ImageSet) -> dict[str, Any]:
    """What a checkpoint's metadata say of the training set, see `metadata_of`."""
    return {
        "shape": list(images.images.shape[1:]),
        "mean": images.mean.tolist(),
        "classes": list(images.class_names),
        "num_images": len(images.images),
        "fingerprint": fingerprint(images),
    }


def metadata_of(config: Config, data: dict[str, Any], network: str | None = None) -> dict[str, Any]:
    """What is saved with every checkpoint beside the arrays.

    Args:
      config: the run's configuration.
      data: shape, mean, classes, num_images and fingerprint of the training set; see `data_of`.
      network: what `described` says of a network in place of the configuration's UNet.
    """
    own = {"network": network}
    return {"format": FORMAT, "config": saved_config.to_dict(config)} | own | data


def check_same_network(folder: Path, saved: dict[str, Any], network: str | None) -> None:
    """Refuses another network than a checkpoint was trained with.

    Args:
      folder: the run's folder.
      saved: the checkpoint's metadata.
      network: what `described` says of a network in place of the configuration's UNet.

    Raises:
      UserError: it is of another class, or has another number of parameters.
    """
    own = "the UNet of its config.json"
    trained, given = saved["network"] or own, network or own
    if trained != given:
        raise UserError(
            f"the run in {folder} trains {trained}, not {given}: a network of one's own is given "
            f"as dj.train(config, network) and dj.load_model(RUN_DIR, network=network)"
        )


def check_same_data(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares the data that a checkpoint was trained on with those that are to be trained on.

    Args:
      saved: what its metadata say of the former; see `data_of`.
      now: what `data_of` gives for the latter.

    Raises:
      UserError: they differ.
    """
    if difference := _difference(saved, now):
        raise UserError(
            f"the data changed since the last checkpoint: {difference}; give the data it was "
            f"trained on (--data and --data-dir say where they are now), or another --run-dir"
        )


def _difference(saved: dict[str, Any], now: dict[str, Any]) -> str | None:
    for name in ("shape", "classes", "num_images"):
        # Models that an earlier version converted do not know their classes.
        if saved.get(name) not in (None, [], now[name]):
            return f"its {name} was {saved[name]} and is {now[name]}"
    if np.abs(np.subtract(saved["mean"], now["mean"])).max() > MEAN_ROUNDING:
        return (
            f"its mean was {saved['mean']} and is {now['mean']} (if a --mean given to "
            f"experiments.convert was wrong, convert again with the latter)"
        )
    # A model that was converted without its data knows them by these alone.
    if saved["fingerprint"] not in (None, now["fingerprint"]):
        return (
            f"their shape, number and mean are the same, but not all pixels and labels in their "
            f"order ({saved['fingerprint'][:12]} is now {now['fingerprint'][:12]})"
        )
    return None


def import_parameters(
    config: Config,
    params: Any,
    data: dict[str, Any],
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Makes a run that starts from given parameters, saved as its step 0.

    Args:
      config: the run's configuration; its folder must hold no run yet.
      params: the model's parameters; they become the averaged ones too.
      data: shape, mean, classes, num_images and fingerprint (or None) of the training set, as
        `data_of` gives them.
      beside: what else the folder is to hold, by name: arrays for .npy files, others for JSON.

    Raises:
      UserError: there is a run in the folder, or it cannot be written to.
    """
    config.check()
    folder = config.output.run_dir
    if has_checkpoint(folder):
        raise UserError(f"{folder} holds a run already; give another --run-dir")
    height, width, channels = data["shape"]
    model, optimizer = config.model.build(channels), make_optimizer(config.training)
    model.check(height, width, channels)
    _, key = jax.random.split(jax.random.key(config.seed))
    state = state_of(params, optimizer, key)
    try:
        claim(config)
        for name, value in (beside or {}).items():
            write = write_npy if isinstance(value, np.ndarray) else write_json
            write(folder / name, value)
        with Checkpoints(folder / "checkpoints", config.output.keep_checkpoints) as checkpoints:
            checkpoints.save(0, to_saved(state), metadata_of(config, data))
            checkpoints.wait()
    finally:
        lock.release(folder)


def load_model(
    run_dir: Path | str,
    dtype: Dtype = "float32",
    *,
    network: Network | None = None,
    step: int | Literal["best"] | None = None,
) -> TrainedModel:
    """Opens a run to sample from it.

    Args:
      run_dir: the run's folder.
      dtype: compute type of the network, whatever it was trained in. Three digits are too few for
        what happens at small times: see docs/sampling.md.
      network: that of a run that was trained with one of its own; it computes in its own type.
      step: of the checkpoint that is taken, see `steps_of`; "best" takes the one that early
        stopping kept; the newest by default.

    Raises:
      UserError: no run there, nothing saved in it yet, a model other than config.json's, a
        network of another class, or no whole checkpoint of that step; "best"
        of a run without early stopping.
    """
    if dtype not in get_args(Dtype):
        raise UserError(f"dtype = {dtype!r} must be {' or '.join(get_args(Dtype))}")
    if network is not None:
        require_network(network)
    run_dir = Path(run_dir).expanduser()

    def described_run() -> str:
        config = saved_config.read(run_dir)
        if not (run_dir / "checkpoints").is_dir():
            raise UserError(f"the run in {run_dir} has no checkpoint yet")
        return json.dumps(saved_config.to_dict(config))

    config = saved_config.from_dict(json.loads(from_first(described_run)))

    def like(saved: dict[str, Any]) -> SavedState:
        saved = upgrade(saved)
        saved_config.require_same_model(run_dir, config, saved["config"])
        model: Network = network or config.model.build(saved["shape"][-1])
        optimizer = make_optimizer(config.training)
        today = jax.eval_shape(
            lambda: init_state(model, optimizer, jax.random.key(0), saved["shape"])
        )
        own = described(network, today.flat_params.size)
        check_same_network(run_dir, saved, own)
        return structure_of(today, saved)

    with Checkpoints(run_dir / "checkpoints", read_only=True) as checkpoints:
        if step == "best":
            step = int(from_first(lambda: str(best_step(run_dir))))
        if step is None:
            found = checkpoints.restore_newest(like)
        else:
            found = checkpoints.restore_step(step, like)
    if found is None:
        raise UserError(f"the run in {run_dir} has no checkpoint yet")
    step, state, saved = found[0], found[1], upgrade(found[2])
    mean = np.asarray(saved["mean"], np.float32)
    own = dataclasses.replace(config.model, dtype=dtype).build(saved["shape"][-1])
    params = state.ema_params
    if network is None and dtype != "float32":
        params = own.cast(params)
    return TrainedModel(
        config=config,
        denoiser=TrainedDenoiser(params, network or own),
        sampler=AncestralSampler(config.schedule.build(), config.training.faithful),
        shape=tuple(saved["shape"]),
        mean=mean,
        class_names=tuple(saved["classes"]),
        step=step,
        fingerprint=saved["fingerprint"],
        bounds=(-mean, 1 - mean),  # training takes grey levels alone
        start=start_of(run_dir, saved["fingerprint"], config.training.symmetry),
    )
