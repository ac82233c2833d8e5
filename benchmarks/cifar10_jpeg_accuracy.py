"""Measures the accuracy of ResNet-20 weights on an archive of images.

    python benchmarks/cifar10_jpeg_accuracy.py --weights resnet20.safetensors --images test.npz

The archive holds `images` (uint8, (n, 32, 32, 3)) and `labels`. The weights expect the channel
statistics below. Prints one line of JSON: correct answers, images and accuracy in percent.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from deepzero_apps.vision import Images, load_weights, normalized, resnet
from deepzero_apps.vision.archives import images_from_npz

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description="accuracy of ResNet-20 weights on images")
    parser.add_argument("--weights", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--images", type=Path, required=True, help="an .npz of uint8 images")
    parser.add_argument("--depth", type=int, default=20, help="layers of the ResNet")
    parser.add_argument("--rows", type=int, default=500, help="images a batch")
    arguments = parser.parse_args(argv)

    images = images_from_npz(arguments.images)
    network = resnet(arguments.depth, classes=len(images.classes))
    load_weights(network, arguments.weights)
    correct = count_correct(normalized(network, MEAN, STD), images, rows=arguments.rows)
    accuracy = round(100 * correct / len(images), 2)
    print(json.dumps({"correct": correct, "images": len(images), "accuracy": accuracy}))
    return 0


@torch.no_grad()
def count_correct(network: torch.nn.Module, images: Images, *, rows: int) -> int:
    """Counts the images whose largest logit is their label's."""
    network.eval()
    correct = 0
    for start in range(0, len(images), rows):
        batch = slice(start, start + rows)
        answers = network(images.pixels(batch)).argmax(1)
        correct += int((answers == images.labels[batch]).sum())
    return correct


if __name__ == "__main__":
    raise SystemExit(main())
