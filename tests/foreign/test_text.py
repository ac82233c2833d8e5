"""What a terminal is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepzero_apps.foreign import printable


@pytest.mark.parametrize("text", ["", "plain", "zwölf Ähren", "猫", "two\nlines\tand a tab"])
def test_plain_text_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jx", r"\x1b[2Jx"),  # clears the screen
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),  # the same as ESC [ in one byte
        ("a\rb\x08c\x7f", r"a\rb\x08c\x7f"),
        ("abc\u202edef", r"abc\u202edef"),  # written from right to left
        ("\ud800", r"\ud800"),
        ("\u2028", r"\u2028"),
    ],
)
def test_what_a_terminal_obeys_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(codec=None)))
def test_everything_comes_out_printable_and_can_be_encoded(text: str) -> None:
    shown = printable(text)

    assert all(c.isprintable() or c in "\n\t" for c in shown)
    shown.encode()
    assert printable(shown) == shown
