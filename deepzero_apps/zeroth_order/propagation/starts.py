"""Where a difference starts: at the operation whose weight moves.

The output of a convolution, a linear layer or a normalization differs on one channel; that of
any other module is evaluated again for each move and subtracted; a parameter that
the network uses by itself differs in one entry.
"""

__all__ = ["moves_weights", "start"]

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional

from deepzero_apps.zeroth_order.base_pass import BasePass, Value
from deepzero_apps.zeroth_order.propagation.delta import Delta
from deepzero_apps.zeroth_order.propagation.fallback import differences_of
from deepzero_apps.zeroth_order.propagation.linear_layers import moved_convolution, moved_linear
from deepzero_apps.zeroth_order.state import Weights

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def start(
    base: BasePass,
    site: fx.Node,
    weights: Weights,
    *,
    index: int,
    offsets: Sequence[int],
    mu: float,
) -> Value:
    """Finds how the value of a site differs when one entry of its parameter moves.

    Args:
        base: The base pass.
        site: The only node that uses the parameter.
        weights: The network's weights.
        index: The parameter's number.
        offsets: The entry that moves in each of K networks.
        mu: The step.

    Returns:
        The differences of the site's value.
    """
    parameter = weights.parameters[index]
    if site.op == "get_attr":
        return _one_entry(parameter, offsets, mu)
    if moves_weights(base, site):
        return _one_by_one(base, site, weights, index=index, offsets=offsets, mu=mu)
    module, x = base.modules[site], base.values[site.all_input_nodes[0]]
    name = "weight" if getattr(module, "weight", None) is parameter else "bias"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return moved_convolution(module, name, x=x, offsets=offsets, mu=mu)
    if isinstance(module, nn.Linear):
        return moved_linear(module, name, x=x, offsets=offsets, mu=mu)
    return _moved_norm(module, name, x, offsets=offsets, mu=mu)


def moves_weights(base: BasePass, site: fx.Node) -> bool:
    """Tells whether `start` moves the weights themselves, which no other thread may see.

    Args:
        base: The base pass.
        site: The only node that uses a parameter.

    Returns:
        Whether the site is neither a parameter by itself nor a module with a formula.
    """
    if site.op == "get_attr":
        return False
    module, x = base.modules[site], base.values[site.all_input_nodes[0]]
    if type(module) in _CONVOLUTIONS:
        return bool(x.ndim != module.weight.ndim)
    return type(module) is not nn.Linear and _channels_of_norm(module, x) is None


def _moved_norm(
    module: nn.Module, name: str, x: Tensor, *, offsets: Sequence[int], mu: float
) -> Delta:
    dim = _channels_of_norm(module, x)
    assert dim is not None
    channels = torch.tensor(offsets, device=x.device)
    if name == "bias":
        shape = [1 if d == dim else size for d, size in enumerate(x.shape)]
        return Delta(x.new_full((len(offsets), *shape), mu), channels, dim)
    picked = _normalized(module, x).index_select(dim, channels)
    return Delta(mu * picked.movedim(dim, 0).unsqueeze(dim + 1), channels, dim)


def _one_entry(parameter: nn.Parameter, offsets: Sequence[int], mu: float) -> Delta:
    values = parameter.detach().new_zeros(len(offsets), parameter.numel())
    numbers = torch.tensor(offsets, device=values.device)
    values[torch.arange(len(offsets), device=values.device), numbers] = mu
    return Delta(values.view(-1, *parameter.shape))


def _channels_of_norm(module: nn.Module, x: Tensor) -> int | None:
    if type(module) in (*_BATCH_NORMS, nn.GroupNorm):
        return 1
    if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
        return x.ndim - 1
    return None


def _normalized(module: nn.Module, x: Tensor) -> Tensor:
    """The value that a normalization multiplies by its weight."""
    if isinstance(module, nn.LayerNorm):
        return functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return functional.group_norm(x, module.num_groups, eps=module.eps)
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    training = module.training or module.running_mean is None
    mean, variance = (None, None) if training else (module.running_mean, module.running_var)
    return functional.batch_norm(x, mean, variance, training=training, eps=module.eps)


def _copied(value: Value) -> Value:
    return value.clone() if isinstance(value, Tensor) else value


def _one_by_one(
    base: BasePass,
    site: fx.Node,
    weights: Weights,
    *,
    index: int,
    offsets: Sequence[int],
    mu: float,
) -> Value:
    outputs = []
    for offset in offsets:
        with weights.moved(index, offset, mu):
            output = base.apply(site, base.values.__getitem__)
            # an expanded or transposed weight would move back with it
            outputs.append(map_aggregate(output, _copied))
    return differences_of(outputs, base.values[site])
