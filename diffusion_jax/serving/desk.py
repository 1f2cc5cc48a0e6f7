"""From requests to work: what is asked for is checked, named, and handed to the worker."""

import hashlib
import io
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image as Pictures

from diffusion_jax.data.images import UNREADABLE, open_image
from diffusion_jax.errors import UserError
from diffusion_jax.sampling import SAMPLERS
from diffusion_jax.serving import ids, paths, wire
from diffusion_jax.serving.ids import ForkId, SampleId, TrunkId, TurnId
from diffusion_jax.serving.model import Model
from diffusion_jax.serving.programs import Process, is_noisy
from diffusion_jax.serving.work import Job, Steps, Worker

# Calls of the denoiser where none are named: few for a network.
_CALLS, _CALLS_OF_NETWORK = 200, 50


class Unknown(UserError):
    """What is asked for is not there."""


@dataclass(eq=False)
class Desk:
    """The models that are served, and the worker.

    Attributes:
      worker: does the work.
      models: by id, once they are ready.
      done: preparations done.
      of: preparations in all.
    """

    worker: Worker
    models: dict[str, Model] = field(default_factory=dict)
    done: int = 0
    of: int = 1
    ready: bool = False

    def model(self, name: str) -> Model:
        """A model by its id.

        Raises:
          Unknown: there is none.
        """
        if name not in self.models:
            raise Unknown(
                f"there is no model '{name[:80]}'; GET /v1/models lists those that there are"
            )
        return self.models[name]

    def process(self, trunk: TrunkId) -> Process:
        """The backward process of a trunk.

        Raises:
          UserError: an unknown name, calls that it cannot make, or branches that do not descend.
        """
        model = self.model(trunk.model)
        check_name("denoiser", trunk.denoiser, model.denoisers)
        check_name("sampler", trunk.sampler, SAMPLERS)
        if trunk.seed > 2**32 - 1 or trunk.index > 2**31 - 1 - 1024:
            raise UserError("seed must be below 2^32, and index below 2^31 - 1 024")
        process = model.process(trunk.denoiser, trunk.sampler, trunk.calls)
        places = [process.number(self.step_of(model, step)) for step, _ in trunk.branches]
        if any(b >= a for a, b in pairwise(places)):
            raise UserError(
                "branches must descend: each at a later step visited than the one before"
            )
        if places and not is_noisy(type(process.sampler)):
            raise UserError(_equal_clones(trunk.sampler))
        if len(places) > ids.MOST_BRANCHES or any(c > ids.MOST_CLONE for _, c in trunk.branches):
            raise UserError(
                f"there are at most {ids.MOST_BRANCHES} branches, of clones up to {ids.MOST_CLONE}"
            )
        return process

    def step_of(self, model: Model, step: int, least: int = 0) -> int:
        """A step, if it is one of the model's schedule.

        Raises:
          UserError: it is not.
        """
        last = model.schedule.num_steps - 1
        if not least <= step <= last:
            raise UserError(
                f"step = {step} lies outside the schedule, whose steps are {least} to {last}"
            )
        return step

    def trunk_id(self, request: wire.Process) -> TrunkId:
        """The id of the trunk that a request is about, its branches at steps that it visits.

        Raises:
          UserError: see `process`.
        """
        model = self.model(request.model)
        calls = default_calls(model, request.denoiser) if request.calls is None else request.calls
        asked = request.branches if isinstance(request, wire.TrunkRequest) else []
        branches = tuple((each.step, each.clone) for each in asked)
        words = (request.model, request.denoiser, request.sampler)
        trunk = TrunkId(*words, calls, request.seed, request.index, branches)
        process = self.process(trunk)
        visited = tuple((int(process.steps[process.number(s)]), clone) for s, clone in branches)
        return TrunkId(*words, calls, request.seed, request.index, visited)

    def trunk(self, trunk: TrunkId, anew: bool = False) -> Job:
        """The trunk's job: the one that there is, or a new one; see `Worker.submit`.

        Raises:
          UserError: see `process`.
          Busy: see `Worker.submit`.
        """
        process, model = self.process(trunk), self.model(trunk.model)
        _require_visited(process, [step for step, _ in trunk.branches])
        made = paths.begun(model, process, trunk)
        return self.worker.submit(
            str(trunk), made, lambda job: paths.run_trunk(model, process, job), anew
        )

    def fork_id(self, trunk: TrunkId, request: wire.ForkRequest) -> ForkId:
        """The id of a fork, at a step that the trunk visits.

        Raises:
          UserError: a step outside the schedule.
        """
        process, model = self.process(trunk), self.model(trunk.model)
        step = self.step_of(model, request.step)
        visited = int(process.steps[process.number(step)])
        return ForkId(trunk, visited, request.clones, request.first)

    def fork(self, fork: ForkId, anew: bool = False) -> Job:
        """The job of a fork."""
        process, model = self.process(fork.trunk), self.model(fork.trunk.model)
        if not is_noisy(type(process.sampler)):
            raise UserError(_equal_clones(fork.trunk.sampler))
        _require_visited(process, [fork.step, *(step for step, _ in fork.trunk.branches)])
        if fork.trunk.branches and fork.step > fork.trunk.branches[-1][0]:
            raise UserError(
                f"step = {fork.step} lies before the trunk's last branch, at step "
                f"{fork.trunk.branches[-1][0]}: fork the trunk that it branched from"
            )
        if not 1 <= fork.clones <= ids.MOST_CLONES or fork.first > ids.MOST_CLONE:
            raise UserError(
                f"clones = {fork.clones} and first = {fork.first} must be 1 to {ids.MOST_CLONES}, "
                f"and 0 to {ids.MOST_CLONE}"
            )
        known = self.worker.find(str(fork.trunk))
        kept = None if known is None else known.result
        return self._ends(
            fork, process, lambda job: paths.run_forks(model, process, job, kept), anew
        )

    def turn_id(self, request: wire.TurnRequest) -> tuple[TurnId, np.ndarray]:
        """The id of a U-turn, and the image that it is about, mean removed.

        Raises:
          UserError: a step outside the schedule, or see `picture`.
        """
        trunk = self.trunk_id(request)
        process, model = self.process(trunk), self.model(request.model)
        step = int(process.steps[process.number(self.step_of(model, request.step))])
        image, name = picture(model, request.image)
        return TurnId(trunk, step, request.returns, name), image

    def turn(self, turn: TurnId, anew: bool = False, image: np.ndarray | None = None) -> Job:
        """The job of a U-turn.

        Args:
          turn: which.
          anew: see `Worker.submit`.
          image: where it starts from, mean removed; an image that was sent is not kept.

        Raises:
          Unknown: the image was sent, and the turn is not known.
        """
        process, model = self.process(turn.trunk), self.model(turn.trunk.model)
        _require_visited(process, [turn.step])
        if not 1 <= turn.returns <= ids.MOST_CLONES:
            raise UserError(f"returns = {turn.returns} must be 1 to {ids.MOST_CLONES}")
        if image is None and turn.image.startswith("i"):
            image = training_image(model, int(turn.image[1:]))
        if image is None:
            if (job := self.worker.find(str(turn))) is not None:
                return job
            raise Unknown("the image of this U-turn is not kept: post it again to /v1/uturns")
        return self._ends(
            turn, process, lambda job: paths.run_turns(model, process, job), anew, image
        )

    def samples(self, samples: SampleId, anew: bool = False) -> Job:
        """The job of samples."""
        process, model = self.process(samples.trunk), self.model(samples.trunk.model)
        if not 1 <= samples.count <= ids.MOST_CLONES or samples.trunk.branches:
            raise UserError(f"count = {samples.count} must be 1 to {ids.MOST_CLONES}")
        return self._ends(
            samples, process, lambda job: paths.run_samples(model, process, job), anew
        )

    def _ends(
        self,
        name: ForkId | TurnId | SampleId,
        process: Process,
        work: Callable[[Job], Steps],
        anew: bool,
        start: np.ndarray | None = None,
    ) -> Job:
        first = process.num_steps - 1 if isinstance(name, SampleId) else process.number(name.step)
        steps = [*map(int, process.steps[first::-1]), -1]
        return self.worker.submit(str(name), paths.Ends(name, steps, start=start), work, anew)

    def denoise(self, request: wire.DenoiseRequest) -> Job:
        """The job of asking denoisers of one x_t."""
        model = self.model(request.model)
        names = list(model.denoisers) if request.denoisers is None else request.denoisers
        for name in names:
            check_name("denoiser", name, model.denoisers)
        step = self.step_of(model, request.step)
        x = request.x.numpy(model.shape)[None]
        known = hashlib.sha256(x.tobytes()).hexdigest()
        name = f"denoise {model.id} {step} {','.join(names)} {known}"
        work = paths.run_denoise(model, list(dict.fromkeys(names)), x, step)
        return self.worker.submit(name, {"denoised": {}}, work, anew=True)


def _require_visited(process: Process, steps: list[int]) -> None:
    """Refuses ids at steps that are not visited: those that this server gives are."""
    wrong = [step for step in steps if int(process.steps[process.number(step)]) != step]
    if wrong:
        raise Unknown(f"step {wrong[0]} is none that this process visits: post the request instead")


def _equal_clones(sampler: str) -> str:
    return f"{sampler} adds no noise: all clones would be equal; fork with the ancestral sampler"


def check_name(what: str, name: str, known: Any) -> None:
    """Refuses a name that is not among those known.

    Raises:
      UserError: it is not.
    """
    if name not in known:
        raise UserError(f"there is no {what} '{name}' here; choose from {', '.join(known)}")


def default_calls(model: Model, denoiser: str) -> int:
    """Calls of the denoiser where none are named."""
    wanted = _CALLS_OF_NETWORK if denoiser == "trained" else _CALLS
    return min(wanted, model.schedule.num_steps)


def training_image(model: Model, index: int) -> np.ndarray:
    """A training image, mean removed.

    Raises:
      UserError: there is none of this number.
    """
    if not 0 <= index < len(model.points):
        raise UserError(
            f"there is no training image {index}: they are 0 to {len(model.points) - 1}"
        )
    image: np.ndarray = model.points[index]
    return image


def picture(model: Model, image: wire.Image) -> tuple[np.ndarray, str]:
    """The image of a request, mean removed, and its name in an id.

    Raises:
      UserError: none or several are named, a number that no training image has, a PNG that cannot
        be read, or an image of another size or with values outside [0, 1].
    """
    given = [name for name in ("index", "png", "array") if getattr(image, name) is not None]
    if len(given) != 1:
        raise UserError("an image is one of index, png and array: give one of them")
    if image.index is not None:
        return training_image(model, image.index), f"i{image.index}"
    if image.array is not None:
        values = image.array.numpy(model.shape)
        if values.min() < 0 or values.max() > 1:
            raise UserError("the values of an image lie in [0, 1]")
    else:
        assert image.png is not None
        values = from_png(image.png, model.shape)
    name = "u" + hashlib.sha256(values.tobytes()).hexdigest()[:32]
    return values - model.images.mean, name


def from_png(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values in [0, 1] of a PNG in base64, float32.

    Raises:
      UserError: it cannot be read, or is of another size.
    """
    height, width, channels = shape
    if channels not in (1, 3):
        raise UserError(f"images of {channels} channels have no PNG: send an array")
    try:
        opened = open_image(io.BytesIO(b64decode(text, validate=True)), ("PNG",))
        if opened.size != (width, height):
            raise UserError(
                f"the PNG is {opened.width} x {opened.height} pixels, and the model's images are "
                f"{width} x {height}"
            )
        if opened.mode.startswith("I"):
            raise UserError("the PNG has 16 bits per channel: send one of 8 bits")
        pixels = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
    except UserError:
        raise
    except (*UNREADABLE, Pictures.DecompressionBombWarning) as error:
        raise UserError("the PNG cannot be read: send a whole file, in base64") from error
    return pixels.reshape(shape) / np.float32(255)
