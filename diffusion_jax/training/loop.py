"""The training loop of a run: started, resumed, evaluated, sampled from and saved."""

import json
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.config import Config
from diffusion_jax.data.batches import batch_shape, device_batches
from diffusion_jax.data.fingerprint import changed, fingerprint
from diffusion_jax.data.images import ImageSet
from diffusion_jax.denoisers import TrainedDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.nn.unet import UNet, num_parameters
from diffusion_jax.plots.style import save
from diffusion_jax.plots.training import draw_loss_curve, draw_memorisation, save_image_grid
from diffusion_jax.regimes.spectrum import largest_eigenvalue, speciation_time
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.devices import is_first_process, replicate
from diffusion_jax.runtime.distributed import from_first, require_same
from diffusion_jax.runtime.files import write_json
from diffusion_jax.runtime.preemption import Stopped, StopRequest
from diffusion_jax.sampling import AncestralSampler, sample
from diffusion_jax.schedule import NoiseSchedule
from diffusion_jax.training import evaluation
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.metrics import (
    FRACTION,
    HELD_OUT,
    RATIO,
    TRAINING,
    bands,
    column,
    read_metrics,
)
from diffusion_jax.training.run import as_today, check_same_data, claim, metadata_of, state_like
from diffusion_jax.training.step import (
    Metrics,
    TrainState,
    argument_shapes,
    init_state,
    make_optimizer,
    make_parallel_train_step,
)
from diffusion_jax.training.telemetry import Profile, Telemetry

# Dispatches that the host may be ahead of the metrics it reads: the device always has work queued.
_AHEAD = 2


def _summarize(config: Config, images: ImageSet, parameters: int) -> dict[str, Any]:
    """Says, and saves in summary.json, what is about to be trained on what."""
    spectrum: dict[str, dict[str, float]] = {}
    channels = images.images.shape[-1]
    for name in ("first_channel", "all_channels")[: 1 if channels == 1 else 2]:
        eigenvalue = largest_eigenvalue(images.images, all_channels=name == "all_channels")
        spectrum[name] = {"Lambda": eigenvalue, "t_S": speciation_time(eigenvalue)}
    summary = {
        "devices": [device.device_kind for device in jax.devices()],
        "parameters": parameters,
        "data": config.data.data,
        "images": len(images.images),
        "shape": list(images.images.shape[1:]),
        "classes": list(images.class_names),
        "mean": images.mean.tolist(),
        "spectrum": spectrum,
    }
    write_json(config.output.run_dir / "summary.json", summary, indent=2)
    shape = " x ".join(str(length) for length in images.images.shape[1:])
    print(f"Devices: {jax.device_count()} x {jax.devices()[0].device_kind}")
    print(f"Model: {parameters:,} parameters ({config.model.dtype})")
    if config.model.dtype == "bfloat16" and not backend.has_bfloat16():
        print("Note: this device has no bfloat16 of its own, so it will not be faster than float32")
    print(
        f"Data: {len(images.images):,} images {shape}, {config.data.data} "
        f"({', '.join(images.class_names)})"
    )
    for name, values in spectrum.items():
        label = name.replace("_", " ")
        print(f"Spectrum, {label}: Lambda = {values['Lambda']:.3f}, t_S = {values['t_S']:.3f}")
    return summary


def train(config: Config) -> None:
    """Trains, or goes on training, the model that the configuration describes.

    SIGTERM and Ctrl-C are obeyed once training has begun: see `preemption.StopRequest`.

    Raises:
      UserError: whatever the user can put right; what is saved stays.
      Stopped: a signal asked for it, and the run is saved.
    """
    config.check()
    schedule, optimizer = config.schedule.build(), make_optimizer(config.training)
    claim(config)
    held_out = data.load_held_out(config.data)  # first: it knows at once whether all are there
    images = data.load(config.data)
    if len(images.images) < 2:
        raise UserError(f"training needs at least two images, not {len(images.images)}")
    shape = images.images.shape[1:]
    model = config.model.build(shape[-1])
    model.check(*shape)
    train_step = make_parallel_train_step(
        model, schedule, optimizer, jnp.asarray(images.mean), config.training
    )

    # Hundreds of random draws, each compiled for itself.
    @partial(jax.jit, compiler_options=backend.RUN_ONCE)
    def fresh() -> TrainState:
        return init_state(model, optimizer, jax.random.key(config.seed), shape)

    folder = config.output.run_dir
    like = jax.eval_shape(fresh)
    classes, digest = images.class_names, fingerprint(images)
    metadata = metadata_of(config, shape, images.mean, classes, len(images.images), digest)
    require_same("data set", digest)

    def same_data(saved: dict[str, Any]) -> TrainState:
        check_same_data(saved, metadata)
        return state_like(like, saved)

    if is_first_process():
        _summarize(config, images, num_parameters(like.params))
    outputs = _Outputs(config, model, schedule, images, held_out)
    with ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(folder / "checkpoints", config.output.keep_checkpoints)
        )
        newest = checkpoints.restore_newest(same_data)
        start = 0 if newest is None else newest[0]
        dispatches = list(_dispatches(config, start))
        if dispatches and jax.process_count() == 1:  # beside what comes before the first update
            batch = batch_shape(shape, config.training.batch_size, dispatches[0])
            thread = stack.enter_context(ThreadPoolExecutor(1))
            compiling = thread.submit(train_step.lower(*argument_shapes(like, batch)).compile)
        if newest is not None:
            state = as_today(newest[1], like)
            print(f"Resuming after step {start} from {checkpoints.folder / str(start)}")
        else:
            state = replicate(fresh())
        recorder = _Recorder(config, checkpoints)
        if is_first_process():
            recorder.telemetry = stack.enter_context(
                Telemetry(folder, start, config.steps, config.training.batch_size)
            )
        # What was due when a signal or a kill came between.
        outputs.make_up(start, state.ema_params, recorder)
        if start >= config.steps:
            outputs.draw_curves()
            print(f"All {config.steps} steps are done; give a larger --steps to go on")
            return
        outputs.show_training_images()
        print(f"Writing to {folder}; the first step compiles the model, which takes a while")
        batches = device_batches(
            images.images, config.seed, start, config.training.batch_size, updates=dispatches
        )
        traced = config.output.profile if is_first_process() else None
        profile = stack.enter_context(Profile(folder / "profile", traced))
        stop = stack.enter_context(StopRequest())
        if jax.process_count() == 1:
            compiling.result()
        step = start
        for updates, chosen in zip(dispatches, batches, strict=True):
            with profile.updates(step, updates, state):
                state, metrics = train_step(state, chosen)
            recorder.add(step + 1, metrics)
            step += updates
            last, stopping = step == config.steps, stop.agreed()
            if last or stopping or step % config.output.checkpoint_every == 0:
                recorder.drain()
                _check_finite(step, state)
                _check_unchanged(images, checkpoints)
                checkpoints.save(step, replicate(state), metadata)
                recorder.pause(step)
            if stopping and not last:
                checkpoints.wait()
                raise Stopped(
                    f"stopped after step {step} of {config.steps}, which is saved; the same "
                    f"command goes on"
                )
            outputs.make(step, state.ema_params, recorder)
        checkpoints.wait()
    outputs.draw_curves()
    print(f"Done: {config.steps} steps. Samples, loss curve and checkpoints are in {folder}")


@dataclass(frozen=True)
class _Outputs:
    """What a run shows of its model by the way: evaluations, grids of samples, curves.

    All processes compute them together; the first one writes.
    """

    config: Config
    model: UNet
    schedule: NoiseSchedule
    images: ImageSet
    held_out: ImageSet | None

    def _due(self, step: int, every: int | None) -> bool:
        return every is not None and step > 0 and (step == self.config.steps or step % every == 0)

    def make(self, step: int, params: Any, recorder: "_Recorder") -> None:
        """Evaluates and draws samples where it is time to."""
        if self._due(step, self.config.output.evaluate_every):
            self._evaluate(step, params, recorder)
        if self._due(step, self.config.output.sample_every):
            self._draw_samples(step, params, recorder)

    def make_up(self, step: int, params: Any, recorder: "_Recorder") -> None:
        """Makes what was due after a step, but is not there."""
        records = read_metrics(self.config.output.run_dir / "metrics.jsonl")
        evaluated = any(r["step"] == step and FRACTION in r for r in records)
        # The files are those of process 0.
        missing = json.loads(
            from_first(lambda: json.dumps([not evaluated, not self._grid_path(step).exists()]))
        )
        if missing[0] and self._due(step, self.config.output.evaluate_every):
            self._evaluate(step, params, recorder)
        if missing[1] and self._due(step, self.config.output.sample_every):
            self._draw_samples(step, params, recorder)

    def _grid_path(self, step: int) -> Path:
        return self.config.output.run_dir / "samples" / f"step_{step:08d}.png"

    def show_training_images(self) -> None:
        """Draws some of the training images."""
        if is_first_process():
            order = np.random.default_rng(self.config.seed).permutation(len(self.images.images))
            shown = self.images.images[order[: self.config.output.num_samples]]
            path = self.config.output.run_dir / "samples" / "training_images.png"
            save_image_grid(path, shown / 255 - self.images.mean, self.images.mean)

    def _draw_samples(self, step: int, params: Any, recorder: "_Recorder") -> None:
        recorder.drain()
        # Its own key, so that drawing samples more or less often changes nothing in the training,
        # which has the keys that folding with 0 and 1 gives too.
        key = jax.random.fold_in(jax.random.key(self.config.seed), 3)
        sampler = AncestralSampler(self.schedule, self.config.training.faithful)
        denoiser, shape = TrainedDenoiser(params, self.model), self.images.images.shape[1:]
        images = sample(sampler, denoiser, key, self.config.output.num_samples, shape)
        if is_first_process():
            save_image_grid(self._grid_path(step), images, self.images.mean)
        recorder.pause(step)

    def _evaluate(self, step: int, params: Any, recorder: "_Recorder") -> None:
        recorder.drain()
        metrics = evaluation.evaluate(
            TrainedDenoiser(params, self.model),
            self.schedule,
            self.images,
            self.held_out,
            # Its own key, for the reason that samples have one; the same at every evaluation.
            jax.random.fold_in(jax.random.key(self.config.seed), 2),
            self.config.output.evaluate_samples,
            self.config.output.evaluate_calls,
            self.config.training.faithful,
        )
        shown = f"memorised {metrics[FRACTION]:.1%}, median neighbour ratio "
        recorder.log_evaluation(step, metrics, f"{shown}{metrics[RATIO]:.3f}")

    def draw_curves(self) -> None:
        """Draws what metrics.jsonl holds."""
        if is_first_process():
            folder = self.config.output.run_dir
            records = read_metrics(folder / "metrics.jsonl")
            updates = [record for record in records if "loss" in record]
            curve = draw_loss_curve(column(updates, "step"), column(updates, "loss"))
            save(curve, folder / "loss.png")
            if evaluations := [record for record in records if FRACTION in record]:
                figure = draw_memorisation(
                    column(evaluations, "step"),
                    column(evaluations, FRACTION),
                    column(evaluations, RATIO),
                    bands(evaluations, TRAINING),
                    bands(evaluations, HELD_OUT),
                )
                save(figure, folder / "memorisation.png")


def _dispatches(config: Config, start: int) -> Iterator[int]:
    """How many updates are handed to the devices each time, from `start` to the end.

    steps_per_dispatch, or one where that would pass a checkpoint, a grid of samples, an evaluation
    or the end: two programs at most are compiled.
    """
    together, step, output = config.training.steps_per_dispatch, start, config.output
    stops = [output.checkpoint_every, output.sample_every]
    if output.evaluate_every is not None:
        stops.append(output.evaluate_every)
    while step < config.steps:
        room = min(config.steps - step, *(every - step % every for every in stops))
        updates = together if together <= room else 1
        yield updates
        step += updates


class _Recorder:
    """Reads the metrics a little late, logs them, and stops the run where they are not finite.

    A checkpoint is saved only after `drain`, so never after a loss that is not finite. `telemetry`
    is where they are logged: nowhere, but in the first process.
    """

    def __init__(self, config: Config, checkpoints: Checkpoints) -> None:
        self._config, self._checkpoints = config, checkpoints
        self._pending: deque[tuple[int, Metrics]] = deque()
        self.telemetry: Telemetry | None = None

    def pause(self, step: int) -> None:
        """See `Telemetry.pause`."""
        if self.telemetry is not None:
            self.telemetry.pause(step)

    def log_evaluation(self, step: int, metrics: dict[str, float], shown: str) -> None:
        """See `Telemetry.log_evaluation`."""
        if self.telemetry is not None:
            self.telemetry.log_evaluation(step, metrics, shown)
        self.pause(step)

    def add(self, first: int, metrics: Metrics) -> None:
        """Takes the metrics of one dispatch, whose first update is given."""
        for value in metrics.values():
            value.copy_to_host_async()
        self._pending.append((first, metrics))
        if len(self._pending) > _AHEAD:
            self._record()

    def drain(self) -> None:
        while self._pending:
            self._record()

    def _record(self) -> None:
        first, metrics = self._pending.popleft()
        rows = {name: np.atleast_1d(value).tolist() for name, value in metrics.items()}
        for step, row in enumerate(zip(*rows.values(), strict=True), first):
            self._record_update(step, dict(zip(rows, row, strict=True)))

    def _record_update(self, step: int, values: dict[str, float]) -> None:
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            self._checkpoints.wait()
            good = self._checkpoints.latest
            where = self._checkpoints.folder
            raise UserError(
                f"the loss is {values['loss']} and the gradient's norm {values['grad_norm']} at "
                f"step {step}; "
                + (
                    f"the last good checkpoint is {where / str(good)}"
                    if good
                    else "nothing is saved"
                )
                + "; try, in another --run-dir, a lower "
                "--learning-rate, a longer --warmup-steps or --dtype float32"
            )
        if self.telemetry is None:
            return
        self.telemetry.advance(step, values["loss"])
        if step % self._config.output.log_every == 0 or step == self._config.steps:
            self.telemetry.log(step, values)


def _check_finite(step: int, state: TrainState) -> None:
    # On the host, which the arrays go to in any case: to compile it takes longer.
    saved = {"params": state.params, "average": state.ema_params, "optimizer": state.opt_state}
    for path, leaf in jax.tree.leaves_with_path(saved):
        if not np.isfinite(leaf.addressable_data(0)).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"{name} is not finite after step {step}, which is not saved; try a lower "
                f"--learning-rate in another --run-dir"
            )


def _check_unchanged(images: ImageSet, checkpoints: Checkpoints) -> None:
    if what := changed(images):
        raise UserError(
            f"{what} while the run was training on it: nothing is saved after step "
            f"{checkpoints.latest or 0}; give the data back and run the same command again"
        )
