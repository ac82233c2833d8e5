r"""Activations and other functions of one number, in forms that do not cancel.

For a base value a and its difference d:

==================== ==================================================================
clamp to [l, h]      clamp(d + (a - c), l - c, h - c) with c = clamp(a); ReLU is l = 0
tanh                 :math:`\sinh d \,/\, (\cosh a \cosh(a + d))`
sigmoid              half of tanh at halves
exp                  :math:`e^a (e^d - 1)`
log                  :math:`\log(1 + d / a)`
softplus             :math:`\log(1 + \sigma(a) (e^d - 1))`
==================== ==================================================================

Where d is large, and nothing cancels, functions that would overflow are subtracted as they are.
All keep a difference on one channel. So does dropout, a factor that is drawn again from where the
base pass drew it.
"""

__all__: list[str] = []

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.zeroth_order.base_pass import Value
from deepzero_apps.zeroth_order.propagation.delta import Delta
from deepzero_apps.zeroth_order.propagation.table import Call, Rule, rule

Form = Callable[[Tensor, Tensor], Tensor]
"""Base values a and differences d to f(a + d) - f(a)."""


def _pointwise(form: Form) -> Rule:
    def passed(call: Call) -> Value:
        if len(call.args) > 1 or (call.module is None and set(call.kwargs) - {"inplace"}):
            return NotImplemented
        return _through(form, call)

    return passed


def _through(form: Form, call: Call) -> Delta:
    delta = call.delta
    return delta.replaced(form(call.base(delta), delta.values))


def clamped(a: Tensor, d: Tensor, low: float, high: float) -> Tensor:
    """The difference of a clamp; an infinite bound is none."""
    c = a.clamp(low, high)
    y = d + (a - c)
    if low > -math.inf:
        y = torch.maximum(y, low - c)
    return torch.minimum(y, high - c) if high < math.inf else y


@rule(nn.ReLU, functional.relu, torch.relu, "relu")
def rectified(call: Call) -> Delta:
    """ReLU: max(d + min(a, 0), -max(a, 0))."""
    return _through(lambda a, d: torch.maximum(d + a.clamp(max=0), -a.clamp(min=0)), call)


@rule(nn.ReLU6, functional.relu6)
def rectified_to_six(call: Call) -> Delta:
    """ReLU6, a clamp to [0, 6]."""
    return _through(lambda a, d: clamped(a, d, 0.0, 6.0), call)


@rule(nn.Hardtanh, functional.hardtanh)
def hard_tanh(call: Call) -> Delta:
    """Hard tanh, a clamp."""
    low, high = call.setting(1, "min_val", -1.0), call.setting(2, "max_val", 1.0)
    return _through(lambda a, d: clamped(a, d, low, high), call)


@rule(nn.LeakyReLU, functional.leaky_relu)
def leaky(call: Call) -> Delta:
    """Leaky ReLU: a line of slope s and (1 - s) ReLU."""
    s = call.setting(1, "negative_slope", 0.01)
    return _through(lambda a, d: s * d + (1 - s) * clamped(a, d, 0.0, math.inf), call)


def _tanh(a: Tensor, d: Tensor) -> Tensor:
    moved = a + d
    small = torch.sinh(d.clamp(-1, 1)) / (torch.cosh(a) * torch.cosh(moved))
    return torch.where(d.abs() < 1, small, torch.tanh(moved) - torch.tanh(a))


def _sigmoid(a: Tensor, d: Tensor) -> Tensor:
    return _tanh(a / 2, d / 2) / 2


def _silu(a: Tensor, d: Tensor) -> Tensor:
    return d * torch.sigmoid(a) + (a + d) * _sigmoid(a, d)


def _softplus(a: Tensor, d: Tensor) -> Tensor:
    return torch.where(
        d.abs() < 1,
        torch.log1p(torch.sigmoid(a) * torch.expm1(d.clamp(-1, 1))),
        functional.softplus(a + d) - functional.softplus(a),
    )


def _gelu(a: Tensor, d: Tensor) -> Tensor:
    wide, moved = a.double(), a.double() + d
    difference: Tensor = moved * torch.special.ndtr(moved) - wide * torch.special.ndtr(wide)
    return difference.to(a.dtype)


def _abs(a: Tensor, d: Tensor) -> Tensor:
    return torch.where((a + d).sign() == a.sign(), a.sign() * d, (a + d).abs() - a.abs())


_FORMS: dict[tuple[object, ...], Form] = {
    (nn.Tanh, torch.tanh, "tanh"): _tanh,
    (nn.Sigmoid, torch.sigmoid, "sigmoid"): _sigmoid,
    (nn.SiLU, functional.silu): _silu,
    (torch.exp, "exp"): lambda a, d: a.exp() * torch.expm1(d),
    (torch.log, "log"): lambda a, d: torch.log1p(d / a),
    (torch.square, "square"): lambda a, d: d * (2 * a + d),
    (torch.sqrt, "sqrt"): lambda a, d: d / ((a + d).sqrt() + a.sqrt()),
    (torch.reciprocal, "reciprocal"): lambda a, d: -d / (a * (a + d)),
    (torch.abs, "abs"): _abs,
}
for names, form in _FORMS.items():
    rule(*names)(_pointwise(form))


@rule(nn.GELU, functional.gelu)
def gelu(call: Call) -> Value:
    """GELU x Phi(x) in float64; its tanh form goes to the fallback."""
    exact = call.setting(1, "approximate", "none") == "none"
    return _through(_gelu, call) if exact else NotImplemented


@rule(nn.Softplus, functional.softplus)
def softplus(call: Call) -> Value:
    """Softplus with its own settings only; others go to the fallback."""
    plain = call.setting(1, "beta", 1) == 1 and call.setting(2, "threshold", 20) == 20
    return _through(_softplus, call) if plain else NotImplemented


@rule(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, functional.dropout)
def dropped(call: Call) -> Value:
    """Dropout is a factor, drawn again from where the base pass drew it."""
    if isinstance(call.module, nn.AlphaDropout):
        return NotImplemented if call.module.training else call.delta
    if not call.moving:
        return Delta(call.operation(call.dense, *call.args[1:], **call.kwargs))
    factor = call.once(
        "factor", lambda: call.operation(torch.ones_like(call.x), *call.args[1:], **call.kwargs)
    )
    return call.delta.replaced(call.delta.values * call.delta.on(factor))
