"""What image applications share: data sets, augmentation and classifiers."""

__all__ = [
    "DATASETS",
    "Images",
    "Splits",
    "adjustable_cnn",
    "augment",
    "digits",
    "image_folder",
    "load",
    "load_weights",
    "normalized",
    "npz",
    "resnet",
]

from deepzero_apps.vision.archives import npz
from deepzero_apps.vision.augmentation import augment
from deepzero_apps.vision.classifiers import adjustable_cnn, load_weights, normalized, resnet
from deepzero_apps.vision.datasets import DATASETS, digits, load
from deepzero_apps.vision.folders import image_folder
from deepzero_apps.vision.images import Images, Splits
