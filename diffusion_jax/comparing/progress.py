"""How far a long comparison is: a bar on a terminal, lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Called with what was done since the last call, and a line that says what that was.
Advance = Callable[[float, str], None]


@contextmanager
def advancing(console: Console, what: str, total: float) -> Iterator[Advance]:
    """Shows how much of a total is done.

    Args:
      console: where.
      what: is done, in a word.
      total: in any unit, such as estimated seconds.
    """
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(
        TextColumn(what), *columns, console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total)

        def advance(done: float, line: str) -> None:
            bar.advance(task, done)
            if bar.disable:
                console.print(line, highlight=False, markup=False)

        yield advance
