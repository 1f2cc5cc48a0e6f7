"""What a set of images must be for its regimes to mean something, and what is worth a warning."""

import hashlib
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.runtime import memory
from diffusion_jax.symmetry import Group

_CHUNK_BYTES = 2**26
# Of all maps of all images: more are not looked through for images of one another.
_MOST_MAPPED = 2**31


def require_memory(what: str, num_bytes: int, memory_gib: float | None = None) -> None:
    """Refuses what does not fit, before it is tried.

    Args:
      what: the subject of the message, such as "loading images.npy".
      num_bytes: bytes needed.
      memory_gib: the limit in GiB; by default the memory that is free now, see
        `memory.available`.

    Raises:
      UserError: more bytes are needed than the limit.
    """
    if memory_gib is None:
        free, limited_by = memory.available()
        limit, words = free / 2**30, "free" + f" of {limited_by}" * bool(limited_by)
    else:
        limit, words = memory_gib, "allowed"
    # Compared as it is written, so that what is said to be needed is enough.
    needed = f"{num_bytes / 2**30:.3g}"
    if float(needed) > limit:
        raise UserError(
            f"{what} takes {needed} GiB of memory, more than the {limit:.3g} GiB that are {words}; "
            f"take fewer or smaller images"
        )


def chunks(images: np.ndarray) -> list[slice]:
    """Stretches of some images each, so that what is computed of a stretch stays small."""
    step = max(1, _CHUNK_BYTES // max(1, images[:1].nbytes))
    return [slice(start, start + step) for start in range(0, len(images), step)]


def grey_notes(what: Path | str, images: np.ndarray) -> tuple[str, ...]:
    """A note on grey levels that are dark throughout, as those on another scale than 255 are.

    Images are looked through until one is bright, so that of most files little is read.

    Args:
      what: what holds the images.
      images: uint8 (n, ...), in memory or mapped.

    Returns:
      One note where no level reaches 128, else none.
    """
    largest = 0
    for part in chunks(images):
        largest = max(largest, int(images[part].max()))
        if largest >= 128:
            return ()
    return (
        f"the largest grey level of {what} is {largest}, taken out of 255: if that is not its "
        f"scale, multiply the levels so that white is 255",
    )


def check(images: ImageSet) -> list[str]:
    """Refuses a set of images that has no regimes, and says what is odd about one that has.

    Duplicates are exact ones: near-duplicates, such as overlapping crops, are not looked for. A
    point with m - 1 copies has a posterior p(mu | x_t) of at most 1/m, so that phi_C tends for
    small t to E[1/m] = (number of different images)/n in place of 1.

    Returns:
      Warnings, one sentence each: the source's notes, duplicates, constant images, labels of which
      one class, or some more than others, hold all images.

    Raises:
      UserError: fewer than two images, NaN or infinity, or nothing but copies of one image.
    """
    pixels = images.images
    n = len(pixels)
    if n < 2:
        raise UserError(f"a covariance and a posterior need at least two images, not {n}")
    if pixels.dtype.kind == "f":
        for part in chunks(pixels):
            if not (finite := np.isfinite(pixels[part])).all():
                place = np.argwhere(~finite)[0] + [part.start, 0, 0, 0]
                raise UserError(f"images{place.tolist()} is {pixels[tuple(place)]}, not finite")
    groups = _copies(pixels)
    if len(groups) == 1 and len(groups[0]) == n:
        raise UserError(f"all {n} images are equal: they have no variance, no t_S and no t_C")
    return [
        *images.notes,
        *_duplicates(images, groups),
        *_constant(pixels),
        *_unbalanced(images),
    ]


def _copies(pixels: np.ndarray) -> list[list[int]]:
    """The places of equal images, for each image that occurs more than once."""
    places = defaultdict(list)
    for i, image in enumerate(pixels):
        places[_digest(image)].append(i)
    return [group for group in places.values() if len(group) > 1]


def _digest(image: np.ndarray) -> bytes:
    # Adding 0 makes -0.0, which equals 0.0, the same bytes.
    plain = np.ascontiguousarray(image if image.dtype == np.uint8 else image + 0)
    return hashlib.blake2b(plain.data, digest_size=16).digest()


def check_maps(images: ImageSet, group: Group) -> list[str]:
    """Says whether images are maps of others already, to the bit: the orbit holds those twice.

    Where all maps of all images are over 2 GiB they are not looked through.

    Args:
      images: the data set.
      group: maps of its images minus their mean.

    Returns:
      At most one warning.
    """
    n, pixels = len(images.images), images.images[:1].size
    if 4 * n * pixels * group.order > _MOST_MAPPED:
        return []
    first: dict[bytes, int] = {}
    same = [first.setdefault(_digest(image), i) for i, image in enumerate(images.centred())]
    moved, other = jax.jit(group.maps), np.full(n, -1)
    for number in range(1, group.order):
        for part in chunks(images.images):
            mapped = np.asarray(moved(jnp.int32(number), images.centred(part)))
            for i, image in enumerate(mapped, part.start):
                if (found := first.get(_digest(image), same[i])) != same[i]:
                    other[i] = found
    if not (known := other >= 0).any():
        return []
    place = int(np.argmax(known))
    text = (
        f"{known.sum()} of {n} images are others under the symmetry {group.name} (the first: images"
        f" {place} and {other[place]}, counted from 0): their orbits hold the same points, which "
        f"count as several; the posterior cannot separate them, and phi_C stays below 1 for small t"
    )
    labels = images.labels
    if labels is not None and (mixed := int(np.sum(known & (labels != labels[other])))):
        text += f"; {mixed} of them are of another class, so phi does too"
    return [text]


def _duplicates(images: ImageSet, groups: list[list[int]]) -> list[str]:
    if not groups:
        return []
    n, copies = len(images.images), sum(len(group) for group in groups)
    different = n - copies + len(groups)
    first, second = groups[0][:2]
    text = (
        f"{copies} of {n} images are exact copies of one another, in {len(groups)} "
        f"group{'s' * (len(groups) > 1)} (the first: images {first} and {second}, counted from 0)."
        f" Copies merge the lumps that collapse tells apart: the posterior cannot separate them, "
        f"phi_C tends to {different / n:.4g} for small t in place of 1, and t_C is biased"
    )
    labels = images.labels
    if labels is not None and (
        mixed := sum(len(set(labels[group].tolist())) > 1 for group in groups)
    ):
        text += f"; {mixed} of the groups have copies in different classes, so phi stays below 1"
    return [text]


def _constant(pixels: np.ndarray) -> list[str]:
    if pixels.shape[1] * pixels.shape[2] == 1:
        return []
    flat = np.concatenate(
        [np.all(pixels[part] == pixels[part][:, :1, :1], axis=(1, 2, 3)) for part in chunks(pixels)]
    )
    if not flat.any():
        return []
    return [
        f"{flat.sum()} of {len(pixels)} images are constant, of one colour all over "
        f"(the first: image {np.argmax(flat)}, counted from 0)"
    ]


def _unbalanced(images: ImageSet) -> list[str]:
    if images.labels is None:
        return []
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    if np.count_nonzero(counts) == 1:
        name = images.class_names[int(np.argmax(counts))]
        return [f"there is one class only, {name}: phi is 1 at every time"]
    if counts.min() == counts.max() > 1:
        return []
    least, most = (int(choose(counts)) for choose in (np.argmin, np.argmax))
    floor = float(np.sum((counts / counts.sum()) ** 2))
    texts = []
    if counts.min() < counts.max():
        texts.append(
            f"the classes differ in size, from {counts[least]} images ({images.class_names[least]})"
            f" to {counts[most]} ({images.class_names[most]}): phi tends to {floor:.4g}, the sum of"
            f" their squared shares, for large t"
        )
    if alone := int(np.sum(counts == 1)):
        texts.append(
            f"{alone} class{'es hold' if alone > 1 else ' holds'} a single image "
            f"(the first: {images.class_names[int(np.argmax(counts == 1))]}): without its own "
            f"image such a class is empty"
        )
    return texts
