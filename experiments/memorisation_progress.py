"""How far the runs of a study are, as a table on a terminal and as lines elsewhere."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from diffusion_jax.config import Config
from diffusion_jax.memorising.cells import Cell
from diffusion_jax.memorising.workers import Work
from diffusion_jax.training.memory import GAP, SHARE
from diffusion_jax.training.metrics import FRACTION, read_metrics

# Seconds between two readings of the runs' files, and between two lines where there is no terminal.
_READ, _SAY = 2.0, 60.0


@dataclass
class _Seen:
    """Of one run: updates done, what the last evaluation said, and when updates were seen done."""

    step: int = 0
    evaluated: dict[str, float] = field(default_factory=dict)
    since: tuple[int, float] | None = None


class Progress:
    """Looks at the runs as they go; to be used with `watching`."""

    def __init__(self, configs: Mapping[Cell, Config], console: Console) -> None:
        """Says what will be looked at: the configurations of all runs, those done among them."""
        self._configs, self._console = configs, console
        self._seen = {cell: _Seen() for cell in configs}
        self._states = dict.fromkeys(configs, "done")
        self._read, self._said = 0.0, time.monotonic()
        self._live: Live | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Shows the table until the end of the block."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False) as self._live:
            yield

    def look(self, work: Work) -> None:
        """Reads how far the runs are, and shows it."""
        now = time.monotonic()
        states = {cell: self._state(work, cell) for cell in self._configs}
        changed = [cell for cell in states if states[cell] != self._states[cell]]
        if not changed and now - self._read < _READ:
            return
        self._read, self._states = now, states
        for cell in self._configs:
            if states[cell] == "running" or cell in changed:
                self._note(cell, now)
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif changed or now - self._said > _SAY:
            self._said = now
            for cell in self._configs:
                if cell in changed or states[cell] == "running":
                    line = "  ".join(filter(None, self._row(cell)))
                    self._console.print(line, highlight=False)

    @staticmethod
    def _state(work: Work, cell: Cell) -> str:
        if cell in work.running:
            return "running"
        if cell in work.failed:
            return "failed"
        return "waiting" if cell in work.folders else "done"

    def _note(self, cell: Cell, now: float) -> None:
        seen = self._seen[cell]
        for record in read_metrics(self._configs[cell].output.run_dir / "metrics.jsonl"):
            seen.step = max(seen.step, record["step"])
            if FRACTION in record:
                seen.evaluated = record
        if seen.since is None and seen.step > 0:
            seen.since = seen.step, now

    def _left(self, cell: Cell) -> float | None:
        """Seconds that a run will still take at the speed seen so far; None where none was seen."""
        seen = self._seen[cell]
        if seen.since is None or seen.step <= seen.since[0]:
            return None
        speed = (seen.step - seen.since[0]) / (time.monotonic() - seen.since[1])
        return (self._configs[cell].steps - seen.step) / speed

    def _row(self, cell: Cell) -> list[str]:
        seen, state = self._seen[cell], self._states[cell]
        left = self._left(cell) if state == "running" else None
        evaluated = seen.evaluated
        return [
            cell.name,
            state,
            f"update {seen.step}/{self._configs[cell].steps}",
            f"memorised {evaluated[FRACTION]:.0%}" if FRACTION in evaluated else "",
            f"G {evaluated[GAP]:.2f} nats" if GAP in evaluated else "",
            f"M {evaluated[SHARE]:.2f}" if SHARE in evaluated else "",
            "" if left is None else f"{left / 60:.0f} min left",
        ]

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), show_header=False)
        for cell in self._configs:
            table.add_row(*self._row(cell))
        return table
