"""The table of a call of `gpu_check`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.tools.check.task import BROKEN
from experiments.tools.speed.tables import markdown


def table(about: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    """What was measured, as Markdown.

    Args:
      about: the card, the driver and so on, by name.
      lines: of the items, as results.jsonl holds them.
    """
    head = "\n".join(f"- {name}: {value}" for name, value in about.items())
    rows = [row for line in lines for row in _rows(line)]
    broken = [f"- {line['item']}, {what}" for line in lines for what in _broken(line)]
    foot = "\n\nBounds broken:\n\n" + "\n".join(broken) if broken else ""
    title = "Tiny: nothing here is a measurement" if about.get("tiny") else "GPU check"
    return f"## {title}\n\n{head}\n\n{markdown(['item', 'what', 'found'], rows)}{foot}\n"


def _broken(line: Mapping[str, Any]) -> list[str]:
    return list(line["found"].get(BROKEN, []))


def _rows(line: Mapping[str, Any]) -> Iterator[list[str]]:
    state = f"{line['status']}, {line['seconds']:.0f} s"
    yield [line["item"], state, str(line.get("error", ""))[:120]]
    for what, value in _flat(line["found"]):
        yield ["", what, f"{value:.4g}" if isinstance(value, float) else str(value)]


def _flat(found: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of nested dictionaries; lists are for results.jsonl alone."""
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}: ")
        elif not isinstance(value, list) and name != "error":
            yield f"{above}{name}", value
