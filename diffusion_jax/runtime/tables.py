"""Tables on a console."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_ENDLESS = 10_000


def print_table(console: Console, table: Table) -> None:
    """Prints a table at its full width, however narrow the console: no cell is cut or broken.

    On a narrow terminal its lines run over; in a file, which has no width, nothing is lost.
    """
    before = console.width
    needed = Measurement.get(console, console.options.update(width=_ENDLESS), table).maximum
    console.width = max(before, needed)  # print() takes no width above the console's
    try:
        console.print(table, crop=False)
    finally:
        console.width = before
