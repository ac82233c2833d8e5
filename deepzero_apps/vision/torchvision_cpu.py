"""Imports torchvision where its compiled operators do not load.

The torchvision wheel of the package index is built for CUDA. Beside a CPU-only torch its compiled
library cannot be loaded, and ``import torchvision`` fails with "operator torchvision::nms does not
exist": two operators (non-maximum suppression, plain and quantized) get their shape rules
registered without having been declared. Declaring their signatures, without an implementation, is
enough: data sets, transforms and models need neither.

Nothing is declared where torchvision imports by itself: a matching build brings its own operators,
and to declare them twice would be an error. torchvision takes about a second to import, so it is
imported when first asked for.
"""

__all__ = ["torchvision_datasets"]

import importlib
from functools import cache
from types import ModuleType

import torch


def torchvision_datasets() -> ModuleType:
    """Returns the module ``torchvision.datasets``.

    Raises:
        ImportError: If torchvision is not installed.
        RuntimeError: If torchvision is installed and fails for another reason than its operators.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    _declare_operators()
    return importlib.import_module("torchvision.datasets")


@cache  # a declaration lasts as long as its Library object, which must therefore be kept
def _declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
