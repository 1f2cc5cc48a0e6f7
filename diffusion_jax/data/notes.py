"""What a source found worth telling, said by whoever loads the images."""

import sys

from diffusion_jax.data.images import ImageSet
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.runtime.text import shown


def say_notes(images: ImageSet, held_out: ImageSet | None = None) -> list[str]:
    """Says the notes of a set of images on stderr, one line each, by the first process alone.

    Args:
      images: what was loaded.
      held_out: images of the same source that are held out; of their notes, those are said that
        the others do not have.

    Returns:
      What is said.
    """
    notes = list(images.notes)
    if held_out is not None:
        others = (note for note in held_out.notes if note not in images.notes)
        notes += [f"of those held out, {note}" for note in others]
    if is_first_process():
        for note in notes:
            print(f"note: {shown(note)}", file=sys.stderr)
    return notes
