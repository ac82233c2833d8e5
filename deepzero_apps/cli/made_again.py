"""What a certify run was about, made again from its settings: images, denoiser, classifier."""

__all__ = ["certified_images", "certifying", "classifier_again"]

from pathlib import Path

from pydantic import ValidationError
from torch import nn

from deepzero_apps.cli.certify import CertifySettings
from deepzero_apps.cli.choices import splits_for
from deepzero_apps.cli.defend import DefendSettings, deployed
from deepzero_apps.cli.imported import refuse_unnamed
from deepzero_apps.cli.scenes import scene
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.runs import RunFolder
from deepzero_apps.smoothing.blackbox import Defended
from deepzero_apps.vision import Images


def certifying(folder: Path, *, device: str) -> CertifySettings:
    """Reads the settings of a certify run, or of the run whose votes were certified again.

    Args:
        folder: Its folder.
        device: Where networks run now.

    Raises:
        Misuse: If the folder's settings are not those of such a run.
    """
    config = RunFolder(folder).config
    if config.get("command") == "recertify":
        config = RunFolder(str(config.get("run"))).config
    try:
        return CertifySettings(**{**config, "device": device})
    except ValidationError as error:
        raise Misuse(f"{folder} must hold a certify run, got other settings: {error}") from error


def certified_images(settings: CertifySettings) -> Images:
    """Loads the images of a run, on the CPU; nothing is downloaded.

    Args:
        settings: The run's settings.

    Raises:
        Misuse: If the data cannot be had.
    """
    splits = splits_for(settings.dataset, root=settings.root, download=False, seed=settings.seed)
    return settings.votes.part_of(splits)


def classifier_again(settings: CertifySettings, folder: Path, named: str) -> tuple[str, str]:
    """Makes denoiser and classifier of a run again; nothing is downloaded.

    Args:
        settings: The run's settings.
        folder: Its folder.
        named: The classifier as the user names it: needed again for one that runs code or is asked.

    Returns:
        The fingerprint of both together, and what has changed if it is not the one expected.

    Raises:
        Misuse: If one of them cannot be had.
    """
    offline = {"download": False}
    if settings.run is None:
        refuse_unnamed("--classifier", settings.classifier, named, folder)
        box = scene(settings.model_copy(update=offline)).box
        return Defended(nn.Identity(), box.classifier).fingerprint, "classifier"
    source = RunFolder(settings.run)
    trained = DefendSettings(**{**source.config, "device": settings.device})
    refuse_unnamed("--classifier", trained.classifier, named, settings.run)
    view = scene(trained.model_copy(update=offline))
    denoiser = deployed(trained, settings.run, view)
    known = (source.result() or {}).get("classifier")
    suspect = "denoiser" if known == view.box.classifier.fingerprint else "classifier"
    return Defended(denoiser, view.box.classifier).fingerprint, suspect
