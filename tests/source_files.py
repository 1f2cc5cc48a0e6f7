"""Small data sets in the true formats of their sources, written byte by byte, for the tests."""

import gzip
import io
import struct
import tarfile
import zipfile

import numpy as np
from lmdb_folders import smooth_image

CIFAR_FOLDER = "cifar-10-batches-bin"


def write_idx(folder, pixels, labels, packed=True):
    """MNIST's two files: big-endian headers, then bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    n = len(labels)
    contents = {
        "train-images-idx3-ubyte": struct.pack(">4I", 0x803, n, 28, 28) + pixels.tobytes(),
        "train-labels-idx1-ubyte": struct.pack(">2I", 0x801, n) + bytes(labels),
    }
    for name, content in contents.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def cifar_batches(pixels, labels, batches=5):
    """Content of each training batch: a label, then red, green and blue of an image."""
    records = [
        bytes([label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(pixels, labels, strict=True)
    ]
    size = len(records) // batches
    return {
        f"data_batch_{i + 1}.bin": b"".join(records[i * size : (i + 1) * size])
        for i in range(batches)
    }


def write_tar(path, members):
    """A .tar.gz; members are (name, content), or TarInfo for what is no plain file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_cifar(folder, pixels, labels):
    """The binary version's archive, with the files beside the batches that the real one has."""
    batches = cifar_batches(pixels, labels)
    others = {"batches.meta.txt": b"airplane\nautomobile\n", "readme.html": b"<html>"}
    directory = tarfile.TarInfo(CIFAR_FOLDER)
    directory.type = tarfile.DIRTYPE
    named = [(f"{CIFAR_FOLDER}/{name}", data) for name, data in (others | batches).items()]
    write_tar(folder / "cifar-10-binary.tar.gz", [directory, *named])


def write_imagenet(folder, pixels, labels, batches=10):
    """The npz batches: flat images, channels first, labels from 1, and the mean image."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    parts = zip(np.array_split(flat, batches), np.array_split(labels, batches), strict=True)
    for i, (data, ids) in enumerate(parts, 1):
        mean = flat.mean(axis=0)
        np.savez(folder / f"train_data_batch_{i}.npz", data=data, labels=ids, mean=mean)


def write_celeba(folder, male, attributes=("5_o_Clock_Shadow", "Male", "Young"), packed=True):
    """Aligned faces as JPEG and their attributes; returns {name: encoded bytes}."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    encoded = {}
    for i in range(len(male)):
        buffer = io.BytesIO()
        smooth_image(rng, 178, 218).crop((0, 0, 178, 218)).save(buffer, "JPEG", quality=95)
        encoded[f"{i + 1:06d}.jpg"] = buffer.getvalue()
    lines = [str(len(male)), " ".join(attributes) + " "]
    for name, is_male in zip(encoded, male, strict=True):
        values = [("1" if is_male else "-1") if each == "Male" else "-1" for each in attributes]
        lines.append(f"{name} " + " ".join(f"{value:>2}" for value in values))
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    if packed:
        with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
            for name, data in encoded.items():
                archive.writestr(f"img_align_celeba/{name}", data)
    else:
        (folder / "img_align_celeba").mkdir()
        for name, data in encoded.items():
            (folder / "img_align_celeba" / name).write_bytes(data)
    return encoded
