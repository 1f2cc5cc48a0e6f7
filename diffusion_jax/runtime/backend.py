"""Settings of JAX and XLA that must be made before their first use, and what the device offers."""

import ctypes
import gc
import importlib.util
import math
import os
import shutil
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import jax
import jaxlib
from jax._src.config import threefry_gpu_kernel_lowering  # has no public name

from diffusion_jax.runtime import gpu
from diffusion_jax.runtime.lock import flock

# Of the programs kept in the default folder; the least recently used go first.
_CACHE_LIMIT = 2 * 2**30
# Seconds of compiling after which unused memory is given back, which takes a fraction of one.
_LONG_COMPILATION = 3
# The devices of NVIDIA and AMD, and TPUs.
_ACCELERATORS = (*gpu.FILES, "/dev/kfd", "/dev/accel0", "/dev/vfio/0")
# Less room than this on the disk, and writing a program may fail half-way.
_CACHE_ROOM = 256 * 2**20
# Options of XLA, and the releases of jaxlib that were seen to start with them: on an option that it
# does not know XLA aborts, so a release that is not named gets none.
_SEEN = {
    "xla_backend_optimization_level": ("0.10.2", "0.11.2", "0.12.0"),
    "xla_cpu_experimental_ynn_fusion_type": ("0.10.2", "0.11.2", "0.12.0"),
    "xla_cpu_parallel_codegen_split_count": ("0.10.2", "0.11.2", "0.12.0"),
    "xla_cpu_use_fusion_emitters": ("0.10.2",),
    "xla_gpu_all_reduce_combine_threshold_bytes": ("0.10.2", "0.11.2", "0.12.0"),
}


def known(options: dict[str, Any], version: str = jaxlib.__version__) -> dict[str, Any]:
    """Those of XLA's options with which a release of jaxlib was seen to start."""
    release = ".".join(version.split(".")[:3])  # 0.12.0.1 is 0.12.0, built again
    return {name: value for name, value in options.items() if release in _SEEN[name]}


# Options of jax.jit for what runs a few times: compiles in half the time, to slow code on the CPU.
RUN_ONCE = known(
    {
        "xla_backend_optimization_level": 0,
        "xla_cpu_parallel_codegen_split_count": 1,
        "xla_cpu_use_fusion_emitters": False,
    }
)


def configure() -> None:
    """Makes the settings; call it before the first JAX computation. A user's own choices stand."""
    # Tracing makes many objects that stay: to search them for garbage took a quarter of its time.
    gc.set_threshold(50_000, 20, 100)
    _choose_xla_options()
    _keep_compiled_programs()


def _choose_xla_options() -> None:
    """Chooses the faster convolutions on the CPU, and one all-reduce of gradients and loss on GPUs.

    XLA sends convolutions to YNN, which is slower than Eigen on the UNet; matrix products stay
    with it. It combines all-reduces up to 30 MB; the paper's gradients are 102.5 MB.
    """
    chosen = {
        "xla_cpu_experimental_ynn_fusion_type": "-individual_convolution",
        "xla_gpu_all_reduce_combine_threshold_bytes": 2**28,
    }
    flags = os.environ.get("XLA_FLAGS", "")
    for name, value in known(chosen).items():
        if name not in flags:
            flags = f"{flags} --{name}={value}".strip()
    os.environ["XLA_FLAGS"] = flags


def computes_on_cpu() -> bool:
    """Whether JAX will compute on the CPU, known before it makes its devices.

    By its setting, `jax_platforms`, or else by whether it has a plugin for something else, and the
    system a device that this may find.
    """
    if wanted := jax.config.values["jax_platforms"]:
        return str(wanted).split(",")[0] == "cpu"
    plugins = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    return not (plugins and any(Path(file).exists() for file in _ACCELERATORS))


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed; call it before the first JAX computation of a long program.

    Where the CPU computes, that is; for a program on a GPU or TPU, and where the environment says
    DIFFUSION_JAX_KEEP_MEMORY=0, nothing happens.

    XLA allocates the working memory of a step on the CPU anew each time, which the system hands
    over page by page. glibc keeps large pieces for the main thread alone, so programs on one CPU
    device are run by the thread that calls them, and not dispatched asynchronously. What a program
    has used at its peak is not given back before it ends, but what a long compilation, or loading
    a compiled program, leaves is. Without glibc nothing happens.
    """
    if os.environ.get("DIFFUSION_JAX_KEEP_MEMORY") == "0" or not computes_on_cpu():
        return
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4  # their numbers in malloc.h
    for parameter, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1)):
        mallopt(parameter, value)
    jax.config.update("jax_cpu_enable_async_dispatch", False)

    def after(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("/backend_compile_duration") and duration_secs > _LONG_COMPILATION:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(after)


def _keep_compiled_programs() -> None:
    """Turns the persistent compilation cache on, so that only a first start compiles.

    It lies in $XDG_CACHE_HOME/diffusion-jax/xla, by default ~/.cache/diffusion-jax/xla;
    JAX_COMPILATION_CACHE_DIR names another folder, which JAX's own settings then rule, or, empty,
    turns it off. From a folder that cannot be written to, such as another user's, programs are read
    without writing anything; that, and a folder that cannot be used, is said on stderr.
    """
    chosen = jax.config.values["jax_compilation_cache_dir"]
    enabled = jax.config.values["jax_enable_compilation_cache"]
    if not enabled or chosen == "" or "://" in (chosen or ""):
        return
    folder = None
    try:
        folder = Path(chosen) if chosen else _default_cache()
        _settle_cache(folder, limited=not chosen)
        _require_writable(folder)
        if not chosen:
            _remove_torn_entries(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        if folder and any(os.access(program, os.R_OK) for program in folder.glob("*-cache")):
            # Without a limit of size JAX locks nothing, and notes no times of use.
            jax.config.update("jax_compilation_cache_max_size", -1)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
            reason = getattr(error, "strerror", None) or error
            note = f"are read from {folder} but none are added to it ({reason})"
        else:
            jax.config.update("jax_compilation_cache_dir", None)
            note = f"are not kept ({error}), so every start compiles again"
        print(
            f"note: compiled programs {note}; JAX_COMPILATION_CACHE_DIR names another folder",
            file=sys.stderr,
        )


def _settle_cache(folder: Path, limited: bool) -> None:
    """Makes a folder JAX's cache, perhaps of limited size, except for what the environment says."""
    # What a GPU tunes is kept within the programs. JAX's folder for it would make the cache's own
    # path a part of every program's name, so that a folder mounted elsewhere would hold none.
    settings: dict[str, Any] = {"jax_persistent_cache_enable_xla_caches": "none"}
    if limited:
        settings |= {
            "jax_compilation_cache_dir": str(folder),
            "jax_compilation_cache_max_size": _CACHE_LIMIT,
            # Below it, reading a file gains little, and there are hundreds of such programs.
            "jax_persistent_cache_min_compile_time_secs": 0.1,
        }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _require_writable(folder: Path) -> None:
    """Raises an OSError where JAX could not add programs to a folder, as its limit needs."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        limited = jax.config.values["jax_compilation_cache_max_size"] != -1
        if limited and sys.platform != "win32" and not flock(file.fileno()):
            raise OSError(f"{folder} knows no flock")
    if limited:
        for path in (folder / ".lockfile", *folder.glob("*-atime")):
            if path.exists() and not os.access(path, os.W_OK):
                raise OSError(f"{path} is another user's")
    free = shutil.disk_usage(folder).free
    if free < _CACHE_ROOM:
        raise OSError(f"only {free / 2**20:.0f} MiB are free for {folder}")


def _default_cache() -> Path:
    return cache_folder(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def cache_folder(base: str | Path) -> Path:
    """Where compiled programs are kept within a folder of caches, such as $XDG_CACHE_HOME."""
    return Path(base) / "diffusion-jax" / "xla"


def _remove_torn_entries(folder: Path) -> None:
    """Removes programs whose writing was cut short: JAX would neither mend nor evict them.

    JAX writes the time of the last use after the program; a missing one gives them away. Without a
    limit of size JAX writes no times, and nothing is removed.
    """
    if jax.config.values["jax_compilation_cache_max_size"] == -1:
        return
    for entry in folder.glob("*-cache"):
        last_used = entry.with_name(entry.name.removesuffix("cache") + "atime")
        if not last_used.exists() and time.time() - entry.stat().st_mtime > 60:
            entry.unlink(missing_ok=True)


def cores() -> int:
    """CPU cores that this process may use: as many threads XLA takes."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS lets a process use all of them
        return os.cpu_count() or 1


def platform() -> str:
    """The first device's: cpu, gpu or tpu."""
    return jax.default_backend()


def has_bfloat16() -> bool:
    """Whether the first device computes bfloat16 in hardware: TPUs, NVIDIA GPUs from Ampere on."""
    return platform() == "tpu" or has_fused_attention()


def best_dtype() -> Literal["float32", "bfloat16"]:
    """The type that the first device trains fastest in: bfloat16 where it has it, or float32."""
    return "bfloat16" if has_bfloat16() else "float32"


def has_fused_attention() -> bool:
    """Whether the first device runs cuDNN's fused attention: NVIDIA GPUs from Ampere (8.0) on."""
    if platform() != "gpu":
        return False
    try:
        return float(jax.local_devices()[0].compute_capability) >= 8.0
    except (AttributeError, TypeError, ValueError):  # another maker's
        return False


def random_kernels() -> AbstractContextManager[None]:
    """Random numbers of what is compiled within are drawn by a kernel of JAX's own on a GPU.

    They are the same numbers. XLA would write each draw out: the initial weights, some 200 draws,
    then take minutes to compile, and seconds like this.
    """
    return threefry_gpu_kernel_lowering(True)
