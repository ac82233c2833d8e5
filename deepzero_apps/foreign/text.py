"""Text that a terminal shows and does not obey."""

__all__ = ["printable"]


def printable(text: str) -> str:
    r"""Writes out what a terminal would act on instead of showing it.

    Control characters can recolor, move, overwrite or retitle, and those that turn the direction of
    writing can make a text read as another.

    Args:
        text: Any text, lone surrogates included.

    Returns:
        The text, with an escape such as ``\x1b`` for each character that is not shown. Line breaks
        and tabs stay.

    Example:
        >>> printable("cat" + chr(27) + "[2J")
        'cat\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
