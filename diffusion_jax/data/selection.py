"""Which images of a source are wanted: some classes, and of each the same ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_jax.data.images import require_images
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.text import shown


@dataclass(frozen=True)
class Selection:
    """Images first..first + count - 1 of each class, in the source's own order.

    Attributes:
      classes: names, in the order that they are to have; empty for all that the source has.
      first: rank of the first image wanted of each class.
      count: how many of each class; None for all from `first` on.
      exact: refuse a class that has fewer than that, instead of taking what there is.
    """

    classes: tuple[str, ...] = ()
    first: int = 0
    count: int | None = None
    exact: bool = True

    def of(self, source: str, names: Sequence[str]) -> list[int]:
        """The classes wanted, as indices into the source's own.

        A name that is not printable may be given as it is shown, see `text.shown`.

        Raises:
          UserError: a class that the source does not have, or one given twice.
        """
        places = {shown(name): place for place, name in enumerate(names)}
        places |= {name: place for place, name in enumerate(names)}
        if unknown := [name for name in self.classes if name not in places]:
            held = f"its classes are {', '.join(names)}" if names else "it has no classes"
            raise UserError(f"{source} has no class {', '.join(unknown)}; {held}")
        wanted = [places[name] for name in self.classes]
        if len(set(wanted)) < len(wanted):
            raise UserError(f"classes = {self.classes} must name each class once")
        return wanted or list(range(len(names)))

    def ranks(self, held: str, available: int) -> slice:
        """The ranks wanted of a class.

        Args:
          held: the beginning of the message, such as "cifar10 holds 5000 images of horse".
          available: how many images the class has.

        Raises:
          UserError: there are fewer than are wanted, and `exact` is set.
        """
        if self.exact:
            require_images(held, available, self.first, self.count or 1)
        return slice(self.first, None if self.count is None else self.first + self.count)

    def places(
        self, source: str, labels: np.ndarray, wanted: Sequence[int], names: Sequence[str]
    ) -> list[np.ndarray]:
        """The places of the images wanted of each class.

        Args:
          source: name of the source, for messages.
          labels: the source's label of each of its images (n,).
          wanted: labels of the classes wanted.
          names: their names, for messages.

        Returns:
          Increasing indices into the source, one array per class.

        Raises:
          UserError: see `ranks`.
        """
        found = []
        for label, name in zip(wanted, names, strict=True):
            places = np.flatnonzero(labels == label)
            held = f"{source} holds {len(places)} images of {name}"
            found.append(places[self.ranks(held, len(places))])
        return found

    def rows(
        self, source: str, n: int, labels: np.ndarray | None, class_names: tuple[str, ...]
    ) -> tuple[np.ndarray | range, np.ndarray | None, tuple[str, ...]]:
        """The images wanted of a source that mixes its classes.

        Args:
          source: its name, for messages.
          n: how many images it has; what a header claims may be absurd.
          labels: of each an index of class_names (n,); None where there are none.
          class_names: the names of its classes.

        Returns:
          Increasing places in the source, as a range where there are no labels; new labels and the
          names of their classes, in the order asked for.

        Raises:
          UserError: see `of` and `ranks`.
        """
        wanted = self.of(source, class_names)
        if labels is None:
            return range(n)[self.ranks(f"{source} holds {n} images", n)], None, ()
        names = tuple(class_names[label] for label in wanted)
        places = self.places(source, labels, wanted, names)
        order = np.argsort(np.concatenate(places))
        new_labels = np.repeat(np.arange(len(names)), [len(each) for each in places])
        return np.concatenate(places)[order], new_labels[order], names
