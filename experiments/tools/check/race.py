"""Training and sampling, JAX and PyTorch in turns in one process."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import jax

from experiments.tools.check import device
from experiments.tools.check.task import Task
from experiments.tools.speed import programs, turns
from experiments.tools.speed.programs import Program
from experiments.tools.speed.sides import Sides, make_sides, on_gpu
from experiments.tools.speed.throughput import throughput

if TYPE_CHECKING:  # it needs torch, which may be missing
    from experiments.tools.speed.reference import MakeCall

# The most that JAX's time may be of the quicker PyTorch's, in bfloat16.
MOST = 1.0
# Of the seconds that there are, what torch.compile gets at most.
SHARE = 0.7
NOT_COMPILED = "PyTorch, not compiled"


def train_64(task: Task) -> None:
    """The item `train_64`."""
    _train(task, 0, bfloat16=True)


def train_32(task: Task) -> None:
    """The item `train_32`."""
    _train(task, 1, bfloat16=True)


def float32(task: Task) -> None:
    """The item `float32`."""
    _train(task, 0, bfloat16=False)


def batches(task: Task) -> None:
    """The item `batches`: PyTorch eager alone, which takes no time to compile."""
    for batch in task.sizes.batches:
        _train(task, 0, bfloat16=True, batch=batch, end=f", batch {batch}")


def start_sides(task: Task, batch: int) -> Sides:
    """Makes the settings and both models, for batches of this size."""
    device.start()
    threads = 1 if task.tiny else len(os.sched_getaffinity(0))
    return make_sides(batch, threads, **task.sizes.fields)


def make_update(task: Task, sides: Sides, place: int, bfloat16: bool) -> Program:
    """JAX's update.

    Args:
      task: the item.
      sides: both models.
      place: of the images' size in the task's.
      bfloat16: or float32, whose products are TF32.
    """
    model, images = sides.model_in(bfloat16), sides.images(task.sizes.pixels[place])
    return programs.train_step(model, lambda: sides.params, images, sides.config)


def _train(task: Task, place: int, bfloat16: bool, batch: int | None = None, end: str = "") -> None:
    """Times updates, see `make_update`.

    Args:
      task: what is added to.
      place: of the images' size in the task's.
      bfloat16: or float32.
      batch: one that is not the task's; PyTorch is then not compiled.
      end: of the names of what is found.
    """
    size = task.sizes.pixels[place]
    sides = start_sides(task, batch or task.sizes.batch[place])
    make = None
    if sides.reference is not None:
        mean = programs.MEAN[: sides.model.channels]
        make = sides.reference.train_step(sides.images(size), mean, sides.config)
    race = _Race(task, sides, make, bfloat16, task.sizes.together)
    update = race.prepare(lambda: make_update(task, sides, place, bfloat16), compile=batch is None)
    found: dict[str, Any] = {"compile, s": update.compile_seconds}
    if update.memory:
        found["peak memory by the compiler, GiB"] = update.memory["peak"] / device.GIB
    found["host, ms per dispatch"] = 1e3 * _dispatch_seconds(update, task.sizes.together)
    task.add({f"JAX{end}": found, f"images{end}": f"{sides.batch} of {size} px"})

    named = {"images_per_second": "images/s", "model_flop_utilisation": "MFU"}
    of_a_second = throughput(sides.batch, update, 1.0, bfloat16)  # counting FLOPs takes a while

    def numbers(seconds: float) -> dict[str, float]:
        found = {named[name]: value / seconds for name, value in of_a_second.items()}
        return {"ms per update": 1e3 * seconds} | found

    for row in race.rows(update):
        task.add({f"{form}{end}": numbers(s) for form, s in _named(row["seconds"]).items()})
        _add_ratio(task, row, end)
        if (peak := device.peak_gib()) is not None:
            task.add({f"JAX{end}": {"peak memory in use, GiB": peak}})
        if sides.reference is not None and (used := sides.reference.peak_memory()) is not None:
            task.add({f"PyTorch{end}": {"peak memory in use, all forms, GiB": used / device.GIB}})
    if batch is None and bfloat16:
        _judge(task)


def sample_64(task: Task) -> None:
    """The item `sample_64`: the first steps of a chain, of which each is a call of the network."""
    size, steps = task.sizes.pixels[0], task.sizes.chain
    sides = start_sides(task, task.sizes.batch[0])
    x, _ = sides.inputs(size)
    make = None if sides.reference is None else sides.reference.sampling(x, steps)
    race = _Race(task, sides, make, bfloat16=True, together=1)
    chain = race.prepare(
        lambda: programs.sampling(sides.model_in(True), sides.params, x, steps), compile=True
    )
    task.add({"JAX": {"compile, s": chain.compile_seconds}, "images": f"{len(x)} of {size} px"})
    for row in race.rows(chain):
        for form, seconds in _named(row["seconds"]).items():
            call = seconds / steps
            task.add({form: {"ms per call": 1e3 * call, "calls/s": 1 / call}})
        _add_ratio(task, row, "")
    _judge(task)


@dataclass
class _Race:
    """JAX's program and PyTorch's call of the same work.

    PyTorch is as a careful user has it: channels_last, fused Adam.

    Attributes:
      task: the item.
      sides: both models.
      make: makes PyTorch's call; None where there is no PyTorch.
      bfloat16: the type in which both compute.
      together: pieces of work that a timed call does.
      compiled: PyTorch's call through torch.compile, once it is there.
    """

    task: Task
    sides: Sides
    make: "MakeCall | None"
    bfloat16: bool
    together: int
    compiled: turns.Compiled | None = None

    def prepare(self, make_program: Callable[[], Program], compile: bool) -> Program:
        """Compiles both at the same time, before anything is timed: each takes a minute on a GPU.

        Args:
          make_program: makes JAX's.
          compile: whether PyTorch is compiled too.
        """
        with ThreadPoolExecutor(1) as pool:
            program = pool.submit(make_program)
            if compile and self.sides.reference is not None and self.make is not None:
                seconds = SHARE * self.task.seconds
                its = self.sides.reference, self.make, self._setting()
                self.compiled = turns.compile_reference(*its, seconds)
                if self.compiled is None:
                    self.task.add({NOT_COMPILED: "torch.compile failed or took too long"})
            return program.result()

    def rows(self, program: Program) -> Iterator[dict[str, Any]]:
        """The seconds of JAX's program and of PyTorch's forms, as they become known."""
        take_turns = device.taking_turns(self.task.sizes, self.together)
        yield turns.alone(program, take_turns)
        if self.sides.reference is None or self.make is None:
            self.task.add({"PyTorch": "is not there"})
            return
        its = self.sides.reference, self.make, self._setting()
        yield from turns.side_by_side(program, *its, take_turns, lambda: self.compiled)

    def _setting(self) -> Any:
        assert self.sides.reference is not None
        return self.sides.reference.setting("channels_last", self.bfloat16, optimizer="fused")


def _named(seconds: Mapping[str, float]) -> dict[str, float]:
    return {form if form == "JAX" else f"PyTorch {form}": s for form, s in seconds.items()}


def _add_ratio(task: Task, row: Mapping[str, Any], end: str) -> None:
    """Adds the ratio of JAX's time to the quicker PyTorch's, with its interval, and what is raw."""
    ratio = row.get("ratios")
    if ratio is None:
        return
    low, high = ratio["interval"]
    task.add(
        {
            f"JAX / PyTorch{end}": {
                "ratio of times": ratio["median"],
                "interval": f"{low:.3f} to {high:.3f}, {100 * ratio['coverage']:.0f} %",
                "of PyTorch": ratio["reference"],
            },
            f"seconds{end}": [ratio["timed_seconds"]],
        }
    )
    if "torch.compile" in row["compile_seconds"]:
        seconds = row["compile_seconds"]["torch.compile"]
        task.add({f"PyTorch compiled{end}": {"compile, s": seconds}})


def _judge(task: Task) -> None:
    """Holds JAX to being no slower than PyTorch, on a GPU."""
    ratio = task.found.get("JAX / PyTorch")
    if ratio is not None and on_gpu():
        alone = " (of eager alone)" if NOT_COMPILED in task.found else ""
        task.judge(f"JAX / PyTorch, bar{alone}", ratio["ratio of times"], MOST)


def _dispatch_seconds(program: Program, count: int) -> float:
    """Seconds that the host takes to hand over a call to a device that has nothing to do."""
    program.call()
    record = []
    for _ in range(count):
        begin = time.perf_counter()
        result = program.launch()
        record.append(time.perf_counter() - begin)
        jax.block_until_ready(result)
    return median(record)
