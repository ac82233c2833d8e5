r"""Counts the operations that a piece of code starts, and the bytes that they have to move.

Every operation of torch reads its arguments and writes its results once; views, and memory that is
only reserved, cost nothing. So an operation on tensors of :math:`s_a` bytes that makes one of
:math:`s_y` counts :math:`\sum_a s_a + s_y`, with these exceptions:

- a tensor that is expanded counts what is behind it, not what it seems to hold;
- an index or a gather reads as much as it makes, and writing to an index as much as is written;
- a copy, a fill and the like do not read what they overwrite.

For operations run one after another, each over more than the caches hold, this is the least that
memory must carry. What a library does inside, such as changes of layout before a convolution, comes
on top. Kernels of one's own that torch does not dispatch (numba, Triton, replays of CUDA graphs)
are not seen.
"""

__all__ = ["Traffic"]

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PICKING = {"index", "index_select", "gather", "take"}
PUTTING = {"index_put_", "_index_put_impl_", "scatter_"}
OVERWRITING = {"copy_", "fill_", "zero_"}
RESERVING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Traffic(TorchDispatchMode):
    """Counts while it is active.

    Attributes:
        operations: The operations that were started: on a GPU kernels, or a few at a time.
        bytes: What they have to read and to write.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self.bytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Runs an operation and counts it."""
        result = func(*args, **(kwargs or {}))
        name = str(func).split(".")[1]
        read, made = _tensors((args, kwargs)), _tensors(result)
        if name not in RESERVING and not _is_view(read, made, changes=name.endswith("_")):
            self.operations += 1
            self.bytes += _moved(name, read, made)
        return result


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _is_view(read: list[Tensor], made: list[Tensor], *, changes: bool) -> bool:
    known = {tensor.untyped_storage().data_ptr() for tensor in read}
    return not changes and any(t.untyped_storage().data_ptr() in known for t in made if t.numel())


def _moved(name: str, read: list[Tensor], made: list[Tensor]) -> int:
    written = sum(map(_bytes, made))
    if name in PICKING:
        return 2 * written + sum(map(_bytes, read[1:]))
    if name in PUTTING:
        return _bytes(read[-1]) + sum(map(_bytes, read[1:]))
    if name in OVERWRITING:
        return written + sum(map(_bytes, read[1:]))
    return written + sum(map(_bytes, read))


def _bytes(tensor: Tensor) -> int:
    """What is behind a tensor: entries that only repeat others lie there once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    entries = prod(size for size, stride in sizes if stride or not size)
    return min(entries * tensor.element_size(), tensor.untyped_storage().nbytes())
