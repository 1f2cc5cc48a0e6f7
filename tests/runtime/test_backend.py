"""The settings made before JAX's first use, in processes of their own."""

import ctypes
import errno
import fcntl
import importlib.util
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from file_states import states

from diffusion_jax.config import ModelConfig
from diffusion_jax.nn import kernels
from diffusion_jax.runtime import backend

PROGRAM = """
from diffusion_jax.runtime import backend
backend.configure()
import jax, jax.numpy as jnp
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
print(float(jax.jit(lambda x: jnp.linalg.eigh(x @ x.T)[0].sum())(jnp.eye(8) * 3)))
print(events.count("/jax/compilation_cache/cache_hits"))
print(jax.config.jax_compilation_cache_dir)
"""


NO_FLOCK = """
import errno, fcntl
def flock(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


def start(home, before="", **env):
    """Runs PROGRAM, after something before it.

    Returns the number, the hits of the cache, its folder, and stderr's lines.
    """
    clean = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    env = clean | {"HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | env
    done = subprocess.run(
        [sys.executable, "-c", before + PROGRAM],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    number, hits, folder = done.stdout.split()
    return float(number), int(hits), folder, done.stderr.splitlines()


def files(folder):
    """The files' states: whether a folder can be written to is tried, and changes its own times."""
    return {path: state for path, state in states(folder).items() if (folder / path).is_file()}


def entries(home):
    return sorted((home / ".cache" / "diffusion-jax" / "xla").glob("*-cache"))


def test_a_second_start_compiles_nothing(tmp_path):
    number, hits, folder, lines = start(tmp_path)
    assert Path(folder) == tmp_path / ".cache" / "diffusion-jax" / "xla"
    kept = entries(tmp_path)
    assert kept
    assert hits == 0
    assert lines == []
    torn = kept[0].with_name("jit_torn-0-cache")
    torn.write_bytes(b"written half")
    os.utime(torn, (0, 0))
    assert start(tmp_path) == (number, len(kept), folder, [])
    assert entries(tmp_path) == kept

    # From a folder without locks they are read, wherever it lies, and nothing is written there.
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / ".cache", elsewhere / ".cache")
    kept_there = elsewhere / ".cache" / "diffusion-jax" / "xla"
    before = files(elsewhere)
    read = start(elsewhere, NO_FLOCK, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    note = (
        f"note: compiled programs are read from {kept_there} but none are added to it "
        f"({kept_there} knows no flock); JAX_COMPILATION_CACHE_DIR names another folder"
    )
    assert read == (number, len(kept), str(kept_there), [note])
    assert files(elsewhere) == before

    # Damaged programs are compiled again; a folder that cannot be used is one line.
    for entry in kept:
        entry.write_bytes(entry.read_bytes()[:-10])
    again, hits, _, lines = start(tmp_path)
    assert again == number
    assert hits == 0
    assert any("Error reading persistent compilation cache entry" in line for line in lines)


def test_without_a_limit_every_program_is_kept_however_old(tmp_path):
    """JAX writes no times of the last use then, by which torn ones are told."""
    unlimited = {"JAX_COMPILATION_CACHE_MAX_SIZE": "-1"}
    assert start(tmp_path, **unlimited)[1] == 0
    kept = entries(tmp_path)
    assert kept
    for entry in kept:
        assert not entry.with_name(entry.name.removesuffix("cache") + "atime").exists()
        os.utime(entry, (0, 0))
    assert start(tmp_path, **unlimited)[1] == len(kept)
    assert entries(tmp_path) == kept
    assert start(tmp_path)[1] == 0  # with a limit JAX needs the times, and writes them anew
    assert start(tmp_path)[1] == len(kept)


@pytest.fixture
def cache_settings():
    names = [
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_enable_compilation_cache",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    yield lambda: {name: getattr(jax.config, name) for name in names}
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("chosen", [False, True])
def test_a_folder_that_cannot_be_used_is_one_line(
    tmp_path, monkeypatch, capsys, cache_settings, chosen
):
    place = tmp_path / "file"
    place.write_text("in the way")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    jax.config.update("jax_compilation_cache_dir", str(place) if chosen else None)
    backend.configure()
    assert jax.config.jax_compilation_cache_dir is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: compiled programs are not kept (")
    assert "file" in line


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys, cache_settings):
    usage = backend.shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(backend.shutil, "disk_usage", lambda _: usage)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    backend.configure()
    assert jax.config.jax_compilation_cache_dir is None
    text = capsys.readouterr().err
    assert f"(only 1 MiB are free for {tmp_path})" in text
    assert text.count("\n") == 1


def refuse(number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    return refused


READ_ONLY = [
    ("tempfile.TemporaryFile", refuse(errno.EROFS), "Read-only file system"),
    ("tempfile.TemporaryFile", refuse(errno.EACCES), "Permission denied"),
    (
        "shutil.disk_usage",
        lambda _: SimpleNamespace(free=2**20),
        "only 1 MiB are free for {folder}",
    ),
    ("flock", lambda _: False, "{folder} knows no flock"),
    ("os.access", lambda path, mode: mode == os.R_OK, "{folder}/jit_f-0-atime is another user's"),
]


@pytest.mark.parametrize(("name", "refusal", "reason"), READ_ONLY)
@pytest.mark.parametrize("limit", [None, 10**9])
def test_programs_are_read_from_a_folder_that_cannot_be_written_to(
    tmp_path, monkeypatch, capsys, cache_settings, name, refusal, reason, limit
):
    """The default folder, or a chosen one with a limit of size, for which JAX locks it."""
    folder = tmp_path / "diffusion-jax" / "xla" if limit is None else tmp_path / "chosen"
    folder.mkdir(parents=True)
    for ending in ("cache", "atime"):
        (folder / f"jit_f-0-{ending}").write_bytes(b"written")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for variable in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    jax.config.update("jax_compilation_cache_dir", None if limit is None else str(folder))
    jax.config.update("jax_compilation_cache_max_size", limit or -1)
    before = files(tmp_path)
    monkeypatch.setattr(f"diffusion_jax.runtime.backend.{name}", refusal)
    backend.configure()
    assert cache_settings() == {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": -1,  # no lock, no times of use
        "jax_persistent_cache_min_compile_time_secs": math.inf,  # no program
        "jax_enable_compilation_cache": True,
    }
    assert files(tmp_path) == before
    assert capsys.readouterr().err == (
        f"note: compiled programs are read from {folder} but none are added to it "
        f"({reason.format(folder=folder)}); JAX_COMPILATION_CACHE_DIR names another folder\n"
    )


def test_a_chosen_folder_without_a_limit_needs_no_lock(
    tmp_path, monkeypatch, capsys, cache_settings
):
    """JAX takes none there, so its programs are read and written as ever."""
    (tmp_path / "jit_f-0-cache").write_bytes(b"written")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update("jax_compilation_cache_max_size", -1)
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    before = cache_settings()
    backend.configure()
    assert cache_settings() == before
    assert capsys.readouterr().err == ""


def test_the_users_own_choices_stand(tmp_path, monkeypatch, capsys, cache_settings):
    for update in (
        {"jax_compilation_cache_dir": str(tmp_path / "own")},
        {"jax_compilation_cache_dir": ""},
        {"jax_compilation_cache_dir": None, "jax_enable_compilation_cache": False},
    ):
        for name, value in update.items():
            jax.config.update(name, value)
        before = cache_settings()
        backend.configure()
        assert cache_settings() == before
    assert capsys.readouterr().err == ""


def test_options_are_given_to_the_releases_that_know_them():
    options = {"xla_cpu_parallel_codegen_split_count": 1, "xla_cpu_use_fusion_emitters": False}
    assert backend.known(options, "0.10.2") == options
    one = {"xla_cpu_parallel_codegen_split_count": 1}
    assert backend.known(options, "0.11.2") == backend.known(options, "0.12.0.1") == one
    assert backend.known(options, "0.13.0") == backend.known(options, "0.12.1") == {}


def test_this_release_starts_with_every_option_that_it_is_said_to_know():
    values = dict.fromkeys(backend._SEEN, 1) | {
        "xla_cpu_experimental_ynn_fusion_type": "-individual_convolution",
        "xla_cpu_use_fusion_emitters": "false",
    }
    flags = " ".join(f"--{name}={value}" for name, value in backend.known(values).items())
    words = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(words, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("platform", "capability", "chosen"),
    [
        ("cpu", None, kernels.CPU),
        ("tpu", None, kernels.ACCELERATOR),
        ("gpu", "7.5", kernels.ACCELERATOR),
        ("gpu", "8.0", kernels.FUSED),
        ("gpu", "12.1", kernels.FUSED),
        ("gpu", "gfx90a", kernels.ACCELERATOR),
    ],
)
def test_types_and_kernels_are_chosen_by_device(monkeypatch, platform, capability, chosen):
    class Device:
        compute_capability = capability

    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    fused = chosen is kernels.FUSED
    assert backend.has_fused_attention() == fused
    assert backend.has_bfloat16() == (fused or platform == "tpu")
    for dtype in ("bfloat16", "float32"):
        assert ModelConfig(dtype=dtype).build(3).kernels is chosen
        assert ModelConfig(dtype=dtype).build(3).dtype == dtype
    best = "bfloat16" if backend.has_bfloat16() else "float32"
    assert ModelConfig().build(3).dtype == backend.best_dtype() == best
    assert ModelConfig(remat=True).build(3).remat


@pytest.mark.parametrize(
    ("platforms", "plugin", "device", "keep", "kept"),
    [
        ("cpu", True, True, None, True),
        (None, False, False, None, True),
        (None, True, False, None, True),  # compiled for GPUs that are not there
        (None, False, True, None, True),  # a GPU that JAX was installed without
        (None, True, True, None, False),
        ("cuda,cpu", True, True, None, False),
        ("tpu", False, False, None, False),
        ("cpu", False, False, "1", True),
        ("cpu", False, False, "0", False),
    ],
)
def test_freed_memory_is_kept_on_the_cpu_alone(
    request, monkeypatch, tmp_path, platforms, plugin, device, keep, kept
):
    before, update = jax.config.values["jax_platforms"], jax.config.update
    request.addfinalizer(lambda: update("jax_platforms", before))
    update("jax_platforms", platforms)
    calls, found = [], tmp_path / "device"
    if device:
        found.touch()
    library = SimpleNamespace(mallopt=lambda *a: calls.append("mallopt"), malloc_trim=None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(backend, "_ACCELERATORS", (str(found),))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: plugin and name == "jax_plugins")
    monkeypatch.setattr(jax.config, "update", lambda name, value: calls.append(name))
    monkeypatch.setattr(
        jax.monitoring, "register_event_duration_secs_listener", lambda f: calls.append("listens")
    )
    monkeypatch.delenv("DIFFUSION_JAX_KEEP_MEMORY", raising=False)
    if keep is not None:
        monkeypatch.setenv("DIFFUSION_JAX_KEEP_MEMORY", keep)
    backend.keep_freed_memory()
    every = ["mallopt", "mallopt", "jax_cpu_enable_async_dispatch", "listens"]
    assert calls == (every if kept else [])


def test_a_system_without_glibc_and_affinity(monkeypatch):
    """As macOS: freed memory is the system's, and all cores are a process's."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    monkeypatch.setattr(backend, "computes_on_cpu", lambda: True)
    monkeypatch.setattr(jax.config, "update", lambda name, value: pytest.fail(name))
    backend.keep_freed_memory()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert backend.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert backend.cores() == 7


STEPS = """
import ctypes, resource, statistics, sys, threading
import jax, jax.numpy as jnp
from diffusion_jax.runtime import backend

if sys.argv[1] == "True":
    backend.keep_freed_memory()
step = jax.jit(lambda x: jnp.sin(x[:, None] + x) @ x)  # by way of 64 MiB
x = jnp.linspace(0, 1, 4096)
faults = []
for _ in range(24):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
# Small pieces may come to lie in what was just freed, so that some calls take more at first: it was
# seen in one process of 70, for the first eight calls.
print(statistics.median(faults[-15:]))

# What a thread that compiles leaves behind: free pieces below one that is in use.
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def compile():
    pieces = [library.malloc(50_000) for _ in range(8000)]
    for piece in pieces:
        ctypes.memset(piece, 1, 50_000)
    for piece in pieces[:-1]:
        library.free(piece)

def resident():
    status = open("/proc/self/status").read()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024

thread = threading.Thread(target=compile)
thread.start(), thread.join()
full = resident()
jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 4.0)
print(full - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc alone")
def test_freed_memory_is_kept_for_the_next_step_but_not_what_compiling_leaves():
    def run(keep):
        words = [sys.executable, "-c", STEPS, str(keep)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return map(float, done.stdout.split())

    faults, given_back = run(True)
    usual, kept = run(False)
    assert usual > 16_000  # pages of 4 KiB
    assert faults < 0.01 * usual
    assert given_back > 300  # MiB, of 381
    assert kept < 50
