"""The moments of a training set, against the covariance in float64, and damaged files of them."""

import numpy as np
import pytest

from diffusion_jax import covariance
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.runtime import patience
from diffusion_jax.training import moments


@pytest.fixture(params=[1, 3])
def images(request):
    rng = np.random.default_rng(request.param)
    return ImageSet(rng.integers(0, 256, (90, 5, 4, request.param), dtype=np.uint8), None, ())


@pytest.mark.parametrize("kept_bytes", [2**30, 0])
def test_they_are_those_of_the_covariance(images, monkeypatch, kept_bytes):
    monkeypatch.setattr(covariance, "_KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(covariance, "_BLOCK_BYTES", 4 * 60 * 7)  # in blocks, the last one short
    found = moments.Moments.of(images, "digest")
    flat = images.images.reshape(90, -1) / 255
    values, modes = np.linalg.eigh(np.cov(flat, rowvar=False))
    np.testing.assert_allclose(found.mean_image, flat.mean(0).reshape(5, 4, -1), atol=1e-6)
    assert found.eigenvalue == pytest.approx(values[-1], rel=1e-5)
    assert abs(np.sum(found.mode.ravel() * modes[:, -1])) == pytest.approx(1, abs=1e-4)
    assert np.linalg.norm(found.mode) == pytest.approx(1, abs=1e-6)
    assert found.trace == pytest.approx(values.sum(), rel=1e-5)
    assert found.fingerprint == "digest"


def test_floats_with_a_kept_mean_have_a_mean_image_of_their_own():
    pixels = np.random.default_rng(0).random((9, 3, 3, 1), np.float32)
    images = ImageSet(pixels, None, (), kept_mean=np.array([0.2], np.float32))
    np.testing.assert_allclose(moments.Moments.of(images, "").mean_image, pixels.mean(0), atol=1e-6)


def test_they_come_back_and_damage_is_as_if_there_were_none(images, tmp_path):
    assert moments.load(tmp_path) is None
    found = moments.Moments.of(images, "digest")
    found.save(tmp_path)
    back = moments.load(tmp_path)
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(back, name), value)
    path = tmp_path / moments.NAME
    whole = path.read_bytes()
    rng, noticed = np.random.default_rng(0), 0
    for place in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        back = moments.load(tmp_path)  # raises nothing
        noticed += back is None
        if back is not None:  # a bit that says nothing, such as a date
            np.testing.assert_array_equal(back.mean_image, found.mean_image)
            assert (back.eigenvalue, back.trace) == (found.eigenvalue, found.trace)
    assert noticed > 150
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"\x93NUMPY"):
        path.write_bytes(content)
        assert moments.load(tmp_path) is None
    np.savez(path, mean_image=found.mean_image)
    assert moments.load(tmp_path) is None
    np.savez(path, **vars(found) | {"mode": found.mode[1:]})
    assert moments.load(tmp_path) is None
    np.savez(path, **vars(found) | {"eigenvalue": np.array(["a", "b"], object)})
    assert moments.load(tmp_path) is None


def test_moments_that_the_disk_refuses_are_not_taken_for_missing(tmp_path, monkeypatch):
    """Samples would start elsewhere. Whoever reads address 0 of its memory is told EIO."""
    monkeypatch.setattr(patience, "PAUSES", (0.0,))
    (tmp_path / moments.NAME).symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"cannot read .*moments\.npz: Input/output error"):
        moments.start_of(tmp_path)
