"""Files of weights: what a file is, by its content, and reading and writing it.

Nothing but tensors is ever unpickled.
"""

import io
import re
import stat
import warnings
import zipfile
from codecs import getincrementaldecoder
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from diffusion_jax.errors import UserError
from diffusion_jax.runtime.files import write_bytes
from torch_ref.unwrapping import listed

_HEAD = 512  # bytes that tell what a file is
_ZIP, _PICKLE = b"PK", b"\x80"
# What torch.save began its files with before it wrote zip archives, pickled.
_LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
# safetensors takes no longer table of names.
_LONGEST_TABLE = 100_000_000
_SAVE_ALONE = "save its state dict alone: torch.save(model.state_dict(), PATH)"
_UNPACK = "unpack it, and give the file of weights in it"
# What else a file may be, by its first bytes, and what to do about it.
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "run git lfs pull"),
    (b"<", "a web page", "fetch the file itself, not the page about it"),
    (b"\x1f\x8b", "packed by gzip", _UNPACK),
    (b"BZh", "packed by bzip2", _UNPACK),
    (b"\xfd7zXZ", "packed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", _UNPACK),
    (b"7z\xbc\xaf", "a 7-Zip archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x93NUMPY", "an array of NumPy", _SAVE_ALONE),
    (b"\x89HDF", "an HDF5 file", _SAVE_ALONE),
    (b"GGUF", "a GGUF file", _SAVE_ALONE),
)


def read(path: Path) -> Any:
    """What a torch file, of either format, or a safetensors holds, on the CPU.

    Raises:
      UserError: the file cannot be read, is damaged, or is another; the error says what it seems to
        be.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path} is {_folder(path)}")
        if not stat.S_ISREG(mode):
            raise UserError(f"{path} is no file, but a device or a pipe; save what it gives first")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error
    if head.startswith(_ZIP):
        _check_archive(path)
    elif int.from_bytes(head[:8], "little") <= _LONGEST_TABLE and head[8:9] == b"{":
        return _read_safetensors(path)
    elif not (head.startswith(_PICKLE) and _LEGACY in head[:32]):
        what, remedy = _other(head)
        raise UserError(f"{path} is {what}; {remedy}")
    return _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # whatever it raises, the file is to blame
        raise UserError(f"{path} is a safetensors that is damaged; fetch it again") from error


def _read_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        refused = re.search(r"GLOBAL (\S+)|but got <class '([^']+)'>", str(error))
        if refused is None:
            raise UserError(
                f"{path} is a torch file that is damaged, or pickled in a way that torch does not "
                f"take for weights; fetch it again, or {_SAVE_ALONE}"
            ) from error
        raise UserError(
            f"{path} holds more than weights, {listed([refused[1] or refused[2]])}, which is never "
            f"unpickled as it may run any program; where that can be trusted, {_SAVE_ALONE}"
        ) from error


def _check_archive(path: Path) -> None:
    """Raises a UserError unless it is one that torch.save wrote, as it wrote it."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if not any(Path(name).name == "data.pkl" for name in names):
                what = f"a zip archive of {listed(names) or 'nothing'}"
                if names and all(name.endswith(".npy") for name in names):
                    what = "an .npz of NumPy's arrays"
                raise UserError(f"{path} is {what}, not a file of torch's; {_SAVE_ALONE}")
            if any(Path(name).name == "constants.pkl" for name in names):
                raise UserError(
                    f"{path} is a TorchScript program, which is never run; where it can be "
                    f"trusted, torch.save(torch.jit.load({path.name!r}).state_dict(), PATH)"
                )
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED:
                    raise UserError(
                        f"{path} was packed anew by another program than torch; fetch the original"
                    )
                if member.CRC:  # torch can be told to write none, and never compares them
                    with archive.open(member) as file:
                        while file.read(1 << 20):
                            pass
    except UserError:
        raise
    except Exception as error:  # bytes at random make zipfile raise almost anything
        raise UserError(
            f"{path} is a torch file, or another zip archive, that is damaged; fetch it again"
        ) from error


def _folder(path: Path) -> str:
    """What a folder seems to be, and what to do."""
    names = sorted(entry.name for entry in path.iterdir())
    if "config.json" in names and "checkpoints" in names:
        return (
            "the folder of a run, which needs no conversion; experiments.sample takes it as it is"
        )
    if any(name.endswith(".distcp") for name in names):
        return (
            "a distributed checkpoint of torch's; merge it first: python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        )
    if {"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"} & set(names):
        return "a checkpoint of Orbax's; give the run's folder to experiments.sample"
    return f"a folder, of {listed(names) or 'nothing'}; name the file of weights in it"


def _other(head: bytes) -> tuple[str, str]:
    """What a file of another format seems to be, and what to do."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, what, remedy in _OTHERS:
        if start.startswith(magic):
            return what, remedy
    if not head.strip(b"\0"):
        return "of zeros at its beginning" if head else "empty", "fetch it again"
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if head.startswith(_PICKLE):
        return (
            "a pickle that torch.save did not write, which is never unpickled as it may run any "
            "program",
            _SAVE_ALONE,
        )
    with suppress(UnicodeDecodeError):
        text = " ".join(getincrementaldecoder("utf-8")().decode(head).split())
        if text.isprintable():
            return f"text that begins {text[:60]!r}", "fetch the file of weights"
    return "neither a torch file nor a safetensors, or a damaged one", "fetch it again"


def write(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Writes a state dict, whole or not at all: a safetensors where the name says so, or torch's.

    Raises:
      UserError: it cannot be written.
    """
    tensors = {  # copies, since safetensors refuses parts of one storage, and torch saves all of it
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state_dict.items()
    }
    if path.suffix.lower() == ".safetensors":
        data = safetensors.torch.save(tensors)
    else:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        data = buffer.getvalue()
    write_bytes(path, data)
