"""Measures a GPU in ten minutes: python -m experiments.gpu_check [--budget S] [--only ITEM ...].

Everything that is to be known of a card, most valuable first: memory and products, training and
sampling against PyTorch in the same process, errors against float64, a profile, float32, a resume,
the posterior engine, options of XLA, larger batches, and the paper's MNIST model. Each item has a
process of its own with a time limit. --list names the items, --tiny tries all of them on a CPU.

DIR/results.jsonl gets a line as an item ends, DIR/table.md the table that is printed last. An item
that fails does not stop the others; what it had found by then is kept. Exits with status 1 where
one failed or a bound was broken.
"""

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffusion_jax.errors import UserError
from experiments.options import parse
from experiments.tools.check import report
from experiments.tools.check.items import ITEMS, Item
from experiments.tools.check.task import BROKEN, last_line

INTERRUPTED = "interrupted"
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "torch")


@dataclass(frozen=True)
class Options:
    """Measures a GPU, most valuable things first, within a budget of seconds."""

    budget: float = 480
    """Seconds in all."""
    out: Path = Path("runs/gpu_check")
    """Folder for results.jsonl, table.md, the items' output and the paper's run."""
    only: tuple[str, ...] = ()
    """The items to measure; by default all."""
    list: bool = False
    """Names the items, and measures nothing."""
    tiny: bool = False
    """Tries every item on a tiny model, on a CPU too: nothing that it finds is a measurement."""

    def items(self) -> tuple[Item, ...]:
        """The items that are chosen, in their order.

        Raises:
          UserError: there is no such item, or no time.
        """
        known = [item.name for item in ITEMS]
        for name in self.only:
            if name not in known:
                raise UserError(f"there is no item {name}; the items are {', '.join(known)}")
        if not self.budget > 0:
            raise UserError(f"budget = {self.budget} must be positive")
        return tuple(item for item in ITEMS if not self.only or item.name in self.only)


def _card() -> dict[str, str]:
    """The first card's name, driver, memory and power limit, as nvidia-smi gives them."""
    fields = {
        "card": "name",
        "driver": "driver_version",
        "memory": "memory.total",
        "power limit": "power.limit",
    }
    query = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {"card": "none, or no nvidia-smi"}
    return dict(zip(fields, told.stdout.splitlines()[0].split(", "), strict=False))


def about(options: Options) -> dict[str, Any]:
    """What a result is worth nothing without: date, card, driver, versions."""
    versions = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **_card(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "cores": len(os.sched_getaffinity(0)),
        "budget": f"{options.budget:g} s",
        **({"tiny": True} if options.tiny else {}),
    }


def _environment(tiny: bool) -> dict[str, str]:
    """What a child finds set: one card, of which it takes the memory that it needs."""
    environment = {"CUDA_VISIBLE_DEVICES": "0"} | os.environ
    environment.pop("JAX_NUM_CPU_DEVICES", None)  # one device, as PyTorch has
    if tiny:  # compiling for a CPU takes a minute
        environment["TORCH_COMPILE_DISABLE"] = "1"
    return environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"}


def measure(item: Item, options: Options, seconds: float) -> dict[str, Any]:
    """Measures an item in a process of its own: a line of results.jsonl.

    Args:
      item: what.
      options: of the call.
      seconds: after which the process is ended, and all that it started.
    """
    log = options.out / "logs" / f"{item.name}.log"
    log.unlink(missing_ok=True)
    begin, end = time.monotonic(), {"status": "done"}
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as scratch:
        arguments = [item.name, str(options.out), scratch, str(seconds)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "experiments.tools.check.child", *arguments]
                + ["--tiny"] * options.tiny,
                env=_environment(options.tiny),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            status = process.wait(seconds + 1)  # what it ends itself, it can tell of
            if status != 0:
                end = {"status": "failed", "error": f"{last_line(log)} (exit status {status})"}
        except subprocess.TimeoutExpired:
            end = {"status": "timed out", "error": f"ended after {seconds:.0f} s"}
        except KeyboardInterrupt:
            end = {"status": INTERRUPTED, "error": "SIGTERM or Ctrl-C"}
        finally:
            _end(process)
        path = Path(scratch) / "found.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        for each in Path(scratch).glob("*.log"):
            each.replace(log.with_name(f"{item.name}_{each.name}"))
    if "error" in found:
        end["error"] = found.pop("error")
    return {"item": item.name, **end, "seconds": time.monotonic() - begin, "found": found}


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a child and whatever it started and left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _write(out: Path, line: Mapping[str, Any]) -> None:
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()


def check(options: Options) -> Sequence[Mapping[str, Any]]:
    """Measures the items, and writes and prints the table, whatever ends it."""
    started, items = time.monotonic(), options.items()
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    known, lines = about(options), []
    _write(options.out, {"call": known})
    try:
        for item in items:
            left = options.budget - (time.monotonic() - started)
            if left < item.least:
                why = f"{max(left, 0):.0f} s are left, it needs {item.least:g}"
                skipped = {"item": item.name, "status": "skipped", "error": why}
                line: dict[str, Any] = {**skipped, "seconds": 0.0, "found": {}}
            else:
                print(f"[{time.monotonic() - started:4.0f} s] {item.name}: {item.what}", flush=True)
                line = measure(item, options, min(item.limit, left))
            lines.append(line)
            _write(options.out, line)
            if line["status"] == INTERRUPTED:
                raise KeyboardInterrupt
            if line["status"] in ("failed", "timed out"):
                print(f"{item.name} {line['status']}: {line['error']}", flush=True)
    finally:
        table = report.table(known, lines)
        with (options.out / "table.md").open("a") as file:
            file.write(f"{table}\n")
        print(f"\n{table}", flush=True)
    return lines


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Measures, prints, writes, and exits with status 1 where an item failed or a bound broke."""
    options = parse(Options, "gpu_check", __doc__)
    if options.list:
        for item in ITEMS:
            print(f"{item.name:10} {item.what}; {item.limit:.0f} s at most")
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        lines = check(options)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if any(line["status"] in ("failed", "timed out") or BROKEN in line["found"] for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
