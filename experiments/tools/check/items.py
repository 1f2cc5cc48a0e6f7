"""The items of `gpu_check`, most valuable first. No JAX here: the parent must not take the GPU."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """Something that is measured, in a process of its own.

    Attributes:
      name: what --only calls it.
      what: a line on it.
      function: that measures it, MODULE.FUNCTION of this room.
      limit: seconds after which it is ended; what it has found by then is kept.
      least: with fewer seconds left it is not begun.
    """

    name: str
    what: str
    function: str
    limit: float
    least: float


ITEMS = (
    Item("machine", "memory's speed, and that of large products", "machine.measure", 25, 10),
    Item("train_64", "training at 64 px, bfloat16, both", "race.train_64", 150, 40),
    Item("sample_64", "sampling at 64 px, bfloat16, both", "race.sample_64", 95, 30),
    Item("train_32", "training at 32 px, bfloat16, both", "race.train_32", 110, 40),
    Item("correct", "errors against float64 on the CPU", "correctness.measure", 60, 30),
    Item("profile", "the train step by kernel", "kernels.measure", 40, 30),
    Item("float32", "training at 64 px, float32, both", "race.float32", 150, 40),
    Item("resume", "a run stopped and resumed, losses bit for bit", "resume.measure", 150, 60),
    Item("engine", "the posterior engine against the CPU", "engine.measure", 90, 30),
    Item("flags", "XLA's options and updates per dispatch", "flags.measure", 300, 60),
    Item("batches", "training at 64 px in larger batches", "race.batches", 240, 60),
    Item("paper", "the paper's MNIST model, its samples, cloning", "paper.measure", 3600, 120),
)
