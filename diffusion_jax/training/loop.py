"""The training loop of a run: started, resumed, evaluated, sampled from and saved."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.config import Config
from diffusion_jax.data.batches import batch_shape, device_batches
from diffusion_jax.data.fingerprint import changed
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.nn.network import Network, described, require_network
from diffusion_jax.runtime import lock
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.runtime.distributed import from_first, require_same
from diffusion_jax.runtime.output import outliving_its_reader
from diffusion_jax.runtime.preemption import Stopped, StopRequest
from diffusion_jax.training import saved_config
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.memory import Verdict, memory_of
from diffusion_jax.training.outputs import Outputs, check_processes, summarize
from diffusion_jax.training.recorder import Recorder
from diffusion_jax.training.run import (
    check_same_data,
    check_same_network,
    claim,
    data_of,
    has_checkpoint,
    metadata_of,
)
from diffusion_jax.training.saved_state import (
    SavedState,
    from_saved,
    structure_of,
    to_saved,
    upgrade,
)
from diffusion_jax.training.step import (
    TrainState,
    argument_shapes,
    fresh_state,
    init_state,
    make_optimizer,
    make_parallel_train_step,
)
from diffusion_jax.training.telemetry import Profile, Telemetry

# Updates a dispatch where `steps_per_dispatch` is auto: more would save next to nothing.
_AT_MOST = 10


@outliving_its_reader()
def train(config: Config, network: Network | None = None) -> None:
    """Trains, or goes on training, the model that the configuration describes.

    SIGTERM, Ctrl-C, SIGHUP and other signals are obeyed once training has begun: see
    `preemption.StopRequest`. It goes on where nobody reads what it prints any more.

    Args:
      config: the run's configuration.
      network: what is trained in place of the configuration's UNet, for images of the data's
        shape; `load_model` is to be given it too.

    Raises:
      UserError: whatever the user can put right; what is saved stays.
      Stopped: a signal asked for it, and the run is saved.
    """
    config.check()
    try:
        _train(decide(config), network)
    finally:
        lock.release(config.output.run_dir)


def _train(config: Config, network: Network | None) -> None:
    run, folder = _Run.prepare(config, network), config.output.run_dir
    with ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(folder / "checkpoints", config.output.keep_checkpoints)
        )
        newest = checkpoints.restore_newest(run.structure_of)
        start = 0 if newest is None else newest[0]
        if config.steps < start:
            raise UserError(
                f"the run in {folder} has done {start} updates, more than steps = {config.steps}: "
                f"nothing is changed; give a larger --steps to go on"
            )
        if newest is not None:
            run = run.with_mean(newest[2]["mean"])
        if is_first_process():
            run.describe()
        dispatches = list(_dispatches(config, start))
        compiling = run.compile(dispatches, stack)
        if newest is not None:
            state = from_saved(newest[1], run.like)
            print(f"Resuming after step {start} from {checkpoints.folder / str(start)}")
        else:
            state = run.fresh()
        recorder = Recorder(config, checkpoints)
        if is_first_process():
            recorder.telemetry = stack.enter_context(
                Telemetry(folder, start, config.steps, config.training.batch_size)
            )
        if (known := memory_of(folder)) is not None:
            checkpoints.preserve(known["best_step"])
        # What was due when a signal or a kill came between.
        run.outputs.make_up(start, state, recorder)
        found = run.outputs.judge(start, checkpoints.steps())
        if found is not None and found.why is not None:
            run.outputs.draw_curves()
            other = "Another --stop-nats or --stop-share, or " if found.by_gap else ""
            print(f"{_ended(found)}. {other}--stop-at None goes on")
            return
        if start >= config.steps:
            run.outputs.draw_curves()
            print(f"All {config.steps} steps are done; give a larger --steps to go on")
            return
        run.outputs.show_training_images()
        print(f"Writing to {folder}; the first step compiles the model, which takes a while")
        traced = config.output.profile if is_first_process() else None
        profile = stack.enter_context(Profile(folder / "profile", traced))
        stop = stack.enter_context(StopRequest())
        if compiling is not None:
            compiling.result()
        found = _update(run, state, start, dispatches, checkpoints, recorder, profile, stop)
        checkpoints.wait()
    run.outputs.draw_curves()
    done = f"Done: {config.steps} steps" if found is None else _ended(found)
    print(f"{done}. Samples, loss curve and checkpoints are in {folder}")


def _ended(found: Verdict) -> str:
    return (
        f"Stopped by --stop-at after step {found.step}: {found.why}; the lowest held-out U, "
        f"{found.held_out:.2f} nats down to t = {found.time:.3g}, is that of step {found.best}, "
        f"which is kept (--checkpoint best)"
    )


def decide(config: Config) -> Config:
    """The configuration with a schedule read from its file, and a compute type in place of `auto`.

    The type is process 0's, for all.

    Raises:
      UserError: see `ScheduleConfig.settled`.
    """
    config = dataclasses.replace(config, schedule=config.schedule.settled())
    if config.model.dtype != "auto":
        return config
    folder = config.output.run_dir
    dtype: Any = from_first(lambda: saved_config.dtype_of(config, has_checkpoint(folder)))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))


@dataclass(frozen=True)
class _Run:
    """What a training is made of, before it is known where it begins.

    Attributes:
      config: the run's configuration.
      images: the training images; their mean is the one that the run was begun with.
      metadata: what is saved with every checkpoint.
      like: shapes of the train state.
      fresh: makes the train state of update 0.
      step: the parallel train step.
      outputs: what the run shows along the way.
      network: what is trained in place of the configuration's UNet.
    """

    config: Config
    images: ImageSet
    metadata: dict[str, Any]
    like: TrainState
    fresh: Callable[[], TrainState]
    step: jax.stages.Wrapped
    outputs: Outputs
    network: Network | None

    @classmethod
    def prepare(cls, config: Config, network: Network | None = None) -> "_Run":
        """Claims the run's folder, loads the data and makes the model."""
        check_processes(config)  # before anything that takes long
        if network is not None:
            require_network(network)
        claim(config)
        try:
            images, held_out = data.load_split(config.data)
        except UserError as error:
            if not has_checkpoint(config.output.run_dir):
                raise
            raise UserError(
                f"{error}; --data and --data-dir say where a run's data are now"
            ) from error
        if len(images.images) < 2:
            raise UserError(f"training needs at least two images, not {len(images.images)}")
        known = data_of(images)
        require_same("data set", known["fingerprint"])
        return cls._of(config, network, images, held_out, known)

    @classmethod
    def _of(
        cls,
        config: Config,
        network: Network | None,
        images: ImageSet,
        held_out: ImageSet | None,
        known: dict[str, Any],
    ) -> "_Run":
        schedule, optimizer = config.schedule.build(), make_optimizer(config.training)
        shape = images.images.shape[1:]
        model: Network = network or config.model.build(shape[-1])
        model.check(*shape)
        config.training.group(shape)  # refuses images that it does not map
        mean = jnp.asarray(images.mean)
        step = make_parallel_train_step(model, schedule, optimizer, mean, config.training)

        key = jax.random.key(config.seed)
        like = jax.eval_shape(lambda: init_state(model, optimizer, key, shape))
        fresh = partial(fresh_state, model, optimizer, key, shape)
        metadata = metadata_of(config, known, described(network, like.flat_params.size))
        wide = dataclasses.replace(config.model, dtype="float32")
        outputs = Outputs(config, network or wide.build(shape[-1]), schedule, images, held_out)
        return cls(config, images, metadata, like, fresh, step, outputs, network)

    def with_mean(self, mean: list[float]) -> "_Run":
        """The run on the same images, minus the mean that it was begun with."""
        kept = np.asarray(mean, np.float32)
        if np.array_equal(kept, self.images.mean):
            return self
        images = dataclasses.replace(self.images, kept_mean=kept)
        known = self.metadata | {"mean": kept.tolist()}
        return self._of(self.config, self.network, images, self.outputs.held_out, known)

    def describe(self) -> None:
        """Writes config.json and summary.json, now that the data are known to be the run's."""
        saved_config.write(self.config)
        digest = self.metadata["fingerprint"]
        parameters, held_out = self.like.flat_params.size, self.outputs.held_out
        summarize(self.config, self.images, parameters, digest, held_out)

    def structure_of(self, saved: dict[str, Any]) -> SavedState:
        """What a checkpoint of this run is read into; see `Checkpoints.restore_newest`."""
        saved = upgrade(saved)
        own = described(self.network, self.like.flat_params.size)
        check_same_network(self.config.output.run_dir, saved, own)
        check_same_data(saved, self.metadata)
        return structure_of(self.like, saved)

    def compile(self, dispatches: list[int], stack: ExitStack) -> Future[Any] | None:
        """Compiles the step beside what comes before the first update."""
        if not dispatches:
            return None
        shape, size = self.images.images.shape[1:], self.config.training.batch_size
        arguments = argument_shapes(self.like, batch_shape(shape, size, dispatches[0]))
        thread = stack.enter_context(ThreadPoolExecutor(1))
        return thread.submit(self.step.lower(*arguments).compile)


def _update(
    run: _Run,
    state: TrainState,
    start: int,
    dispatches: Iterable[int],
    checkpoints: Checkpoints,
    recorder: Recorder,
    profile: Profile,
    stop: StopRequest,
) -> Verdict | None:
    """Makes the updates from `start` on, with what is due on the way.

    Returns:
      What ended them before the last one, None where nothing did.
    """
    config, step = run.config, start
    batches = device_batches(
        run.images.images, config.seed, start, config.training.batch_size, updates=dispatches
    )
    for updates, chosen in zip(dispatches, batches, strict=True):
        with profile.updates(step, updates, state):
            state, metrics = run.step(state, chosen)
        recorder.add(step + 1, metrics)
        step += updates
        last, stopping = step == config.steps, stop.agreed()
        if last or stopping or step % config.output.checkpoint_every == 0:
            _save(run, step, state, checkpoints, recorder)
        if stopping and not last:
            checkpoints.wait()
            raise Stopped(
                f"stopped after step {step} of {config.steps}, which is saved; the same command "
                f"goes on"
            )
        run.outputs.make(step, state, recorder)
        if (found := run.outputs.judge(step, checkpoints.steps())) is None:
            continue
        if found.best == step or found.why is not None:
            checkpoints.preserve(found.best)
            _save(run, step, state, checkpoints, recorder)
        if found.why is not None:
            return found
        recorder.say(step, found.described(config.stopping))
    return None


def _save(
    run: _Run, step: int, state: TrainState, checkpoints: Checkpoints, recorder: Recorder
) -> None:
    """Saves an update's state once it is known to be sound; nothing, where it is saved."""
    recorder.drain()
    saved = to_saved(state)
    _check_finite(step, saved)
    _check_unchanged(run.images, checkpoints)
    checkpoints.save(step, saved, run.metadata)
    recorder.pause(step)


def _dispatches(config: Config, start: int) -> Iterator[int]:
    """How many updates are handed to the devices each time, from `start` to the end.

    steps_per_dispatch, or one where that would pass a checkpoint, a grid of samples, an evaluation
    or the end: two programs at most are compiled.
    """
    output, step = config.output, start
    asked = (output.checkpoint_every, output.sample_every, output.evaluate_every)
    stops = [every for every in asked if every is not None]
    together = _together(config.training.steps_per_dispatch, config.steps, *stops)
    while step < config.steps:
        evaluation = output.next_evaluation(step) or config.steps
        room = min(config.steps, evaluation) - step
        room = min(room, *(every - step % every for every in stops))
        updates = together if together <= room else 1
        yield updates
        step += updates


def _together(asked: int | Literal["auto"], *stops: int) -> int:
    """Updates per dispatch; `auto` takes a divisor of all numbers at which updates have to stop."""
    if asked != "auto":
        return asked
    common = 1 if jax.default_backend() == "cpu" else math.gcd(*stops)
    return max(n for n in range(1, _AT_MOST + 1) if common % n == 0)


def _check_finite(step: int, saved: SavedState) -> None:
    arrays = {"params": saved.params, "average": saved.ema_params, "optimizer": saved.opt_state}
    for path, leaf in jax.tree.leaves_with_path(arrays):
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"{name} is not finite after step {step}, which is not saved; try a lower "
                f"--learning-rate in another --run-dir"
            )


def _check_unchanged(images: ImageSet, checkpoints: Checkpoints) -> None:
    if what := changed(images):
        saved = checkpoints.latest
        after = "" if saved is None else f" after step {saved}"
        raise UserError(
            f"{what} while the run was training on it: nothing is saved{after}; give the data "
            f"back and run the same command again"
        )
