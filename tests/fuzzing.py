"""Damaged files by the thousand: a reader gives a value or a UserError, in bounded time and memory.

DIFFUSION_JAX_FUZZ=20000 is the number of inputs of each reader, which are then other ones at every
start; by default it is 25, and always the same.
"""

import contextlib
import copy
import faulthandler
import json
import os
import resource
import signal
import struct
import time
import zlib
from collections import Counter

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from diffusion_jax.errors import UserError

_OF_THE_SUITE = 25
NUM_INPUTS = int(os.environ.get("DIFFUSION_JAX_FUZZ", str(_OF_THE_SUITE)))
SECONDS = 10
MEMORY = 2**30  # bytes of address space beyond those that the process has
LONGEST_MESSAGE = 5000

NUMBERS = [0, 1, 2, 255, 10**6, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
KINDS = ["flip", "byte", "cut", "drop", "repeat", "insert", "zero", "move", "number", "number"]
WHERE = st.integers(0, 2**24) | st.integers(0, 64) | st.integers(-64, -1)
EDIT = st.tuples(st.sampled_from(KINDS), WHERE, st.integers(0, 2**16 - 1), st.binary(max_size=8))
EDITS = st.lists(EDIT, min_size=1, max_size=4)


def damaged(whole, edits):
    """What is left of some bytes after the edits, (kind, where, a number, some bytes) each."""
    content = bytearray(whole)
    for kind, where, value, some in edits:
        size = len(content)
        place = where % (size + 1)
        stretch = content[place : place + value % 64]
        if kind == "flip" and place < size:
            content[place] ^= 1 << value % 8
        elif kind == "byte" and place < size:
            content[place] = value % 256
        elif kind == "cut":
            del content[place:]
        elif kind == "drop":
            del content[place : place + value % 64]
        elif kind == "repeat":
            content[place:place] = stretch * (1 + value % 7)
        elif kind == "insert":
            content[place:place] = some
        elif kind == "zero":
            content[place : place + len(stretch)] = bytes(len(stretch))
        elif kind == "move":
            to = value * 257 % (size + 1)
            content[to : to + len(stretch)] = stretch
        elif kind == "number":
            width, order = ((2, "<"), (4, "<"), (8, "<"), (2, ">"), (4, ">"), (8, ">"))[value % 6]
            number = NUMBERS[value // 6 % len(NUMBERS)] % 2 ** (8 * width)
            code = {2: "H", 4: "I", 8: "Q"}[width]
            content[place : place + width] = struct.pack(order + code, number)
    return bytes(content)


def with_checksums(png):
    """A PNG whose chunks have the checksums of what they hold, so that this is looked at."""
    content, place = bytearray(png), 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4])
        end = place + 8 + length
        if end + 4 > len(content):
            break
        content[end : end + 4] = zlib.crc32(content[place + 4 : end]).to_bytes(4)
        place = end + 4
    return bytes(content)


# What JSON may hold in place of what was there.
VALUES = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, -(10**400), 0.5, 1e308, float("nan"),
    float("inf"), "", "x", "1", "\0", "\ud800", "../x", "a" * 10_000, [], [[]], [0], ["x"], [None],
    {}, {"x": 1}, [1] * 1000,
]  # fmt: skip
DEEP = "[" * 100_000
JSON_EDITS = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 2**16)), max_size=3)


def changed_json(value, edits):
    """JSON of a value some of whose parts were replaced, renamed or removed."""
    value = json.loads(json.dumps(value))
    for where, what in edits:
        holders = list(_holders(value))
        if not holders:
            break
        holder, key = holders[where % len(holders)]
        what %= len(VALUES) + 3
        if what < len(VALUES):
            holder[key] = copy.deepcopy(VALUES[what])
        elif what == len(VALUES):
            del holder[key]
        elif what == len(VALUES) + 1:
            holder[key] = "deep"
        elif isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
    return json.dumps(value).replace('"deep"', DEEP)


def _holders(value):
    """Each part of a value, as what holds it and its key there."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _holders(value[key])


class Hang(Exception):
    """A reader took too long."""


@contextlib.contextmanager
def bounded():
    """Ends what takes longer than SECONDS, or more than MEMORY."""

    def stop(*_):
        raise Hang

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, stop)
    if NUM_INPUTS > _OF_THE_SUITE:  # C code does not see the signal
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if NUM_INPUTS > _OF_THE_SUITE:
            faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def fuzz(name, inputs, read, check, slow=1):
    """Hands a reader one damaged input after the other.

    Args:
      name: the reader's, for what is printed (pytest -rP shows it).
      inputs: a strategy.
      read: writes an input where its reader finds it, and calls the reader.
      check: asserts that what the reader gave is what it promises.
      slow: one input in so many is enough.
    """
    counted, began = Counter(), time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=NUM_INPUTS // slow,
        derandomize=NUM_INPUTS == _OF_THE_SUITE,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def run(content):
        try:
            with bounded():
                value = read(content)
        except UserError as error:
            counted["refused"] += 1
            if len(str(error)) > LONGEST_MESSAGE:
                raise AssertionError("a message that nobody reads") from error
        else:
            counted["read"] += 1
            check(value)

    run()
    seconds = time.perf_counter() - began
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"FUZZ {name}: {counted['read']} read, {counted['refused']} refused, {seconds:.0f} s, "
          f"{growth:.0f} MiB more at the peak")  # fmt: skip
    assert counted.total() >= NUM_INPUTS // slow
