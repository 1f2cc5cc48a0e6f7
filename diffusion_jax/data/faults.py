"""What is wrong with the files of a set: all of it is said at once."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from diffusion_jax.errors import UserError

_SHOWN = 10


class Faults:
    """Collects errors about single files, so that nobody mends them one start at a time."""

    def __init__(self) -> None:
        self._found: list[UserError] = []

    def __len__(self) -> int:
        return len(self._found)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keeps a UserError that the block raises, and goes on after it."""
        try:
            yield
        except UserError as error:
            self._found.append(error)

    def refuse(self, what: str, total: int) -> None:
        """Raises what was collected, if anything: the first ten errors and the number of all.

        Advice that they share is given once.

        Args:
          what: what the errors are about, such as "files of imgs".
          total: how many of these there are.

        Raises:
          UserError: something was collected; a single error is raised as it is, and so is one that
            came several times.
        """
        if len(set(map(str, self._found))) == 1:
            raise self._found[0]
        if self._found:
            texts = list(map(str, self._found))
            advice = _shared_advice(texts)
            named = "; ".join(text.removesuffix(advice) for text in texts[:_SHOWN])
            more = f"; and {len(self) - _SHOWN} more" if len(self) > _SHOWN else ""
            raise UserError(f"{len(self)} of {total} {what} cannot be used: {named}{more}{advice}")


def with_others(text: str, check: Callable[[], object]) -> UserError:
    """The error that a text says, followed by what a check finds wrong with all else."""
    try:
        check()
    except UserError as error:
        text = f"{text}; besides, {error}"
    return UserError(text)


def _shared_advice(texts: list[str]) -> str:
    """What all texts end with, from a colon or semicolon on."""
    starts = [mark.start() for mark in re.finditer("[:;] ", texts[0])]
    ends = (texts[0][start:] for start in starts)
    return next((end for end in ends if all(text.endswith(end) for text in texts)), "")
