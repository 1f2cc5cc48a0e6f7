"""Eight CPU devices, and no silent promotion of ranks or types, in every test."""

import os
import sys
from pathlib import Path

# Tests start processes by the dozen: without bytecode each of them compiles all sources anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Small models gain nothing from torch's threads, which spin where the cores are busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests, the commands that they start and later sessions share what they compile.
CACHE = Path(__file__).parents[1] / ".cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(10**9))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

from diffusion_jax.runtime import backend  # noqa: E402  (after the settings that it reads)

# Compiles in a third of the time, to code nearly as fast; XLA_FLAGS= tests what users run.
QUICK = backend.RUN_ONCE | backend.known({"xla_backend_optimization_level": 1})
FLAGS = " ".join(f"--{k}={v}".lower() for k, v in QUICK.items())
os.environ.setdefault("XLA_FLAGS", FLAGS)

backend.configure()
backend._remove_torn_entries(CACHE)  # tests kill processes

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
import pytest  # noqa: E402
from unrendered import render_nothing  # noqa: E402

# Begun first, so that no core is idle while the last of them ends.
LONG = (
    *("test_parity", "test_run", "test_benchmark", "test_cloning_command", "test_distributed"),
    *("test_distributed_training", "test_study", "test_convert", "test_plain", "test_step"),
    *("test_contributing", "test_transitions", "test_torture", "test_backend"),
    *("test_theories_command", "test_equivariant", "test_symmetric", "test_symmetry_training"),
    *("test_orbit", "test_exact_orbit", "test_gaussian_classes", "test_regimes_command"),
    *("test_memorisation_command", "test_forking", "test_serving", "test_guard", "test_mailed"),
    *("test_page", "test_page_work", "test_serve_command", "test_two_moments", "test_front_door"),
    "test_doc_python",
)


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


@pytest.fixture
def rendered():
    """A test that asks for it renders the figures that it makes."""


@pytest.fixture(autouse=True)
def _unrendered(request):
    """Figures are made and not rendered, but in fixtures of a module, and for `rendered`."""
    with pytest.MonkeyPatch.context() as patch:
        if "rendered" not in request.fixturenames:
            render_nothing(patch.setattr)
        yield


@pytest.fixture(scope="module")
def compiled_for_few_calls():
    """All programs of a module, and of the processes it starts, compiled as by `quick_jit`.

    But where XLA_FLAGS are the user's own.
    """
    option, quick = "jax_disable_most_optimizations", FLAGS in os.environ["XLA_FLAGS"]
    before = jax.config.read(option)
    with pytest.MonkeyPatch.context() as patch:
        if quick:
            patch.setenv(option.upper(), "1")
            jax.config.update(option, True)
        yield
        jax.config.update(option, before)
