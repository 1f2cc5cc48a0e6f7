"""Loss, train state with its moving average, optimizer, and the train step, plain and parallel."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from diffusion_jax.config import TrainingConfig
from diffusion_jax.denoisers import require_steps
from diffusion_jax.errors import UserError
from diffusion_jax.nn.network import Network
from diffusion_jax.process import diffuse
from diffusion_jax.runtime import backend, pytrees
from diffusion_jax.runtime.devices import AXIS, all_devices, replicate, replicated, sharded
from diffusion_jax.schedule import NoiseSchedule

Metrics = dict[str, Array]
# What an example's key is folded with for its map of a symmetry: no place in a split of the key,
# which has the keys that folding with 0, 1 and 2 gives too.
_MAP = 2**31 - 1
# Of stochastic gradient descent.
_MOMENTUM = 0.95


@pytrees.dataclass
class TrainState:
    """Everything a run needs to go on, as one pytree of few arrays.

    The parameters, their average and Adam's moments are each one vector, the model's arrays laid
    end to end (`ravel_pytree`): hundreds of small arrays would each be a kernel of its own to
    compile, load and start, and cost the host milliseconds at every call.

    Attributes:
      step: number of updates done, int32 scalar.
      flat_params: the model's parameters, in one vector.
      flat_ema_params: their exponential moving average, for sampling alone.
      opt_state: Optax state of that vector.
      key: typed PRNG key of the run, never changed; randomness comes from folding `step` and the
        example's global index into it.
      unravel: makes the model's parameters of such a vector.
    """

    step: Array
    flat_params: Array
    flat_ema_params: Array
    opt_state: Any
    key: Array
    unravel: Callable[[Array], Any] = struct.field(pytree_node=False)

    @property
    def params(self) -> Any:
        """The parameters as the model takes them: new arrays, at each call."""
        return _as_tree(self.flat_params, self.unravel)

    @property
    def ema_params(self) -> Any:
        """Their average as the model takes it: new arrays, at each call."""
        return _as_tree(self.flat_ema_params, self.unravel)


@partial(jax.jit, static_argnums=1)
def _as_tree(vector: Array, unravel: Callable[[Array], Any]) -> Any:
    return unravel(vector)


def noise_loss(
    model: Network,
    schedule: NoiseSchedule,
    params: Any,
    x_0: Array,
    step: Array,
    noise: Array,
    dropout_keys: Array | None = None,
) -> Array:
    """Mean squared error of the predicted noise (Ho et al. 2020, eq. 14).

    mean |noise - eps_theta(sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s) noise, s)|^2

    Args:
      model: the noise predictor.
      schedule: noise schedule of L steps.
      params: the model's parameters.
      x_0: images (batch, height, width, channels), mean removed.
      step: integer steps (batch,).
      noise: standard normal noise, the shape of x_0.
      dropout_keys: one PRNG key per example (batch,), or None for no dropout.

    Returns:
      Scalar, averaged over examples, pixels and channels.

    Raises:
      UserError: the model gives another shape than that of x_0.
    """
    x_t = diffuse(schedule, x_0, step, noise)
    prediction = cast(Array, model.apply({"params": params}, x_t, step, dropout_keys))
    if prediction.shape != noise.shape:
        raise UserError(
            f"the network gives {prediction.shape} for images of shape {noise.shape}: the noise "
            f"has the images' shape"
        )
    return jnp.mean(optax.squared_error(prediction, noise))


def learning_rate(config: TrainingConfig, step: Array) -> Array:
    """Linear warm-up to a constant: lr min(1, (step + 1)/warmup), step counted from 0."""
    step = jnp.asarray(step, jnp.result_type(float))
    warmup = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
    return config.learning_rate * warmup


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Scales the gradients g down to a global norm: g min(1, limit/|g|).

    `optax.clip_by_global_norm` divides each entry, a pass over all of them; XLA fuses a factor.
    """

    def clip(grads: Any, params: Any) -> Any:
        return optax.tree.scale(jnp.minimum(1.0, limit / optax.tree.norm(grads)), grads)

    return optax.stateless(clip)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Clipping by global norm, then Adam or stochastic gradient descent, with warm-up.

    Adam has the betas 0.9 and 0.999 and epsilon 1e-8, descent the momentum 0.95: its velocity is
    the sum of past gradients times 0.95 for each update since.
    """

    def rate(step: Array) -> Array:
        return learning_rate(config, step)

    own = optax.adam(rate) if config.optimizer == "adam" else optax.sgd(rate, _MOMENTUM)
    return optax.chain(clip_by_global_norm(config.clip_norm), own)


def init_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    key: Array,
    shape: tuple[int, int, int],
) -> TrainState:
    """A fresh train state.

    Args:
      model: the noise predictor.
      optimizer: from `make_optimizer`.
      key: typed PRNG key of the run.
      shape: (height, width, channels) of an image.
    """
    init_key, run_key = jax.random.split(key)
    image, step = jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
    params = model.init(init_key, image, step)["params"]
    return state_of(params, optimizer, run_key)


def fresh_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    key: Array,
    shape: tuple[int, int, int],
) -> TrainState:
    """`init_state` on every device, by a program that is quickly compiled."""
    make = jax.jit(
        partial(init_state, model, optimizer, shape=shape), compiler_options=backend.RUN_ONCE
    )
    with backend.random_kernels():
        return replicate(make(key=key))


def state_of(params: Any, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """The train state of update 0 with given parameters, which become the averaged ones too.

    Args:
      params: the model's parameters; they are copied.
      optimizer: from `make_optimizer`.
      key: typed PRNG key from which the updates' randomness is folded.
    """
    flat, unravel = ravel_pytree(params)
    return TrainState(
        step=jnp.int32(0),
        flat_params=jnp.array(flat),
        flat_ema_params=jnp.array(flat),
        opt_state=optimizer.init(flat),
        key=key,
        unravel=unravel,
    )


def _examples(config: TrainingConfig, mean: Array, images: Array, keys: Array) -> Array:
    """The images minus their mean; with a symmetry each moved by a map drawn from its own key."""
    scale = 255 if images.dtype == jnp.uint8 else 1
    x_0 = images.astype(mean.dtype) / scale - jnp.broadcast_to(mean, images.shape)
    if (group := config.group(x_0.shape[1:])) is None:
        return x_0
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, _MAP)
    return group.of_each(
        jax.vmap(lambda key: jax.random.randint(key, (), 0, group.order))(own), x_0
    )


def _step(config: TrainingConfig, num_steps: int, key: Array) -> Array:
    """The step at which an example is noised."""
    if config.train_at_step is not None:
        return jnp.int32(config.train_at_step)
    return jax.random.randint(key, (), 1 if config.faithful else 0, num_steps)


def make_train_step(
    model: Network,
    schedule: NoiseSchedule,
    optimizer: optax.GradientTransformation,
    mean: Array,
    config: TrainingConfig,
    axis_name: str | None = None,
) -> Callable[[TrainState, Array, Array], tuple[TrainState, Metrics]]:
    """Makes the pure train step.

    The noise, the step s, the dropout masks and, with a symmetry, the map of an example follow from
    the run's key, the number of the update and the example's place in the global batch, so that the
    same global batch gives the same loss however it is split over devices.

    With a symmetry each example is g a, its map g uniform over the group: in expectation, the loss
    on the training set with all its images under the group.

    Args:
      model: the noise predictor.
      schedule: noise schedule of L steps; s is uniform in 0..L-1, in 1..L-1 if config.faithful, and
        always config.train_at_step where that is one.
      optimizer: from `make_optimizer`.
      mean: per-channel mean of the training set (channels,), subtracted from the images.
      config: training configuration.
      axis_name: axis of the devices over which gradients and loss are averaged.

    Returns:
      A function of (state, images, index): images (batch, height, width, channels), uint8 grey
      levels or floats that are taken as they are, and the examples' places in the global batch
      (batch,). It returns the next state and the metrics
      `loss`, `grad_norm` (before clipping) and `learning_rate`, scalars of this update.
    """

    def loss_of(params: Any, step_key: Array, images: Array, index: Array) -> Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, index)
        step_keys, noise_keys, dropout_keys = jax.vmap(partial(jax.random.split, num=3))(keys).T
        x_0 = _examples(config, mean, images, keys)
        step = jax.vmap(partial(_step, config, schedule.num_steps))(step_keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:], x_0.dtype))(noise_keys)
        return noise_loss(model, schedule, params, x_0, step, noise, dropout_keys)

    def accumulated(params: Any, key: Array, images: Array, index: Array) -> tuple[Array, Any]:
        parts = config.accumulation
        split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), (images, index))

        def body(total: Any, part: tuple[Array, Array]) -> tuple[Any, None]:
            result = jax.value_and_grad(loss_of)(params, key, *part)
            return jax.tree.map(jnp.add, total, result), None

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(body, zeros, split)
        return jax.tree.map(lambda a: a / parts, total)

    def train_step(state: TrainState, images: Array, index: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        gradient = jax.value_and_grad(loss_of) if config.accumulation == 1 else accumulated
        loss, grads = gradient(state.unravel(state.flat_params), key, images, index)
        flat = ravel_pytree(grads)[0]
        if axis_name is not None:
            # In one vector, they are one all-reduce.
            flat = jax.lax.pmean(jnp.append(flat, loss.astype(flat.dtype)), axis_name)
            flat, loss = flat[:-1], flat[-1]
        with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to an integer count
            updates, opt_state = optimizer.update(flat, state.opt_state)
        params = optax.apply_updates(state.flat_params, updates)
        # The moving average forgets the initial parameters in its first updates.
        decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(flat),
            "learning_rate": learning_rate(config, state.step),
        }
        next_state = dataclasses.replace(
            state,
            step=state.step + 1,
            flat_params=params,
            flat_ema_params=optax.incremental_update(params, state.flat_ema_params, 1 - decay),
            opt_state=opt_state,
        )
        return next_state, metrics

    return train_step


def make_parallel_train_step(
    model: Network,
    schedule: NoiseSchedule,
    optimizer: optax.GradientTransformation,
    mean: Array,
    config: TrainingConfig,
    implementation: Literal["shard_map", "pmap"] = "shard_map",
    mesh: Mesh | None = None,
) -> jax.stages.Wrapped:
    """The data-parallel train step of all devices, with averaged gradients and its state donated.

    Every device, of every process, holds the whole of the state (`devices.replicated`) and computes
    a part of the batch. Several updates in one call spare a fast device the wait for the host
    between them.

    Args:
      model: the noise predictor.
      schedule: noise schedule.
      optimizer: from `make_optimizer`.
      mean: per-channel mean of the training set (channels,).
      config: training configuration.
      implementation: shard_map, or pmap, the older spelling of the same program.
      mesh: the devices, along the axis `devices.AXIS`; by default all that are there.

    Returns:
      A function of (state, images): uint8 images (devices, batch/devices, height, width, channels)
      of one update, or (devices, updates, batch/devices, height, width, channels) of several, whose
      metrics come as arrays (updates,). The state given is consumed.

    Raises:
      UserError: the devices, or the parts of an accumulated batch, can't share it evenly, or the
        schedule has more steps than the model knows.
    """
    require_steps(model, schedule.num_steps)
    mesh = mesh or all_devices()
    parts = mesh.size * config.accumulation
    if config.batch_size % parts:
        raise UserError(
            f"a batch of {config.batch_size} can't be shared evenly by {mesh.size} "
            f"device(s) x {config.accumulation} accumulated part(s); choose a multiple of {parts}"
        )
    # XLA's CPU backend copies all gradients to sum those of one device.
    axis_name = AXIS if mesh.size > 1 else None
    train_step = make_train_step(model, schedule, optimizer, mean, config, axis_name)

    def update(state: TrainState, images: Array) -> tuple[TrainState, Metrics]:
        batch = images.shape[0]
        return train_step(state, images, jax.lax.axis_index(AXIS) * batch + jnp.arange(batch))

    def train(state: TrainState, images: Array) -> tuple[TrainState, Metrics]:
        return update(state, images) if images.ndim == 4 else jax.lax.scan(update, state, images)

    if implementation == "pmap":
        return jax.pmap(
            train,
            AXIS,
            in_axes=(None, 0),
            out_axes=(None, None),
            donate_argnums=(0,),
            devices=mesh.devices.tolist(),
        )

    def share(state: TrainState, images: Array) -> tuple[TrainState, Metrics]:
        return train(state, images[0])

    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        share, mesh=mesh, in_specs=(whole, split), out_specs=whole, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=0)


def argument_shapes(
    state: TrainState, images: tuple[int, ...], mesh: Mesh | None = None
) -> tuple[Any, jax.ShapeDtypeStruct]:
    """What the parallel train step can be lowered for while its arguments are still being made.

    A later call finds the compiled program.

    Args:
      state: the train state, or its shapes.
      images: shape of the images, as the step takes them.
      mesh: the step's devices; by default all that are there.
    """
    whole = replicated(mesh)
    return (
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), state),
        jax.ShapeDtypeStruct(images, jnp.uint8, sharding=sharded(mesh)),
    )
