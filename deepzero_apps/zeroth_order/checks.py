"""What was found out about a network while a gradient was estimated, named, told and kept.

A fast path is checked against the plain one once, at the weights of the first step that takes it.
At other weights the check might end in another way, and the path give other bits. So whoever goes on
with a run, in another process or after a stop, is told what was found and does not check again.
"""

__all__ = ["Checking", "Checks", "case_of"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Checking(Protocol):
    """A gradient that checks fast paths, and can tell what it found."""

    def checked(self, network: nn.Module) -> Mapping[str, int]:
        """Tells what was found out about a network.

        Args:
            network: The network.

        Returns:
            Findings by the names of their cases, see `case_of`; for `believe` of an equal
            gradient, and an equal network, wherever they are.
        """
        ...

    def believe(self, network: nn.Module, checked: Mapping[str, int]) -> None:
        """Takes up what `checked` told, in place of what is known here.

        Args:
            network: The network.
            checked: What was told.
        """
        ...


@dataclass(frozen=True)
class Checks:
    """What a gradient has found out, as a companion of `Training`: a run that resumes is told.

    Args:
        gradient: The gradient.
        network: The network that it is a gradient of.
    """

    gradient: Checking
    network: nn.Module

    def state_dict(self) -> dict[str, int]:
        """Returns what was found."""
        return dict(self.gradient.checked(self.network))

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Takes up what ``state_dict()`` returned."""
        self.gradient.believe(self.network, state)


def case_of(network: nn.Module, inputs: Tensor) -> str:
    """Names what a check depends on besides weights: the modes of all modules, and kind of inputs.

    Args:
        network: The network.
        inputs: What it is given.

    Returns:
        The name, equal in all processes.
    """
    modes = "".join("1" if module.training else "0" for module in network.modules())
    shape = "x".join(map(str, inputs.shape))
    return f"{modes} {shape} {inputs.dtype} {inputs.device}"
