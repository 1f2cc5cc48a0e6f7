"""What is done before the first request: regimes, a classifier, denoisers, programs."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import forking, study
from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.judging.classifier import TrainedClassifier
from diffusion_jax.regimes import analysis
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.runtime.files import parse_json, plain, write_json
from diffusion_jax.sampling import SAMPLERS
from diffusion_jax.schedule import NoiseSchedule, linear_schedule
from diffusion_jax.serving import model, paths
from diffusion_jax.serving.desk import Desk
from diffusion_jax.training.run import TrainedModel

MIXTURE = "mixture"
# Of a pixel in [0, 1]: 8 x 8 of them make Lambda = 4.01, and t_S = 0.69.
_LAW = GaussianMixture(dimension=64, mu=0.25, sigma=0.1)
_POINTS = 500


@dataclass(frozen=True)
class Opened:
    """What is to be served, read and checked.

    Attributes:
      name: of the model.
      images: the training images.
      run: the trained model, of a run.
      folder: where regimes and the classifier are kept.
      denoisers: names, see `model.chosen_denoisers`.
      warnings: of the images.
      mixture: their law, where it is known.
    """

    name: str
    images: ImageSet
    run: TrainedModel | None
    folder: Path
    denoisers: list[str]
    warnings: list[str]
    mixture: GaussianMixture | None = None

    @property
    def schedule(self) -> NoiseSchedule:
        """The run's schedule; without a run the linear one of 1 000 steps."""
        return linear_schedule() if self.run is None else self.run.sampler.schedule


def mixture_images() -> ImageSet:
    """Points of two Gaussians around +-m, m = mu (1, ..., 1), as grey images of 8 x 8 pixels.

    As values around 1/2: mu = 0.25, sigma = 0.1.
    """
    points, labels = _LAW.sample(np.random.default_rng(0), _POINTS)
    side = int(_LAW.dimension**0.5)
    images = points.reshape(-1, side, side, 1) + np.float32(0.5)
    return ImageSet(images, labels, ("-m", "+m"), kept_mean=np.array([0.5], np.float32))


def mixture() -> GaussianMixture:
    """The law of `mixture_images`, minus their mean."""
    return _LAW


def steps_of(opened: list[Opened]) -> int:
    """How many preparations there are."""
    return sum(2 + len(each.denoisers) * len(SAMPLERS) for each in opened)


def prepare(
    desk: Desk, opened: list[Opened], accuracy: float, said: Callable[[str], None]
) -> Callable[[], None]:
    """What the worker does first: everything that requests need, compiled.

    Args:
      desk: which is filled.
      opened: what is to be served.
      accuracy: of the regimes.
      said: called with what comes next.
    """

    def work() -> None:
        desk.of = steps_of(opened)
        for each in opened:
            for what in _stages(desk, each, accuracy):
                said(f"{each.name}: {what}")
                desk.done += 1
        desk.done, desk.ready = desk.of, True
        said("")

    return work


def _stages(desk: Desk, opened: Opened, accuracy: float) -> Iterator[str]:
    """Yields what is done next, and does it when it is asked on."""
    yield "measuring the regimes"
    result = regimes(opened, accuracy)
    yield "training the classifier"
    judge = _judge(opened)
    made = model.make(
        opened.name, opened.images, opened.schedule, opened.denoisers, result, judge,
        opened.run, opened.mixture,
    )  # fmt: skip
    for name in opened.denoisers:
        for sampler in SAMPLERS:
            yield f"compiling {name}, {sampler}"
            paths.warm_up(made, name, sampler)
    desk.models[made.id] = made


def regimes(opened: Opened, accuracy: float) -> dict[str, Any]:
    """What experiments.regimes says of the images; kept in the folder, and taken from there."""
    path, known = opened.folder / "regimes.json", fingerprint(opened.images)
    with suppress(OSError, ValueError, KeyError, TypeError):
        found: dict[str, Any] = parse_json(path.read_bytes())
        if found["fingerprint"] == known and found["settings"]["accuracy"] <= accuracy:
            return found["result"]
    measured = study.measure(opened.images, opened.name, opened.warnings, accuracy, 50_000, 0)
    settings = measured.settings | {"warnings": measured.warnings}
    result = plain({"settings": settings} | analysis.to_json(measured.analysis))
    with suppress(OSError, UserError):  # a folder that cannot be written to costs time alone
        opened.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"fingerprint": known, "settings": settings, "result": result})
    return result


def _judge(opened: Opened) -> TrainedClassifier | None:
    if len(opened.images.class_names) < 2 or opened.images.labels is None:
        return None
    judge, _ = forking.get_classifier(opened.folder, opened.run, opened.images, None, 0)
    return judge


def device() -> str:
    """What the worker runs on, in words."""
    return jax.devices()[0].device_kind
