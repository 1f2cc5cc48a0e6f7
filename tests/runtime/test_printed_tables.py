"""Tables are printed whole on any console."""

import io

from rich.console import Console
from rich.table import Table

from diffusion_jax.runtime.tables import print_table


def test_nothing_is_cut_or_broken_on_a_narrow_console():
    table, cells = Table(), [f"value {i} [0.12345, 0.6789{i}]" for i in range(6)]
    for i in range(6):
        table.add_column(f"column {i}")
    table.add_row(*cells)
    file = io.StringIO()
    print_table(Console(file=file, width=40), table)
    lines = file.getvalue().splitlines()
    assert any(all(cell in line for cell in cells) for line in lines)
    assert len(lines) == 5  # three of the box, a header, a row
