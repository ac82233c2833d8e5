"""torchvision imports whatever build of torch it meets."""

import subprocess
import sys


def run(code: str) -> str:
    """Runs code in a new interpreter and returns its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip().splitlines()[-1]


def test_torchvision_imports_and_its_models_run() -> None:
    code = """
from deepzero_apps.vision.torchvision_cpu import torchvision_datasets
first, second = torchvision_datasets(), torchvision_datasets()
import torch, torchvision
answers = torchvision.models.resnet18(num_classes=3).eval()(torch.rand(2, 3, 32, 32))
print(first is second, first.CIFAR10.__name__, tuple(answers.shape))
"""
    assert run(code) == "True CIFAR10 (2, 3)"


def test_nothing_is_declared_a_second_time() -> None:
    code = """
import torch
from deepzero_apps.vision.torchvision_cpu import torchvision_datasets
torchvision_datasets()
import sys
for name in [name for name in sys.modules if name.startswith("deepzero_apps")]:
    del sys.modules[name]
from deepzero_apps.vision.torchvision_cpu import torchvision_datasets
print(torchvision_datasets().STL10.__name__)
"""
    assert run(code) == "STL10"


def test_digits_do_not_pay_for_torchvision() -> None:
    code = """
import sys
from deepzero_apps.vision import load
load("digits")
print("torchvision" in sys.modules)
"""
    assert run(code) == "False"
