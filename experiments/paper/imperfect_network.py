"""What a network's errors do to samples: python -m experiments.paper.imperfect_network RUN_DIR.

Every sampler, with many calls and few, with the predicted data as they are and clipped to their
range: the deviation of the samples, that of their means, their range, and the kernel distance to
the training images in the features of a classifier trained on them. Prints the table that
docs/sampling.md has, and writes result.json.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.progress import track

from diffusion_jax.errors import UserError
from diffusion_jax.forking import training_images
from diffusion_jax.judging import quality
from diffusion_jax.judging.classifier_training import train_classifier
from diffusion_jax.runtime.files import write_json
from diffusion_jax.training import run
from experiments.command import parse, reports_errors, start

CASES = (
    ("ancestral", None),
    ("ancestral", 100),
    ("ancestral", 25),
    ("ddim", 50),
    ("ddim", 10),
    ("dpm-solver-2m", 50),
    ("dpm-solver-2m", 10),
)


@dataclass(frozen=True)
class Options:
    """Measures every sampler on a trained run, with and without clipping."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """The run's folder, as experiments.train_lsun writes it."""
    out: Path | None = None
    """Folder for result.json; by default RUN_DIR/imperfect_network."""
    num_samples: int = 128
    """Samples of each sampler."""
    seed: int = 0
    """Seed of the noise and of the classifier."""


def measure(samples: np.ndarray, features: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """The numbers of a row, of images on the scale of [0, 1] and of their features."""
    return {
        "deviation": float(samples.std()),
        "deviation_of_means": float(samples.mean(axis=(1, 2, 3)).std()),
        "least": float(samples.min()),
        "largest": float(samples.max()),
        "kernel_distance": quality.mmd2(real, features),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, those of one sampler as it is and clipped in one line."""
    lines = [
        "| sampler, calls | deviation / of means | range | kernel distance | clipped: deviation / "
        "of means | kernel distance |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for free, clipped in zip(rows[::2], rows[1::2], strict=True):
        deviations, distances = (
            [text.format(**row) for row in (free, clipped)]
            for text in ("{deviation:.2f} / {deviation_of_means:.2f}", "{kernel_distance:.3f}")
        )
        lines.append(
            f"| {free['sampler']} {free['calls']} | {deviations[0]} "
            f"| {free['least']:.1f} to {free['largest']:.1f} | {distances[0]} "
            f"| {deviations[1]} | {distances[1]} |"
        )
    return "\n".join(lines)


@reports_errors
def main() -> None:
    """Samples, measures, prints and writes."""
    options = parse(Options, "paper.imperfect_network", __doc__)
    if options.num_samples < 2:
        raise UserError("num_samples must be at least 2")
    start()
    model = run.load_model(options.run_dir)
    images = training_images(model)
    judge = train_classifier(images, options.seed)
    offset = images.mean - judge.mean
    order = np.random.default_rng(options.seed).permutation(len(images.images))
    real = images.centred(order[: max(2, min(1000, len(order)))])
    real_features = judge.features(real + offset)
    data = measure(real + images.mean, real_features, real_features)
    print(f"Training images: deviation {data['deviation']:.3f}, of means ", end="")
    print(f"{data['deviation_of_means']:.3f}")
    rows: list[dict[str, Any]] = []
    cases = [(*case, clip) for case in CASES for clip in (False, True)]
    for name, calls, clip in track(cases, "Sampling", transient=True):
        process = model.backward(name, calls, clip=clip)
        samples = process.sample(jax.random.key(options.seed), options.num_samples, model.shape)
        features = judge.features(samples + offset)
        numbers = measure(samples + model.mean, features, real_features)
        rows.append({"sampler": name, "calls": process.calls, "clip": clip} | numbers)
    print(table(rows))
    out = options.out or options.run_dir / "imperfect_network"
    out.mkdir(parents=True, exist_ok=True)
    settings = {"run_step": model.step, "num_samples": options.num_samples, "seed": options.seed}
    write_json(out / "result.json", {"settings": settings, "data": data, "rows": rows})
    print(f"Wrote {out / 'result.json'}")


if __name__ == "__main__":
    sys.exit(main())
