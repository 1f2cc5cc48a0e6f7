"""The evaluations that a run keeps, RUN_DIR/evaluations/STEP.npz: what was drawn, and the losses.

Everything that is said of memory, quality and modes while a model trains follows from these files,
so that it can be said again without the model.
"""

import dataclasses
import io
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.loss_information import Losses
from diffusion_jax.runtime.files import write_bytes
from diffusion_jax.runtime.patience import names_in

FOLDER = "evaluations"
# What NumPy raises at a damaged file.
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    SyntaxError,
    TypeError,
    RuntimeError,  # NotImplementedError too
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
# The exact score's part, which no update changes.
EXACT = "exact"


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation drew.

    Attributes:
      samples: images (n, height, width, channels), mean removed, as the sampler left them.
      training: losses on training images, one step of each stratum.
      held_out: on images held out, with the same steps and noise; None where none are.
    """

    samples: np.ndarray
    training: Losses
    held_out: Losses | None

    @property
    def both(self) -> tuple[Losses, Losses]:
        """Losses on training images and on those held out.

        Raises:
          UserError: none are held out.
        """
        if self.held_out is None:
            raise UserError("an evaluation without held-out images says nothing of memory")
        return self.training, self.held_out

    def save(self, path: Path) -> None:
        """Writes it, or replaces it."""
        arrays = {"samples": self.samples} | _arrays("training", self.training)
        if self.held_out is not None:
            arrays |= _arrays("held_out", self.held_out)
        _write(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads it.

        Raises:
          UserError: it is damaged, or not there.
        """
        arrays = _read(path, ["samples", *_names("training")])
        both = set(_names("held_out")) <= set(arrays)
        held_out = _losses("held_out", arrays) if both else None
        return cls(arrays["samples"], _losses("training", arrays), held_out)


@dataclass(frozen=True)
class Exact:
    """What the exact score of the training set knows of it.

    Attributes:
      losses: on the training images and noise of the evaluations.
      time: at which it knows 99 % of what there is to know; see `loss_information.known_time`.
    """

    losses: Losses
    time: float

    def save(self, path: Path) -> None:
        """Writes it, or replaces it."""
        _write(path, _arrays("training", self.losses) | {"time": np.float64(self.time)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads it.

        Raises:
          UserError: it is damaged, or not there.
        """
        arrays = _read(path, ["time", *_names("training")])
        return cls(_losses("training", arrays), float(arrays["time"]))


def path_of(run_dir: Path, step: int | str) -> Path:
    """Where a run keeps the evaluation of an update, or the exact score's losses (`EXACT`)."""
    name = step if isinstance(step, str) else f"{step:08d}"
    return run_dir / FOLDER / f"{name}.npz"


def kept(run_dir: Path) -> list[int]:
    """The updates whose evaluations a run keeps, increasing."""
    names = (Path(name) for name in names_in(run_dir / FOLDER))
    return sorted(int(n.stem) for n in names if n.suffix == ".npz" and n.stem.isdigit())


def _names(name: str) -> list[str]:
    return [f"{name}_{field.name}" for field in dataclasses.fields(Losses)]


def _arrays(name: str, losses: Losses) -> dict[str, np.ndarray]:
    return dict(zip(_names(name), (losses.image, losses.steps, losses.losses), strict=True))


def _losses(name: str, arrays: dict[str, np.ndarray]) -> Losses:
    return Losses(*(arrays[each] for each in _names(name)))


def _write(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_bytes(path, content.getvalue())


def _read(path: Path, wanted: list[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as found:
            if missing := set(wanted) - set(found.files):
                raise ValueError(f"it has no {', '.join(sorted(missing))}")
            return {name: found[name] for name in found.files}
    except _UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read: {error}; remove it: the others are used without it, and that "
            f"of the last update is made again"
        ) from error
