"""What the subpackages export: additions and removals are decided, not accidental."""

import importlib

import pytest

SURFACE = {
    "deepzero_apps": ["__version__"],
    "deepzero_apps.cli": ["main"],
    "deepzero_apps.correction": [
        "Corrected",
        "Corrector",
        "Credit",
        "Loop",
        "Objective",
        "Problem",
        "Simulator",
        "Trajectories",
        "Windowed",
        "correction_training",
        "probe",
        "rollout",
    ],
    "deepzero_apps.runs": ["RunFolder", "RunFolderError", "load_file", "save_file"],
    "deepzero_apps.smoothing": [
        "Certificate",
        "Classifier",
        "ClassifierError",
        "Defended",
        "Settings",
        "certify",
        "predict",
    ],
    "deepzero_apps.smoothing.reporting": [
        "Row",
        "plot_certified_accuracy",
        "plot_images",
        "summarize",
        "table",
        "write_page",
    ],
    "deepzero_apps.smoothing.services": ["HttpClassifier", "Service"],
    "deepzero_apps.smoothing.serving": ["Limits", "Subject"],
    "deepzero_apps.smoothing.verification": ["Claim", "Finding", "Report", "verify"],
    "deepzero_apps.vision": [
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
    ],
    "deepzero_apps.zeroth_order": [
        "Activations",
        "Coordinates",
        "Fastest",
        "FirstOrder",
        "Meter",
        "Oracle",
        "Randomized",
        "SupportSchedule",
        "Training",
        "bridge",
        "coordinate",
        "randomized",
    ],
    "deepzero_apps.zeroth_order.propagation": ["Delta", "Propagation", "rule"],
}


@pytest.mark.parametrize("package", sorted(SURFACE))
def test_the_surface_is_the_listed_one_and_importable(package: str) -> None:
    module = importlib.import_module(package)

    assert sorted(module.__all__) == SURFACE[package]
    for name in module.__all__:
        assert getattr(module, name) is not None
