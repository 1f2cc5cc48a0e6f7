"""Times JAX against PyTorch: python -m experiments.tools.benchmark [--quick] [--out PATH.json].

The paper's model on images of 32 x 32 and 64 x 64: forward pass, whole train step, ancestral
sampling, data pipeline, time to the first step and memory. JAX and the reference (`torch_ref`)
take turns in one process, call by call, on equal threads; the ratio of each pair of calls is formed
and the median of the ratios counts, with a distribution-free interval. The two are first held
against each other: models that disagree are not timed.

Before each call both rest for a moment: torch's workers spin after a call (5 to 7 ms of processor
time on two cores; JAX's do not), on cores that the other then wants. Neither loses by the rest.

Prints Markdown tables, writes PATH.json and a figure PATH.png, and exits with status 1 where a
bound is broken. The full run also times `torch.compile` where there is a compiler.
"""

import contextlib
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import tyro

from diffusion_jax.config import TrainingConfig
from diffusion_jax.errors import UserError
from diffusion_jax.nn.unet import UNet
from diffusion_jax.plots.benchmark import draw_ratios
from diffusion_jax.plots.style import save
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.files import write_json
from experiments.command import exit_if_broken, reports_errors
from experiments.tools import hlo, programs, timing
from experiments.tools.tables import tables

SIZES = (32, 64)
# Largest ratio to the reference; what is not in `ratios` is explained where it is measured.
BOUNDS = {
    "forward_32": 0.95,
    "forward_64": 1.0,
    "train_32": 1.0,
    "train_64": 1.0,
    "sampling_32": 0.95,
    "data_pipeline": 0.01,
    "second_start": 0.3,
}
DIFFUSION_STEPS = 1000
# Images that the data pipeline draws batches from.
NUM_IMAGES = 10_000
# Seconds of rest before each timed call, ten times as long as torch's workers spin after one.
PAUSE = 0.1
COMPILE_LIMIT = 240
# What float32 may differ by on a GPU, where both round products to TF32, and bfloat16.
COARSE = 0.05
# Dense bfloat16 peak in TFLOP/s, from NVIDIA's data sheets (SXM forms).
PEAK_TFLOPS = {"H100": 989.4, "H200": 989.4, "A100": 312.0}


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
      sizes: pixels a side.
      pairs: timed calls of each side, by row.
      warm_up: calls of each that are not timed: by the third, neither asks the system for memory.
      sampled: steps of sampling that a call runs.
      compared: sizes at which gradients are compared, and fields of the UNet that are others there.
      full: torch.compile and fresh starts are measured.
    """

    sizes: tuple[int, ...]
    pairs: Mapping[str, int]
    warm_up: int
    sampled: int
    compared: Mapping[int, Mapping[str, Any]]
    full: bool


# Every kind of layer at the paper's widths; compiling all of them takes longer than timing them.
SMALLER = {"multiples": (1, 2), "attention_levels": (2,), "num_res_blocks": 1}
QUICK = Effort(
    SIZES[:1],
    {"forward_32": 9, "train_32": 7, "sampling_32": 5},
    warm_up=2,
    sampled=2,
    compared={32: SMALLER},
    full=False,
)
FULL = Effort(
    SIZES,
    {"forward_32": 21, "forward_64": 11, "train_32": 11, "train_64": 7, "sampling_32": 9},
    warm_up=3,
    sampled=8,
    compared={32: {}, 64: SMALLER},
    full=True,
)


@dataclass(frozen=True)
class Options:
    """Times JAX against PyTorch on the paper's model."""

    out: Path = Path("runs/benchmark.json")
    """The results; the figure goes beside it, named .png."""
    quick: bool = False
    """32 px alone, fewer pairs, gradients of a smaller model, no torch.compile, no fresh starts."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where both run; auto: where JAX does."""
    batch: int | None = None
    """Images a batch; by default 8 on a CPU, 64 on a GPU."""
    peak_tflops: float | None = None
    """The GPU's peak in bfloat16, dense, for the utilisation; by default from its name."""


def ratio(
    timed: Mapping[str, Sequence[Sequence[float]]],
) -> dict[str, Any]:
    """The median ratio of paired seconds to the reference in the form that is faster.

    Args:
      timed: for each form of the reference, the seconds of JAX's calls and of its own, which took
        turns.

    Returns:
      `median`, `interval`, `coverage` and `count` of the ratios, of the form whose median is the
      largest, and `reference`, its name.
    """
    medians = {
        name: timing.median_interval([ours / theirs for ours, theirs in zip(*pair, strict=True)])
        for name, pair in timed.items()
    }
    reference = max(medians, key=lambda name: medians[name].median)
    return medians[reference].to_json() | {"reference": reference}


def extrapolate(seconds: float, steps: int) -> float:
    """Seconds of all 1000 steps from those of some; what a call costs once is counted as often."""
    return seconds * DIFFUSION_STEPS / steps


def broken_bounds(values: Mapping[str, float]) -> list[str]:
    """Names what is over its bound; a NaN is. What was not measured is not judged."""
    return [
        f"{name}: {values[name]:.3g} is over {bound:g}"
        for name, bound in BOUNDS.items()
        if name in values and not values[name] <= bound
    ]


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises a TimeoutError in the with block after so many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def said(problem: str) -> None:
    """One line about what cannot be measured here; the rest goes on."""
    print(f"note: {problem}", flush=True)


class Benchmark:
    """The two models with the same weights, and the measurements of them.

    Attributes:
      report: everything measured so far, as JSON.
    """

    def __init__(
        self, effort: Effort, batch: int, threads: int, pause: float, **model: Any
    ) -> None:
        """Makes both models, or JAX's alone where torch is missing.

        Args:
          effort: how much is measured.
          batch: images a batch.
          threads: of the reference, as many as JAX takes.
          pause: seconds of rest before each timed call.
          **model: the UNet's fields, by default the paper's.
        """
        self.effort, self.batch, self.pause, self.fields = effort, batch, pause, model
        self.gpu = jax.default_backend() == "gpu"
        self.config = TrainingConfig(batch_size=batch)
        self.report: dict[str, Any] = {"ratios": {}, "seconds": {}, "compile_seconds": {}}
        self.started = time.perf_counter()
        self.peak_tflops: float | None = None
        self.layouts: dict[str, tuple[str, dict[str, float]]] = {}
        self.made: dict[tuple[int, bool], dict[str, programs.Program]] = {}
        self.torch = self._reference(threads, model)
        if self.torch is None:
            self.model = UNet(**model)
            self.params = programs.fresh_params(self.model)()

    def _reference(self, threads: int, model: dict[str, Any]) -> Any:
        """The module `torch_speed`, or None where there is no torch for this device."""
        try:
            import torch

            from experiments.tools import torch_speed
            from torch_ref import bridge
            from torch_ref.unet import UNet as TorchUNet
        except ModuleNotFoundError as missing:
            said(
                f"{missing.name} is not installed (extra: torch), so JAX is measured alone and "
                f"there are no ratios"
            )
            return None
        if self.gpu and not torch.cuda.is_available():
            said("this torch has no GPU support, so JAX is measured alone and there are no ratios")
            return None
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        if self.gpu:  # as JAX does by default
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        elif not torch.backends.mkldnn.is_available():
            said("this torch has no oneDNN: the reference is slower than it is elsewhere")
        self.torch_device = "cuda" if self.gpu else "cpu"
        self.torch_model = TorchUNet(**model)
        self.model, self.params = bridge.from_torch(self.torch_model.state_dict())
        self.report["torch"] = torch.__version__
        return torch_speed

    def say(self, what: str) -> None:
        """Prints what comes next, and when."""
        print(f"[{time.perf_counter() - self.started:4.0f} s] {what}", flush=True)

    def inputs(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Noise (batch, size, size, channels) and steps (batch,)."""
        rng = np.random.default_rng(0)
        shape = (self.batch, size, size, self.model.channels)
        return rng.standard_normal(shape, np.float32), rng.integers(0, 1000, self.batch)

    def agree(self) -> None:
        """Holds loss and gradients of the two against each other.

        Raises:
          UserError: they differ by more than the parity bounds.
        """
        if self.torch is None:
            return
        from torch_ref import compare

        for size, fields in self.effort.compared.items():
            model = compare.perturbed(**self.fields | dict(fields))
            self.say(f"Comparing gradients at {size} px")
            arrays = compare.batch(0, self.model.channels, size, size, num=1)
            with jax.default_matmul_precision("highest"):
                self._check(f"{size} px", compare.compare_model(model, arrays))

    def _check(self, what: str, errors: Mapping[str, float], bound: float | None = None) -> None:
        from torch_ref.compare import BOUNDS

        self.report.setdefault("agreement", {})[what] = dict(errors)
        for name, error in errors.items():
            allowed = BOUNDS["float32"][name] if bound is None else bound
            if not error <= allowed:
                raise UserError(
                    f"the two models disagree, so nothing is timed: {what}, {name}: relative "
                    f"error {error:.2g}, allowed {allowed:.0e}; see python -m experiments.parity"
                )

    def row(
        self,
        name: str,
        program: programs.Program,
        make_torch: Callable[..., Callable[[], Any]],
        bfloat16: bool,
        compile: bool,
    ) -> None:
        """Times one program against the forms of the reference; the result goes to the report.

        JAX takes turns with one form at a time: a third program of the size of a train step would
        leave neither of the others its memory.

        Args:
          name: of the row, such as train_32.
          program: JAX's, compiled.
          make_torch: makes the reference's call from a setting, and compile=True.
          bfloat16: compute type.
          compile: whether the reference is also compiled.
        """
        self.say(f"Measuring {name}")
        pairs = self.effort.pairs[name.removesuffix("_bfloat16")]

        def take_turns(*calls: Callable[[], Any]) -> tuple[list[float], ...]:
            warm_up, pause = self.effort.warm_up, self.pause
            return tuple(timing.alternate(pairs, *calls, pause=pause, warm_up=warm_up))

        self.report["compile_seconds"][name] = {"JAX": program.compile_seconds}
        if self.torch is None:
            self.report["seconds"][name] = {"JAX": median(take_turns(program.call)[0])}
            return
        # Sampling is made of forward passes.
        what = name.split("_")[0].replace("sampling", "forward")
        device, kind = self.torch_device, f"{what} {bfloat16}"
        if not name.startswith("sampling"):
            found = self.torch.faster_layout(device, make_torch, bfloat16=bfloat16)
            self.layouts[kind] = found
        layout, trial = self.layouts[kind]
        setting = self.torch.Setting(device, layout, bfloat16=bfloat16)
        call = self.waiting(setting, make_torch(setting))
        timed = {"eager": take_turns(program.call, call)}
        if compile:
            del call  # its memory is the compiled form's
            try:
                with time_limit(COMPILE_LIMIT):
                    start = time.perf_counter()
                    call = self.waiting(setting, make_torch(setting, compile=True))
                    call()
                took = time.perf_counter() - start
                self.report["compile_seconds"][name]["torch.compile"] = took
                timed["compiled"] = take_turns(program.call, call)
            except Exception as error:  # a missing compiler raises almost anything
                reason = str(error).strip().splitlines() or [type(error).__name__]
                said(f"torch.compile does not work here, eager alone is timed: {reason[0]}")
        result = ratio(timed)
        result |= {"layout": layout, "layout_trial_seconds": trial}
        result["timed_seconds"] = {
            form: {"JAX": ours, "PyTorch": theirs} for form, (ours, theirs) in timed.items()
        }
        if name in BOUNDS:
            result["bound"] = BOUNDS[name]
        self.report["ratios"][name] = result
        self.report["seconds"][name] = {
            "JAX": median(timed[result["reference"]][0]),
            **{form: median(theirs) for form, (_, theirs) in timed.items()},
        }

    def waiting(self, setting: Any, call: Callable[[], Any]) -> Callable[[], Any]:
        """The reference's call, which ends when the device has done its work."""

        def waited() -> Any:
            result = call()
            self.torch.synchronize(setting)
            return result

        return waited

    def compile(self, cases: Sequence[tuple[int, bool]]) -> None:
        """Compiles JAX's programs for sizes and whether in bfloat16, all at the same time.

        One program alone does not keep two cores busy.
        """
        self.say("Compiling")
        makers = {(case, name): f for case in cases for name, f in self._makers(*case).items()}
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda make: make(), makers.values())
            for (case, name), program in zip(makers, made, strict=True):
                self.made.setdefault(case, {})[name] = program

    def _makers(self, size: int, bfloat16: bool) -> dict[str, Callable[[], programs.Program]]:
        model = self.model
        if bfloat16:
            fused = backend.has_fused_attention()
            model = model.copy(dtype=jnp.bfloat16, fused_attention=fused)
        (x, step), images = self.inputs(size), programs.pixels(self.batch, size, model.channels)
        makers: dict[str, Callable[[], programs.Program]] = {
            "forward": lambda: programs.forward(model, self.params, x, step),
            "train": lambda: programs.train_step(model, lambda: self.params, images, self.config),
        }
        if size == SIZES[0]:
            steps = self.effort.sampled
            makers["sampling"] = lambda: programs.sampling(model, self.params, x, steps)
        return makers

    def speed(self, size: int, bfloat16: bool = False) -> None:
        """Times what `compile` made for a size; the outputs are compared first."""
        suffix = f"{size}_bfloat16" if bfloat16 else f"{size}"
        compile = self.effort.full and (self.gpu or size == SIZES[0])
        channels = self.model.channels
        (x, step), images = self.inputs(size), programs.pixels(self.batch, size, channels)
        mean = programs.MEAN[:channels]
        made = self.made.pop((size, bfloat16))  # its memory goes when the size is done

        def forward(setting: Any, compile: bool = False) -> Callable[[], Any]:
            return self.torch.forward(setting, self.torch_model, *tensors(x, step), compile)

        def train(setting: Any, compile: bool = False) -> Callable[[], Any]:
            import torch

            clip, decay = self.config.clip_norm, self.config.ema_decay
            of_step = (*tensors(images), torch.from_numpy(mean), clip, decay)
            return self.torch.train_step(setting, self.torch_model, *of_step, compile)

        def sample(setting: Any, compile: bool = False) -> Callable[[], Any]:
            steps = self.effort.sampled
            return self.torch.sampling(setting, self.torch_model, *tensors(x), steps, compile)

        if self.torch is not None:
            from torch_ref.compare import nhwc, relative_error

            setting = self.torch.Setting(self.torch_device, bfloat16=bfloat16)
            want = nhwc(forward(setting)().float().cpu().contiguous())
            error = relative_error(np.asarray(made["forward"].call()), want)
            self._check(f"forward_{suffix}", {"output": error}, COARSE if self.gpu else None)
        self.row(f"forward_{suffix}", made["forward"], forward, bfloat16, compile)
        if "sampling" in made:
            name, steps = f"sampling_{suffix}", self.effort.sampled
            self.row(name, made["sampling"], sample, bfloat16, False)
            self.report[name] = {
                "steps_timed": steps,
                "seconds_of_1000_steps": {
                    side: extrapolate(value, steps)
                    for side, value in self.report["seconds"][name].items()
                },
            }
        name = f"train_{suffix}"
        self.row(name, made["train"], train, bfloat16, compile)
        self.report.setdefault("compiler_memory", {})[name] = made["train"].memory
        if size == SIZES[0] and not bfloat16:
            self.pipeline(size, made["train"])
        if self.torch is not None:
            self._fused_adam(name)
        if self.gpu:
            self._throughput(suffix, made["train"])

    def _fused_adam(self, name: str) -> None:
        """Adds the ratio to a reference whose Adam is fused, which torch does not by default."""
        if "optimizer_seconds" not in self.report:
            self.report["optimizer_seconds"] = self.torch.optimizer_seconds(
                self.torch_device, self.torch_model
            )
        adam, result = self.report["optimizer_seconds"], self.report["ratios"][name]
        gain = adam["default"] - min(adam.values())
        timed = result["timed_seconds"][result["reference"]]
        pairs = zip(timed["JAX"], timed["PyTorch"], strict=True)
        against = [ours / (theirs - gain) for ours, theirs in pairs]
        result["against_quickest_adam"] = timing.median_interval(against).to_json()

    def _throughput(self, suffix: str, update: programs.Program) -> None:
        """Images a second, and the share of the GPU's peak that the model's FLOPs take."""
        seconds = self.report["seconds"][f"train_{suffix}"]["JAX"]
        found = {"images_per_second": self.batch / seconds}
        kind, flops = jax.devices()[0].device_kind, hlo.model_flops(update.lowered)
        known = (peak for name, peak in PEAK_TFLOPS.items() if name in kind)
        peak = self.peak_tflops or next(known, None)
        if peak is None:
            said(f"the peak of {kind} is not known, so no utilisation: give --peak-tflops")
        elif flops:
            found["model_flop_utilisation"] = flops / seconds / (1e12 * peak)
        self.report.setdefault("throughput", {})[f"train_{suffix}"] = found

    def pipeline(self, size: int, update: programs.Program) -> None:
        """The data pipeline's share of a train step, alone and beside it."""
        images = programs.pixels(NUM_IMAGES, size, self.model.channels)
        step = self.report["seconds"][f"train_{size}"]["JAX"]
        alone = programs.pipeline_seconds(images, self.batch)
        waiting = programs.waiting_seconds(
            images, self.batch, update, self.effort.pairs["train_32"]
        )
        self.report["data_pipeline"] = {
            "images": NUM_IMAGES,
            "size": size,
            "seconds_a_batch_alone": alone,
            "seconds_waited_beside_the_step": waiting,
            "share_alone": alone / step,
            "share_beside_the_step": waiting / step,
        }

    def starts(self) -> None:
        """Time to the first update and peak memory, each in a fresh process."""
        self.say("Measuring the start of a fresh process")
        size = SIZES[0]
        try:
            found = programs.first_and_second_start(self.batch, size)
            if self.torch is not None:
                found["torch eager"] = programs.fresh_start("report_torch", self.batch, size)
        except (OSError, RuntimeError) as error:
            said(f"the start of a fresh process could not be measured: {error}")
            return
        self.report["start"] = {
            "size": size,
            "seconds": {name: result["seconds"] for name, result in found.items()},
            "memory_growth": {name: result["peak"] for name, result in found.items()},
            "second_to_first": found["second"]["seconds"] / found["first"]["seconds"],
        }

    def values(self) -> dict[str, float]:
        """What has a bound, as far as it was measured."""
        values = {name: row["median"] for name, row in self.report["ratios"].items()}
        if "data_pipeline" in self.report:
            values["data_pipeline"] = self.report["data_pipeline"]["share_alone"]
        if "start" in self.report:
            values["second_start"] = self.report["start"]["second_to_first"]
        return values


def tensors(*arrays: np.ndarray) -> list[Any]:
    """Images (batch, height, width, channels) as NCHW tensors; other arrays as they are."""
    import torch

    return [
        torch.from_numpy(np.ascontiguousarray(np.moveaxis(a, -1, 1) if a.ndim == 4 else a))
        for a in arrays
    ]


@reports_errors
def main() -> None:
    """Measures, prints, writes, and exits with status 1 where a bound is broken."""
    options = tyro.cli(Options, prog="python -m experiments.tools.benchmark")
    if options.batch is not None and options.batch < 1:
        raise UserError(f"batch = {options.batch} must be at least 1")
    backend.configure()
    backend.keep_freed_memory()
    for name, value in programs.XLA_CACHES_OFF.items():
        jax.config.update(name.lower(), value)
    if options.device != "auto":
        jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[options.device])
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise UserError(
            f"JAX finds no {options.device} here ({str(error).splitlines()[0]}); leave --device out"
        ) from error
    if len(devices) > 1:
        raise UserError(
            f"JAX sees {len(devices)} devices, the reference uses one: unset JAX_NUM_CPU_DEVICES, "
            f"or set CUDA_VISIBLE_DEVICES=0"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    started, threads = time.perf_counter(), len(os.sched_getaffinity(0))
    gpu = jax.default_backend() == "gpu"
    batch = options.batch or (64 if gpu else 8)
    load = timing.warn_if_busy(threads)
    effort = QUICK if options.quick else FULL
    benchmark = Benchmark(effort, batch, threads, PAUSE)
    benchmark.peak_tflops = options.peak_tflops
    benchmark.agree()
    if gpu and not backend.has_bfloat16():
        said("this GPU has no bfloat16, so float32 alone is measured")
    types = (False, True) if gpu and backend.has_bfloat16() else (False,)
    cases = [(size, bfloat16) for bfloat16 in types for size in effort.sizes]
    if effort.full:
        benchmark.starts()  # leaves the train step compiled
    benchmark.compile(cases)
    for case in cases:
        benchmark.speed(*case)

    report = benchmark.report | {
        "device": devices[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "threads": threads,
        "load": load,
        "batch": batch,
        "quick": options.quick,
        "pause": PAUSE,
        "bounds": BOUNDS,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "torch": benchmark.report.pop("torch", None),
        },
        "seconds_in_all": time.perf_counter() - started,
    }
    write_json(options.out, report)
    print("\n" + tables(benchmark.report, BOUNDS) + "\n")
    written = [str(options.out)]
    if report["ratios"]:
        figure = options.out.with_suffix(".png")
        title = f"{devices[0].device_kind}, {threads} threads, batch {batch}"
        save(draw_ratios(report["ratios"], BOUNDS, title), figure)
        written.append(str(figure))
    print(f"Wrote {' and '.join(written)} in {report['seconds_in_all']:.0f} s")
    exit_if_broken(broken_bounds(benchmark.values()))


if __name__ == "__main__":
    main()
