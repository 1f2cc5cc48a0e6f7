"""Parameters at random, for what holds of any: to compile a UNet's own draws takes seconds."""

import jax
import jax.numpy as jnp
import numpy as np


def random_params(model, shape, seed=0):
    """As large as fresh ones, but no bias and no scale of a norm is at rest.

    Args:
      model: a Flax model of images and steps.
      shape: of an image (height, width, channels).
      seed: of the draws.
    """
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    step = jax.ShapeDtypeStruct((1,), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, step)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape)
        if path[-1].key == "kernel":
            values /= np.sqrt(3 * np.prod(leaf.shape[:-1]))
        else:
            values = (path[-1].key == "scale") + 0.1 * values
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
