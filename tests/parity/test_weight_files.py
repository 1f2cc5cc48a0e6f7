"""Files of weights: known by their content, whole or refused, and never run."""

import gzip
import io
import os
import pickle
import tarfile
import warnings
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
import safetensors.torch  # noqa: E402
from compiling import quick_jit  # noqa: E402

from diffusion_jax.errors import UserError  # noqa: E402
from torch_ref import bridge, compare  # noqa: E402
from torch_ref.unet import UNet  # noqa: E402

SMALL = {"base_channels": 8, "multiples": (1, 2), "attention_levels": (2,), "num_res_blocks": 1}
CONV = "encoder_blocks.0.block1.conv.weight"


@pytest.fixture
def state_dict():
    torch.manual_seed(0)
    return UNet(**SMALL).state_dict()


def assert_bit_equal(got, want):
    assert set(got) == set(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        assert got[name].shape == value.shape, name
        assert got[name].numpy().tobytes() == value.detach().numpy().tobytes(), name


FORMATS = {
    "zip": lambda tensors, path: torch.save(tensors, path),
    "legacy": lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda tensors, path: safetensors.torch.save_file(tensors, path),
}
NAMES = ["Model_350000", "of v1.2/run.3e-4/Model_1", "a.pt", "a.safetensors", "a.ckpt", "a.bin"]


@pytest.mark.parametrize("name", [*NAMES, "a.pth.tar", "a.npz"])
@pytest.mark.parametrize("kind", FORMATS)
def test_the_content_tells_the_format_whatever_the_name(tmp_path, state_dict, kind, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    FORMATS[kind](state_dict, path)
    assert_bit_equal(bridge.load(path), state_dict)
    assert_bit_equal(bridge.load(str(path)), state_dict)


@pytest.mark.parametrize("name", [*NAMES, "a.SAFETENSORS"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_come_back_bit_equal_in_the_format_that_the_name_asks_for(
    tmp_path, state_dict, name, dtype
):
    state_dict = {name: value.to(dtype) for name, value in state_dict.items()}
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):  # the second time over the first
        bridge.save(path, state_dict)
        assert os.listdir(path.parent) == [path.name]
        assert_bit_equal(bridge.load(path), state_dict)
    safe = path.suffix.lower() == ".safetensors"
    assert zipfile.is_zipfile(path) != safe
    theirs = safetensors.torch.load_file(path) if safe else torch.load(path, weights_only=True)
    assert_bit_equal(theirs, state_dict)


def test_the_unet_of_why_diffusion_models_do_not_memorise_agrees_from_its_own_file(tmp_path):
    """Saved without an ending, in a folder with dots in its name, as its authors do."""
    original = compare.perturbed(channels=1, base_channels=32, multiples=(1, 2, 4))
    path = tmp_path / "CelebA32_1024_32_Adam_0.0001" / "Model_350000"
    path.parent.mkdir()
    torch.save(original.state_dict(), path)
    model, params = bridge.from_torch(bridge.load(path))
    assert (model.base_channels, model.multiples, model.attention_levels) == (32, (1, 2, 4), (2, 3))
    x, step, _ = compare.batch(0, 1, 8, 8, num=2)
    with torch.no_grad():
        want = compare.nhwc(original(compare.nchw(x), torch.from_numpy(step)))
    got = quick_jit(model.apply)({"params": params}, x, step)
    assert compare.relative_error(got, want) < compare.BOUNDS["float32"]["output"]


@pytest.mark.parametrize("kind", FORMATS)
def test_average_and_raw_weights_are_read_from_a_file_by_name(tmp_path, state_dict, kind):
    average = {name: value + 1 for name, value in state_dict.items()}
    flat = {"online_model." + name: value for name, value in state_dict.items()}
    flat |= {"ema_model." + name: value for name, value in average.items()}
    FORMATS[kind](flat, tmp_path / "both")
    assert_bit_equal(bridge.load(tmp_path / "both"), average)
    assert_bit_equal(bridge.load(tmp_path / "both", "raw"), state_dict)
    found = bridge.read(tmp_path / "both")
    assert (found.kind, found.place, found.others) == ("average", "ema_model", ("online_model",))
    assert_bit_equal(found.state_dict, average)


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_a_gpu_parameters_and_views_are_read(tmp_path, state_dict, legacy, monkeypatch):
    storage = torch.arange(2.0 * state_dict[CONV].numel())
    odd = dict(state_dict)
    odd[CONV] = storage[1::2].reshape(odd[CONV].shape)  # not contiguous
    odd["init_conv.bias"] = storage[:8]  # of the same storage
    odd["final_block.conv.bias"] = torch.nn.Parameter(torch.ones(3))
    odd["init_conv.weight"] = odd["init_conv.weight"].clone().requires_grad_()
    bridge.save(tmp_path / "ours", odd)
    bridge.save(tmp_path / "ours.safetensors", odd)
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(odd, tmp_path / "gpu", _use_new_zipfile_serialization=not legacy)
    assert b"cuda:0" in (tmp_path / "gpu").read_bytes()
    for name in ("gpu", "ours", "ours.safetensors"):
        loaded = bridge.load(tmp_path / name)
        assert_bit_equal({n: value.detach() for n, value in loaded.items()}, odd)
        model, params = bridge.from_torch(loaded)
        assert_bit_equal(bridge.to_torch(model, params), odd)
    assert (tmp_path / "ours").stat().st_size < 1.2 * sum(v.nbytes for v in odd.values()) + 50_000


class Harmful:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_programs_are_never_run(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Harmful(marker)))
    torch.save({"state_dict": Harmful(marker)}, tmp_path / "b.pt")
    torch.save(UNet(**SMALL), tmp_path / "c.pt")
    torch.save([Harmful(marker)], tmp_path / "d.pt", _use_new_zipfile_serialization=False)
    for name in "abcd":
        with pytest.raises(UserError, match="save its state dict alone"):
            bridge.load(tmp_path / f"{name}.pt")
    assert not marker.exists()
    pickle.loads((tmp_path / "a.pt").read_bytes())
    assert marker.exists()  # it would have


def test_what_is_refused_is_named(tmp_path, state_dict):
    """Lightning's checkpoints may hold any object beside the weights."""
    path = tmp_path / "last.ckpt"
    for thing, name in [
        (path, "pathlib.PosixPath"),
        (UNet(**SMALL), "torch_ref.unet.UNet"),
        (np.float64(1.0), "numpy._core.multiarray.scalar"),
    ]:
        torch.save({"state_dict": state_dict, "callbacks": {"best": thing}}, path)
        with pytest.raises(UserError, match=f"last.ckpt holds more than weights, {name}, which is"):
            bridge.load(path)


def damaged(kind, path):
    """Beginnings of a file, and a flipped bit of its weights, which torch takes as it is."""
    whole = path.read_bytes()
    yield whole[: len(whole) // 2]
    yield whole[:-1]
    if kind == "zip":
        place = whole.rindex(torch.full((8,), 2.5).numpy().tobytes())
        yield whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_refused(tmp_path, state_dict, kind):
    path = tmp_path / "weights"
    FORMATS[kind](state_dict | {"init_conv.bias": torch.full((8,), 2.5)}, path)
    bridge.load(path)
    for content in damaged(kind, path):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"weights is a (torch file|safetensors).* damaged"):
            bridge.load(path)


def test_a_torch_file_without_checksums_is_read(tmp_path, state_dict):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state_dict, tmp_path / "weights")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_bit_equal(bridge.load(tmp_path / "weights"), state_dict)


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return buffer.getvalue()


def written(write, *arguments):
    buffer = io.BytesIO()
    write(buffer, *arguments)
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"))
    return buffer.getvalue()


def scripted():
    with warnings.catch_warnings(action="ignore"):  # deprecated, but people have such files
        return written(lambda file: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), file))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102800000\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; fetch it again"),
        (bytes(4096), "is of zeros at its beginning; fetch it again"),
        (POINTER, "is a pointer of Git LFS, not the file itself; run git lfs pull"),
        (b"\n  <!DOCTYPE html><html><head>", "is a web page; fetch the file itself"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><Error>', "is a web page; fetch the file itself"),
        (b'{"error": "Not  found"}\n', """is text that begins '{"error": "Not found"}'; fetch"""),
        ("Zugriff verweigert: ä".encode() * 300, "is text that begins 'Zugriff verweigert: ä"),
        (gzip.compress(b"weights", mtime=0), "is packed by gzip; unpack it"),
        (tarred(), "is a tar archive; unpack it"),
        (zipped(model_pt=b"1"), "is a zip archive of model.pt, not a file of torch's"),
        (zipped(data_pkl=b"1"), "was packed anew by another program than torch"),
        (written(np.savez, np.ones(3)), "is an .npz of NumPy's arrays, not a file of torch's"),
        (written(np.save, np.ones(3)), "is an array of NumPy; save its state dict alone"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file; save its state dict alone"),
        (pickle.dumps({"a": 1}), "is a pickle that torch.save did not write, which is never"),
        (b"PK\x03\x04" + bytes(range(256)), "is a torch file, or another zip archive, that is dam"),
        (bytes(range(129, 256)), "is neither a torch file nor a safetensors, or a damaged one"),
        (
            scripted(),
            "is a TorchScript program, which is never run; where it can be trusted, torch.save",
        ),
    ],
)
def test_what_is_no_file_of_weights_is_named(tmp_path, content, message):
    path = tmp_path / "Model_1.pt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        bridge.load(path)
    assert str(caught.value).startswith(f"{path} {message}")
    assert len(str(caught.value).removeprefix(str(path))) < 250


def test_only_the_beginning_of_another_file_is_read(tmp_path):
    """It would not fit into memory."""
    for head, message in [(b"", "of zeros"), (POINTER, "Git LFS"), (b"<html>", "a web page")]:
        (tmp_path / "large").write_bytes(head)
        os.truncate(tmp_path / "large", 1 << 40)
        with pytest.raises(UserError, match=message):
            bridge.load(tmp_path / "large")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["config.json", "checkpoints"], "is the folder of a run, which needs no conversion"),
        (["__0_0.distcp", ".metadata"], "is a distributed checkpoint of torch's; merge it first"),
        (["_METADATA", "d"], "is a checkpoint of Orbax's; give the run's folder"),
        (["b.pt", "a"], "is a folder, of a, b.pt; name the file of weights in it"),
        ([], "is a folder, of nothing; name the file"),
    ],
)
def test_what_a_folder_is_is_said(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError) as caught:
        bridge.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path} {message}")


def test_missing_files_and_pipes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        bridge.load(tmp_path / "weights")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is no file, but a device or a pipe"):
        bridge.load(tmp_path / "pipe")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_failed_save_leaves_nothing_behind(tmp_path, state_dict, suffix):
    with pytest.raises(UserError, match="No such file"):
        bridge.save(tmp_path / "nowhere" / f"a{suffix}", state_dict)
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        bridge.save(tmp_path / f"folder{suffix}", state_dict)
    assert os.listdir(tmp_path) == [f"folder{suffix}"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_save_that_fails_midway_keeps_the_old_file(tmp_path, state_dict, suffix, monkeypatch):
    path = tmp_path / f"a{suffix}"
    bridge.save(path, state_dict)

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        bridge.save(path, {name: -value for name, value in state_dict.items()})
    assert os.listdir(tmp_path) == [path.name]
    assert_bit_equal(bridge.load(path), state_dict)
