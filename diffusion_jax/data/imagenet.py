"""Down-sampled ImageNet (Chrabaszcz et al. 2017) from its npz batches, classes by WordNet."""

import re
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffusion_jax.data import arrays, layouts
from diffusion_jax.data.faults import Faults, with_others
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.source import Defaults, Source
from diffusion_jax.data.storage import Store, source_files, stored
from diffusion_jax.errors import UserError

URL = "https://image-net.org/data/downsample/"
SIZES = (8, 16, 32, 64)
NUM_BATCHES = 10
# The paper's classes by name; all others by their WordNet id.
NAMES = {"lesser_panda": "n02509815", "seashore": "n09428293"}
_MOST_IMAGES = 1_500_000
_ROWS = 1024


def wordnet_ids() -> list[str]:
    """The WordNet id of each label: that of label k is at k - 1.

    Labels follow map_clsloc.txt of the ILSVRC development kit, which is neither the order of the
    ids nor that of other ImageNet labels. The list is that of TensorFlow Datasets.
    """
    return (Path(__file__).parent / "published" / "imagenet_labels.txt").read_text().split()


def load(data_dir: Path, size: int, selection: Selection, store: Store) -> ImageSet:
    """Loads training images of some classes, class after class, in the batches' order.

    Args:
      data_dir: holds train_data_batch_1.npz to train_data_batch_10.npz, or folders in it do, as the
        archives unpack; batches of other sizes may lie beside them.
      size: pixels per side: 8, 16, 32 or 64.
      selection: names in `NAMES` or WordNet ids, and which images of each.
      store: where the images go if they are larger than its limit.

    Returns:
      uint8 images of three channels.

    Raises:
      UserError: files that are missing or damaged, or of another size; no such class; fewer images
        than asked for.
    """
    ids = wordnet_ids()
    unknown = [name for name in selection.classes if NAMES.get(name, name) not in ids]
    if unknown:
        raise UserError(
            f"ImageNet has no class {', '.join(unknown)}: classes are {', '.join(NAMES)} or "
            f"WordNet ids of the 1000 classes of ILSVRC 2012, such as {ids[0]}"
        )
    names = selection.classes or tuple(ids)
    wanted = [1 + ids.index(NAMES.get(name, name)) for name in names]
    if len(set(wanted)) < len(wanted):
        raise UserError(f"classes = {names} name one class twice, by its name and by its id")
    paths, labels = _batches(data_dir, size)
    places = selection.places(f"imagenet{size}", np.concatenate(labels), wanted, names)
    order = np.concatenate(places)
    starts = np.cumsum([0, *map(len, labels)])

    def fill(images: np.ndarray) -> None:
        rank, faults = np.argsort(order), Faults()
        for path, first, last in zip(paths, starts[:-1], starts[1:], strict=True):
            low, high = np.searchsorted(order[rank], [first, last])
            inside = rank[low:high]
            with faults.collected():
                for k, rows in _rows(path, order[inside] - first, size):
                    images[inside[k]] = rows
        faults.refuse(f"batches in {data_dir}", len(paths))

    shape = (len(order), size, size, 3)
    key = [f"imagenet{size}", source_files(*paths), names, selection.first, selection.count]
    pixels, file = stored(store, shape, fill, key)
    class_labels = np.repeat(np.arange(len(names)), [len(each) for each in places])
    return ImageSet(pixels, class_labels, names, file=file)


def _archives(size: int) -> list[str]:
    """The archives that unpack to the batches."""
    parts = ("part1_", "part2_") if size == 64 else ("",)
    return [f"Imagenet{size}_train_{part}npz.zip" for part in parts]


def _batches(data_dir: Path, size: int) -> tuple[list[Path], list[np.ndarray]]:
    """The batches of this size, in the order of their numbers, and their labels."""
    wanted = [f"train_data_batch_{k}.npz" for k in range(1, NUM_BATCHES + 1)]
    copies: dict[str, list[Path]] = {}
    for path in layouts.found(data_dir, *wanted):
        copies.setdefault(path.name, []).append(path)
    if missing := [name for name in wanted if name not in copies]:
        text = (
            f"down-sampled ImageNet was not found: {data_dir} should hold {wanted[0]} to "
            f"{wanted[-1]}, of which {len(missing)} are missing, the first {missing[0]}; "
            f"{layouts.what_lies(data_dir, _known(size))}. Get {' and '.join(_archives(size))} "
            f"(the npz version, not the pickles) from {URL}, unpack it there or name its folder "
            f"with --data-dir"
        )
        raise with_others(text, lambda: _usable(data_dir, copies, size, whole=True))
    return _usable(data_dir, {name: copies[name] for name in wanted}, size)


def _usable(
    data_dir: Path, copies: dict[str, list[Path]], size: int, whole: bool = False
) -> tuple[list[Path], list[np.ndarray]]:
    """A usable copy of each batch, and its labels.

    The images are read through too where something is wrong with other batches (or `whole`), so
    that all is said at once.
    """
    faults, paths, labels = Faults(), [], []
    for name, paths_of_it in copies.items():
        with faults.collected():
            path, ids = layouts.first_usable(
                paths_of_it, lambda path: (path, _labels(path, size)), name
            )
            paths.append(path)
            labels.append(ids)
    for path, ids in zip(paths, labels, strict=True) if faults or whole else ():
        with faults.collected():
            deque(_rows(path, np.array([len(ids) - 1]), size), maxlen=0)
    faults.refuse(f"batches in {data_dir}", len(copies))
    return paths, labels


def _known(size: int) -> dict[str, str]:
    """What lies there in place of the batches, see `layouts.what_lies`."""
    packed = "{path} is still packed: {unzip}"
    pickled = rf"train_data_batch_\d+|(?i:imagenet{size}_train(_part\d)?\.zip)"
    return {
        **{re.escape(name): packed for name in _archives(size)},
        pickled: "{path} is of the pickled version, which is never read",
        r"val_data.*|(?i:imagenet\d+_val.*)": "{path} is the validation set",
    }


def _labels(path: Path, size: int) -> np.ndarray:
    """The labels of a batch, 1 to 1000, after checking that its images go with them."""
    with arrays.reading(path), zipfile.ZipFile(path) as archive:
        headers = arrays.headers(archive)
        for name in ("data", "labels"):
            if name not in headers:
                raise ValueError(f"it holds no array {name}")
        images, ids = headers["data"], headers["labels"]
        n = ids.shape[0] if len(ids.shape) == 1 else -1
        if ids.dtype.kind not in "iu" or not 0 <= n <= _MOST_IMAGES:
            raise ValueError(f"its labels are {ids.dtype}{ids.shape}")
        if images.dtype != np.uint8 or images.shape != (n, 3 * size * size) or images.fortran:
            raise ValueError(
                f"its images are {images.dtype}{images.shape}, and uint8{(n, 3 * size * size)} are "
                f"{n} images of {size} x {size} pixels"
            )
        labels = arrays.read(archive, "labels")
        if n and (labels.min() < 1 or labels.max() > 1000):
            raise ValueError(f"its labels lie in {labels.min()}..{labels.max()}, not in 1..1000")
        return labels


def _rows(path: Path, places: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads images of a batch, some at a time, without the rest in memory.

    Yields:
      Indices into `places`, which increase, and the images there.
    """
    width = 3 * size * size
    with arrays.reading(path), zipfile.ZipFile(path) as archive, archive.open("data.npy") as file:
        arrays.read_header(file)
        done = 0
        for start in range(0, int(places[-1]) + 1 if len(places) else 0, _ROWS):
            data = file.read(_ROWS * width)
            rows = np.frombuffer(data[: len(data) // width * width], np.uint8).reshape(-1, width)
            until = done + int(np.searchsorted(places[done:], start + len(rows)))
            if len(data) < _ROWS * width and places[-1] >= start + len(rows):
                raise ValueError("it ends too soon")
            chosen = rows[places[done:until] - start].reshape(-1, 3, size, size)
            yield np.arange(done, until), chosen.transpose(0, 2, 3, 1)
            done = until


def _source(size: int, in_paper: str = "") -> Source:
    archives = " and ".join(f"`{name}`" for name in _archives(size))
    return Source(
        about=f"ImageNet down-sampled to {size} x {size}, classes by WordNet",
        load=load,
        defaults=Defaults(tuple(NAMES), 1000, size),
        classes=f"{', '.join(NAMES)} and WordNet ids",
        files=f"`train_data_batch_1.npz` to `_{NUM_BATCHES}.npz`, unpacked from {archives}",
        origin=f"<{URL}>, after registration",
        sizes=(size,),
        in_paper=in_paper,
        steps=(
            "Register at https://image-net.org/ and log in: the images are for research.",
            f"At {URL} take {' and '.join(_archives(size))}, the npz version of the training set.",
            *(f"unzip {name} -d {{folder}}" for name in _archives(size)),
        ),
    )


SOURCES = {
    16: _source(16, "n = 2 000, Lambda = 3.05; also a collapse run"),
    32: _source(32, "n = 2 000, Lambda = 12.11; also a collapse run"),
    64: _source(64),
}
