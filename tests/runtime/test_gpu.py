"""What is said where a GPU cannot be used, by faking what the libraries report."""

import logging
import types

import jax
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.runtime import backend, gpu
from experiments.command import reports_errors

MISMATCH = (
    "Unable to use CUDA because of the following issues with CUDA components:\n"
    "Outdated cuDNN installation found.\nVersion JAX was built against: 91002"
)


@pytest.fixture
def there(monkeypatch, tmp_path):
    """A machine with an NVIDIA GPU, as its files tell."""
    file = tmp_path / "nvidia0"
    file.touch()
    monkeypatch.setattr(gpu, "FILES", (str(file),))
    monkeypatch.setenv("JAX_PLATFORMS", "")


def failing(monkeypatch, text, logged=None):
    """JAX as it fails: it raises, or it logs what a plugin raised and takes the CPU."""

    def devices():
        if logged is not None:
            try:
                raise RuntimeError(logged)
            except RuntimeError:
                logging.getLogger("jax._src.xla_bridge").exception("Jax plugin configuration error")
        if text is not None:
            raise RuntimeError(f"Unable to initialize backend 'cuda': {text} (you may need to ...)")

    monkeypatch.setattr(jax, "devices", devices)


@pytest.mark.parametrize(
    ("text", "logged", "said"),
    [
        ("CUDA driver version is insufficient for CUDA runtime version", None, "driver 580"),
        (None, "cudaGetDeviceCount: CUDA driver version is insufficient", "driver is too old"),
        ("INTERNAL: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: system has unsupported", None, "too old"),
        ("CUDA_ERROR_OUT_OF_MEMORY: out of memory", None, "XLA_PYTHON_CLIENT_MEM_FRACTION"),
        ("INTERNAL: no supported devices found for platform CUDA", None, "no free memory"),
        (None, MISMATCH, "cuda12 and torch"),
        ("something new", None, "an NVIDIA GPU, and JAX cannot use it"),
        (None, "something new", "an NVIDIA GPU, and JAX cannot use it"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_one_sentence(there, monkeypatch, capfd, text, logged, said):
    failing(monkeypatch, text, logged)

    @reports_errors
    def main():
        gpu.start_devices()

    with pytest.raises(SystemExit) as ended:
        main()
    err = capfd.readouterr().err
    assert ended.value.code == 1
    assert err.count("\n") == 1, err
    assert said in err
    assert "JAX_PLATFORMS=cpu" in err


def test_both_cudas_in_one_environment_are_refused(there, monkeypatch):
    names = ["nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "torch"]
    fakes = [types.SimpleNamespace(metadata={"Name": name}) for name in names]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: fakes)
    with pytest.raises(UserError, match=r"CUDA 12 and of CUDA 13 .* environments of their own"):
        gpu.start_devices()
    monkeypatch.setattr("importlib.metadata.distributions", lambda: fakes[1:])
    failing(monkeypatch, None)
    gpu.start_devices()


def test_jax_without_cuda_is_a_note(there, monkeypatch, capsys):
    failing(monkeypatch, None)
    gpu.start_devices()
    err = capsys.readouterr().err
    assert err.startswith("note: there is an NVIDIA GPU, but JAX is installed without CUDA")
    assert err.count("\n") == 1


def test_who_wants_the_cpu_is_not_asked(there, monkeypatch):
    failing(monkeypatch, "CUDA driver version is insufficient")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    gpu.start_devices()
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    with pytest.raises(UserError, match="too old"):
        gpu.start_devices()


def test_a_machine_without_a_gpu_is_not_asked(monkeypatch):
    monkeypatch.setattr(gpu, "FILES", ())
    failing(monkeypatch, "never reached")
    gpu.start_devices()


def test_memory_that_runs_out_later_is_one_sentence(capsys):
    @reports_errors
    def main():
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.\nBy ..."
        )

    with pytest.raises(SystemExit):
        main()
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for part in ("17179869184 bytes", "XLA_PYTHON_CLIENT_MEM_FRACTION", "--accumulation"):
        assert part in err


def test_a_card_without_bfloat16_trains_in_float32(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    card = types.SimpleNamespace(compute_capability="7.0")
    monkeypatch.setattr(jax, "local_devices", lambda: [card])
    assert backend.best_dtype() == "float32"
