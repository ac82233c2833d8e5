r"""A PhiFlow simulator's own step, differentiated: the first-order ceiling where PhiFlow is at hand.

A simulator that says its step in PhiFlow's terms runs on torch tensors as it does on numpy arrays.
Beside the library it is the same step, so the two agree within rounding and the tolerance of the
pressure solve. Through that solve, A p = q, PhiFlow differentiates implicitly:

.. math::
    \bar q = A^{-T} \bar p,

which is again a solve, made on the way back and to the same tolerance.

PhiFlow takes precision and library from global settings, and the solve on the way back takes
them at the time of ``backward``. Both passes are therefore wrapped in one `torch.autograd.Function`
that sets them for their duration alone. It can be differentiated once.
"""

__all__ = ["Agnostic", "PhiFlowTwin"]

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

with warnings.catch_warnings():
    # PhiML warns of its own experimental parts, and of numpy's old paths, while it is imported.
    warnings.simplefilter("ignore", DeprecationWarning)
    import phiml.math  # type: ignore[import-untyped]
    from phiml.backend.torch import TORCH  # type: ignore[import-untyped]


class Agnostic(Protocol):
    """A simulator whose step runs on the arrays of any library that PhiFlow knows."""

    @property
    def advance(self) -> Callable[..., tuple[Any, Any]]:
        """Fields, parameters, native part and forcing to new fields and native part."""
        ...


class PhiFlowTwin:
    """The `Twin` of a PhiFlow simulator.

    Args:
        simulator: The simulator, such as one of ``solvers.phiflow_wake``.

    Raises:
        TypeError: If ``simulator`` has no ``advance``.
    """

    def __init__(self, simulator: Agnostic) -> None:
        if not callable(getattr(simulator, "advance", None)):
            raise TypeError(
                f"simulator must have a method advance, got {type(simulator).__name__}, "
                "which has none; pass one of the PhiFlow simulators"
            )
        self._advance = simulator.advance

    def __call__(
        self,
        fields: Tensor,
        parameters: Tensor,
        native: Tensor | None = None,
        *,
        forcing: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Advances b states by one time step; differentiable in all of its arguments.

        Args:
            fields: Of shape ``(b, channels, *grid)``, float64.
            parameters: Of shape ``(b,)``, float64.
            native: The native parts, float64, where the simulator has any.
            forcing: An acceleration, of the shape of ``fields``, or None.

        Returns:
            New fields and new native parts.

        Raises:
            TypeError: If a tensor is not float64.
            FloatingPointError: If the pressure solve does not converge, there or back.
        """
        names = ("fields", "parameters", "native", "forcing")
        given = (fields, parameters, native, forcing)
        for name, tensor in zip(names, given, strict=True):
            if tensor is not None and tensor.dtype != torch.float64:
                raise TypeError(f"{name} must be float64, got {tensor.dtype}; use .double()")
        outputs: tuple[Tensor, Tensor | None] = _Step.apply(  # type: ignore[no-untyped-call]
            self._advance, *given
        )
        return outputs


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own signature
        advance: Callable[..., tuple[Any, Any]],
        *given: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        wanted = ctx.needs_input_grad[1:]
        leaves = [
            None if tensor is None else tensor.detach().requires_grad_(need)
            for tensor, need in zip(given, wanted, strict=True)
        ]
        with torch.set_grad_enabled(any(wanted)), _in_torch():
            outputs = advance(*leaves)
        ctx.leaves, ctx.outputs = leaves, outputs
        after, left = outputs
        return after.detach(), None if left is None else left.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - torch's own signature
        *cotangents: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        pairs = [
            (output, cotangent)
            for output, cotangent in zip(ctx.outputs, cotangents, strict=True)
            if output is not None and output.requires_grad and cotangent is not None
        ]
        wanted = [leaf for leaf in ctx.leaves if leaf is not None and leaf.requires_grad]
        outputs, weights = zip(*pairs, strict=True)
        with _in_torch():
            found = iter(
                torch.autograd.grad(outputs, wanted, weights, retain_graph=True, allow_unused=True)
            )
        missing = [leaf is None or not leaf.requires_grad for leaf in ctx.leaves]
        return None, *(None if none else next(found) for none in missing)


@contextlib.contextmanager
def _in_torch() -> Iterator[None]:
    """PhiFlow on torch in float64, for the time of a pass; its warnings are not the caller's."""
    with warnings.catch_warnings(), TORCH, phiml.math.precision(64):
        # Of sparse matrices in torch, and of how PhiFlow calls autograd functions.
        warnings.filterwarnings("ignore", module="phiml")
        try:
            yield
        except phiml.math.ConvergenceException as error:
            raise FloatingPointError(
                f"PhiFlow's pressure solve must converge, got: {error}; "
                "the flow may have blown up: shorten the time step or the forcing"
            ) from error
