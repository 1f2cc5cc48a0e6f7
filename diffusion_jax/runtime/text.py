"""Names that others gave, such as those of folders and classes, where they are shown."""

from collections.abc import Callable


def shown(text: str, legible: Callable[[str], bool] = str.isprintable) -> str:
    r"""A text whose characters are all legible: the others are escaped as Python escapes them.

    A file's name is any bytes, and a label any characters: a line break or a terminal's commands
    among them, or what is no UTF-8 and no stream or file can be written with. A byte that is not
    UTF-8 is shown as `\xe9`, other characters as `\n`, `\x1b` or `\u202e`; a backslash stays one.

    Args:
      text: in one line.
      legible: whether a character may stay as it is; by default, whether it is printable.
    """
    return "".join(each if legible(each) else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # how Python holds a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
