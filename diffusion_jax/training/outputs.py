"""What a run shows of its model: a summary, evaluations, grids of samples, curves."""

import dataclasses
import json
import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.covariance import Rows
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.notes import say_notes
from diffusion_jax.denoisers import Denoiser, TrainedDenoiser
from diffusion_jax.nn.network import Network
from diffusion_jax.plots.style import save
from diffusion_jax.plots.training import draw_loss_curve, draw_memorisation, save_image_grid
from diffusion_jax.regimes.loss_information import Strata
from diffusion_jax.regimes.spectrum import largest_eigenvalue, speciation_time
from diffusion_jax.regimes.symmetric_spectrum import OrbitMoments
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.runtime.distributed import from_first
from diffusion_jax.runtime.files import parse_json, write_json
from diffusion_jax.runtime.text import shown
from diffusion_jax.sampling import Backward, backward
from diffusion_jax.schedule import NoiseSchedule
from diffusion_jax.training import evaluation, evaluations, memory, moments
from diffusion_jax.training.evaluation import Band
from diffusion_jax.training.evaluations import Exact
from diffusion_jax.training.memory import MEMORISATION, SUMMARY, Verdict, memory_of
from diffusion_jax.training.metrics import (
    FRACTION,
    HELD_OUT,
    RATIO,
    TRAINING,
    bands,
    column,
    read_metrics,
)
from diffusion_jax.training.recorder import Recorder
from diffusion_jax.training.step import TrainState

# Which file and weights a run's first parameters are from, if they were converted.
CONVERTED = "converted.json"


def converted(run_dir: Path) -> dict[str, Any] | None:
    """What a run's first parameters were converted from; None where they were not."""
    with suppress(OSError, ValueError):  # none, or damaged
        found = parse_json((run_dir / CONVERTED).read_bytes())
        return found if isinstance(found, dict) else None
    return None


def which_parameters(run_dir: Path, step: int) -> str:
    """Which of a run's parameters those of a checkpoint are, in words that follow "of".

    Args:
      run_dir: the run's folder.
      step: updates that the checkpoint has seen.
    """
    origin = converted(run_dir)
    if step > 0 or origin is None:
        return f"step {step}"
    name = shown(Path(str(origin.get("file", "of another program"))).name)
    return f"the converted checkpoint {name} (no update here yet)"


def _eigenvalues(config: Config, images: ImageSet, fingerprint: str) -> dict[str, float]:
    """Lambda of the first channel, and of all: those kept for the same images, or computed.

    With a symmetry they are those of the images with all that its maps make of them.

    With them `moments` are kept in the run's folder.
    """
    run_dir, symmetry = config.output.run_dir, config.training.symmetry
    *size, channels = images.images.shape[1:]
    names = ("first_channel", "all_channels")[: min(channels, 2)]
    kept = moments.load(run_dir)
    if kept is not None and kept.are_of(fingerprint, symmetry):
        with suppress(OSError, ValueError, TypeError, KeyError):  # none of this version, or damaged
            summary = parse_json((run_dir / SUMMARY).read_bytes())
            if (summary["fingerprint"], summary.get("symmetry")) == (fingerprint, symmetry):
                return {name: float(summary["spectrum"][name]["Lambda"]) for name in names}
    group = config.training.group(images.images.shape[1:])
    found = moments.Moments.of(images, fingerprint, group)
    found.save(run_dir)
    if channels == 1:
        return {"first_channel": found.eigenvalue}
    if group is None:
        first = largest_eigenvalue(images.images)
    else:
        first = OrbitMoments.of(Rows(images.images), (size[0], size[1], 1), group).eigenvalue
    return {"first_channel": first, "all_channels": found.eigenvalue}


def summarize(
    config: Config,
    images: ImageSet,
    parameters: int,
    fingerprint: str,
    held_out: ImageSet | None = None,
) -> None:
    """Says, and saves in summary.json, what is about to be trained on what."""
    spectrum = {
        name: {"Lambda": eigenvalue, "t_S": speciation_time(eigenvalue)}
        for name, eigenvalue in _eigenvalues(config, images, fingerprint).items()
    }
    summary = {
        "devices": [device.device_kind for device in jax.devices()],
        "parameters": parameters,
        "data": config.data.data,
        "images": len(images.images),
        "shape": list(images.images.shape[1:]),
        "classes": list(images.class_names),
        "mean": images.mean.tolist(),
        "fingerprint": fingerprint,
        "symmetry": config.training.symmetry,
        "spectrum": spectrum,
        "notes": say_notes(images, held_out),
    }
    if (origin := converted(config.output.run_dir)) is not None:
        summary["converted"] = origin
    if (found := memory_of(config.output.run_dir)) is not None:
        summary[MEMORISATION] = found | {"stopped": None}  # unless it is found again
    write_json(config.output.run_dir / SUMMARY, summary, indent=2)
    shape = " x ".join(str(length) for length in images.images.shape[1:])
    print(f"Devices: {jax.device_count()} x {jax.devices()[0].device_kind}")
    print(f"Model: {parameters:,} parameters ({config.model.dtype})")
    if config.model.dtype == "bfloat16" and not backend.has_bfloat16():
        print("Note: this device has no bfloat16 of its own: --dtype float32 would not be slower")
    print(
        f"Data: {len(images.images):,} images {shape}, {shown(config.data.data)} "
        f"({', '.join(map(shown, images.class_names))})"
    )
    if (group := config.training.group(images.images.shape[1:])) is not None:
        print(
            f"Symmetry: {group.name}, each example by one of {group.order} maps; the spectrum is "
            f"that of the images moved by all"
        )
    for name, values in spectrum.items():
        label = name.replace("_", " ")
        time = values["t_S"]
        said = f"t_S = {time:.3f}" if math.isfinite(time) else "no t_S, since Lambda is at most 1"
        print(f"Spectrum, {label}: Lambda = {values['Lambda']:.3f}, {said}")


def check_processes(config: Config) -> None:
    """Refuses grids and evaluations that could not be drawn.

    Raises:
      UserError: an impossible schedule, an unknown sampler, or calls that it cannot make.
    """
    schedule, output = config.schedule.build(), config.output
    calls = output.evaluate_calls if output.evaluates else None
    for each in {None, calls}:
        backward(schedule, lambda x, step: x, output.sampler, each)


@dataclass(frozen=True)
class Outputs:
    """What a run shows of its model along the way: evaluations, grids of samples, curves.

    All processes compute them together; the first one writes.
    """

    config: Config
    model: Network
    schedule: NoiseSchedule
    images: ImageSet
    held_out: ImageSet | None

    def _evaluation_due(self, step: int) -> bool:
        output = self.config.output
        last = step == self.config.steps
        return output.evaluates and step > 0 and (last or output.next_evaluation(step - 1) == step)

    def _samples_due(self, step: int) -> bool:
        every, last = self.config.output.sample_every, step == self.config.steps
        return every is not None and step > 0 and (last or step % every == 0)

    def make(self, step: int, state: TrainState, recorder: Recorder) -> None:
        """Evaluates and draws samples where it is time to."""
        if self._evaluation_due(step):
            self._evaluate(step, state, recorder)
        if self._samples_due(step):
            self._draw_samples(step, state, recorder)

    def make_up(self, step: int, state: TrainState, recorder: Recorder) -> None:
        """Makes what was due after a step, but is not there."""

        def look() -> str:  # by process 0, whose files they are
            records = read_metrics(self.config.output.run_dir / "metrics.jsonl")
            evaluated = any(r["step"] == step and FRACTION in r for r in records)
            evaluated &= evaluations.path_of(self.config.output.run_dir, step).exists()
            return json.dumps([not evaluated, not self._grid_path(step).exists()])

        missing = json.loads(from_first(look))
        if missing[0] and self._evaluation_due(step):
            self._evaluate(step, state, recorder)
        if missing[1] and self._samples_due(step):
            self._draw_samples(step, state, recorder)

    def _grid_path(self, step: int) -> Path:
        return self.config.output.run_dir / "samples" / f"step_{step:08d}.png"

    def show_training_images(self) -> None:
        """Draws some of the training images."""
        if is_first_process():
            order = np.random.default_rng(self.config.seed).permutation(len(self.images.images))[
                : self.config.output.num_samples
            ]
            path = self.config.output.run_dir / "samples" / "training_images.png"
            save_image_grid(path, self.images.centred(order), self.images.mean)

    def _backward(self, denoiser: Denoiser, calls: int | None = None) -> Backward:
        """The backward process of the model; few steps are spread over the log-SNR."""
        return backward(
            self.schedule,
            denoiser,
            self.config.output.sampler,
            calls,
            bounds=self.images.bounds if self.config.output.clip else None,
            start=moments.start_of(
                self.config.output.run_dir, symmetry=self.config.training.symmetry
            ),
            faithful=self.config.training.faithful,
        )

    def _draw_samples(self, step: int, state: TrainState, recorder: Recorder) -> None:
        recorder.drain()
        # Its own key, so that drawing samples more or less often changes nothing in the training,
        # which has the keys that folding with 0 and 1 gives too.
        key = jax.random.fold_in(jax.random.key(self.config.seed), 3)
        process = self._backward(TrainedDenoiser(state.ema_params, self.model))
        shape = self.images.images.shape[1:]
        images = process.sample(key, self.config.output.num_samples, shape)
        if is_first_process():
            save_image_grid(self._grid_path(step), images, self.images.mean)
        recorder.pause(step)

    def _evaluate(self, step: int, state: TrainState, recorder: Recorder) -> None:
        recorder.drain()
        denoiser = TrainedDenoiser(state.ema_params, self.model)
        metrics, drawn = evaluation.evaluate(
            denoiser,
            self.schedule,
            self.images,
            self.held_out,
            evaluation.key_of(self.config.seed),
            self.config.output.evaluate_samples,
            self._backward(denoiser, self.config.output.evaluate_calls),
            self._strata,
            self._bands,
            self.config.training.group(self.images.images.shape[1:]),
        )
        if is_first_process():
            drawn.save(evaluations.path_of(self.config.output.run_dir, step))
        metrics |= memory.metrics_of(self._strata, drawn, self._exact)
        shown = f"memorised {metrics[FRACTION]:.1%}, median neighbour ratio {metrics[RATIO]:.3f}"
        if memory.GAP in metrics:
            shown += f", {metrics[memory.GAP]:.2f} nats per image at t = {metrics[memory.TIME]:.3g}"
        recorder.log_evaluation(step, metrics, shown)

    def judge(self, step: int, saved: Collection[int]) -> Verdict | None:
        """Whether the run memorises at an evaluation, as its summary says too; alike in all.

        Of the steps that are saved one is the best so far. None where early stopping was not asked
        for, or no evaluation is due at this update.
        """
        config = self.config
        if config.stopping.stop_at is None or not self._evaluation_due(step):
            return None
        folder, strata, exact = config.output.run_dir, self._strata, self._exact

        def look() -> str:
            found = memory.judge_run(folder, step, saved, strata, exact, config.stopping)
            if found is None:
                return json.dumps(None)
            summary = parse_json((folder / SUMMARY).read_bytes())
            write_json(folder / SUMMARY, summary | {MEMORISATION: found.to_json()}, indent=2)
            return json.dumps(dataclasses.asdict(found))

        found = json.loads(from_first(look))
        return None if found is None else Verdict.from_json(found)

    @property
    def _bands(self) -> list[Band]:
        training = self.config.training
        if training.train_at_step is not None:
            return [evaluation.band_of_step(self.schedule, training.train_at_step)]
        return evaluation.time_bands(self.schedule, training.faithful)

    @cached_property
    def _strata(self) -> Strata:
        return Strata(self.schedule, first=int(self.config.training.faithful))

    @cached_property
    def _exact(self) -> Exact | None:
        """What the exact score knows, which is kept beside the evaluations."""
        group = self.config.training.group(self.images.images.shape[1:])
        found = evaluation.exact_of(
            self.schedule, self.images, evaluation.key_of(self.config.seed), self._strata, group
        )
        if found is not None and is_first_process():
            found.save(evaluations.path_of(self.config.output.run_dir, evaluations.EXACT))
        return found

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
