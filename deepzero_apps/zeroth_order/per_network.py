"""What was found out about a network, kept for as long as the network lives."""

__all__ = ["PerNetwork"]

from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

Known = TypeVar("Known")


class PerNetwork(WeakKeyDictionary[nn.Module, Known]):
    """Networks to what is known of them; it stays behind in its process.

    An object that holds one may be sent to another process, whose networks are others: there it
    arrives empty.
    """

    def __reduce__(self) -> tuple[type["PerNetwork[Any]"], tuple[()]]:
        """Leaves the contents behind."""
        return PerNetwork, ()
