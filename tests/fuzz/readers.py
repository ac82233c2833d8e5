"""Every reader of what a stranger may have written: valid files, how they are broken, what may be raised.

A reader is handed broken content and may refuse it with an error that it documents. Anything else
that it raises is a fault: that, a hang and an explosion of memory are what fuzzing looks for.
"""

__all__ = ["READERS", "Reader"]

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from tests.fuzz import archives, command_line, folders, services
from tests.fuzz.mutations import mutated

Mutation = Callable[[Random, bytes], bytes]


@dataclass(frozen=True)
class Reader:
    """Something that reads what a stranger may have written.

    Args:
        name: What it is called, here and in the corpus.
        seeds: Makes valid contents.
        mutation: Breaks one of them.
        read: Reads a content; the folder is for files.
        errors: What it documents to raise.
        share: How many inputs it gets of a thousand.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    mutation: Mutation
    read: Callable[[bytes, Path], object]
    errors: tuple[type[BaseException], ...]
    share: int

    def broken(self, random: Random) -> bytes:
        """A broken content."""
        seeds = _valid(self.name)
        content = self.mutation(random, random.choice(seeds))
        return mutated(random, content, tuple(seeds)) if random.random() < 0.1 else content

    def accepts(self, content: bytes, folder: Path) -> bool:
        """Reads a content; false if it is refused with a documented error."""
        try:
            self.read(content, folder)
        except self.errors:
            return False
        return True


@cache
def _valid(name: str) -> list[bytes]:
    return READERS[name].seeds()


READERS = {
    entry[0]: Reader(*entry)
    for part in (services, archives, folders, command_line)
    for entry in part.ENTRIES
}
