"""Runs of small digits whose networks were not trained, for what commands do with any run."""

import dataclasses

import jax
import numpy as np
from sklearn.datasets import load_digits
from weights import random_params

from diffusion_jax import data
from diffusion_jax.training import run
from experiments.train_lsun import parse

WORDS = [
    *("--base-channels", "8", "--num-res-blocks", "1", "--multiples", "1", "1"),
    "--attention-levels",
    *("--batch-size", "8", "--num-samples", "4", "--steps", "2"),
]


def digits(first, last):
    """Digits of 8 x 8 pixels: of 1 and 8 those number first..last - 1."""
    found = load_digits()
    rows = np.concatenate([np.flatnonzero(found.target == c)[first:last] for c in (1, 8)])
    return np.rint(found.images[rows] * 15.9375).astype(np.uint8)[..., None], found.target[rows]


def save_digits(folder):
    """Writes the first 40 of each of `digits` into an .npz, and gives its path."""
    path = folder / "digits.npz"
    images, labels = digits(0, 40)
    np.savez(path, images=images, labels=labels)
    return path


def params_of(config, images, seed):
    """Parameters at random, of half the usual size."""
    params = random_params(config.model.build(images.shape[-1]), images.shape[1:], seed)
    return jax.tree.map(lambda leaf: 0.5 * leaf, params)


def make_run(folder, images, labels, per_class=None, steps=25, seed=0):
    """A run of a network that was not trained, which resembles nothing much."""
    folder.mkdir()
    np.savez(folder / "data.npz", images=images, labels=labels)
    words = ["--data", str(folder / "data.npz"), *WORDS, "--diffusion-steps", str(steps)]
    words += ["--images-per-class", str(per_class)] if per_class else []
    config = parse([*words, "--run-dir", str(folder / "run")])
    loaded = data.load(config.data)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, classes=loaded.class_names)
    )
    run.import_parameters(config, params_of(config, images, seed), run.data_of(loaded))
    return folder / "run"
