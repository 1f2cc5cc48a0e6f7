"""Names that others gave, made legible."""

import os

import pytest

from diffusion_jax.runtime.text import shown


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"caf\xe9 \xff", r"caf\xe9 \xff"),
        ("café 猫 😀 שלום \\ $x$ [red] <b>", "café 猫 😀 שלום \\ $x$ [red] <b>"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\u202etxt.exe\u2066", r"\u202etxt.exe\u2066"),
        ("\ud800\U000e0001", r"\ud800\U000e0001"),
        ("", ""),
    ],
)
def test_what_is_not_legible_is_escaped_and_nothing_else(name, text):
    name = os.fsdecode(name)
    assert shown(name) == text
    assert shown(text) == text
    shown(name).encode()  # any stream and file can have it
