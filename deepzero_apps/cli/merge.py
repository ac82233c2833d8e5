"""``deepzero-apps merge``: joins the votes of several workers into one run."""

__all__ = ["MergeSettings", "run"]

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from deepzero_apps.cli.driving import opened, write_json
from deepzero_apps.cli.recertify import conclude, refuse_taken
from deepzero_apps.cli.settings import CommonSettings, Misuse
from deepzero_apps.runs import RunFolder
from deepzero_apps.smoothing.recertify import merge, recertify, refuse_strangers
from deepzero_apps.smoothing.vote_log import read_votes

_WHOLE = "1/1"
# what a worker may have of its own; fingerprints of images and classifier tell what matters of it
_OWN = {"classifier", "device", "download", "root", "run", "threads", "weights"}


class MergeSettings(CommonSettings):
    """Joins certifications of disjoint images (certify --shard I/K) into one folder.

    Settings and classifier must be the same, and no image may have votes in two of them. What is
    missing can be certified there by ``certify --resume``.
    """

    parts: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The folders of the parts."""

    out: Path
    """The joint folder, new or empty."""


def run(settings: MergeSettings) -> int:
    """Merges, makes the certificates, and prints the table."""
    if not settings.parts:
        raise Misuse("parts must name one folder at least, got none")
    refuse_taken(settings.out)
    votes = [read_votes(part) for part in settings.parts]
    refuse_strangers(votes)
    config = _joint(settings.parts)
    with opened("merge", settings.out, settings, resume=False, record=config) as run_folder:
        joint = merge(votes, settings.out)
        certificates = recertify(joint, joint.settings)
        row = conclude(settings.out, certificates, title=f"{len(votes)} parts")
        result = {"images": len(certificates), "wanted": len(joint.images), "queries": joint.spent}
        run_folder.finish({**result, "seconds": row["seconds"]})
    write_json(settings.json_file, {"settings": config, "rows": [row]})
    return 0


def _joint(parts: Sequence[Path]) -> dict[str, Any]:
    """The settings that all parts share, which are those of the whole.

    Raises:
        Misuse: If the parts are of other images, or of another subject.
    """
    first, *others = ({**RunFolder(part).config, "shard": _WHOLE} for part in parts)
    for part, config in zip(parts[1:], others, strict=True):
        names = sorted((first.keys() | config.keys()) - _OWN)
        unequal = [name for name in names if first.get(name) != config.get(name)]
        if unequal:
            raise Misuse(
                f"parts must have equal settings, got another {', '.join(unequal)} in {part} than "
                f"in {parts[0]}"
            )
    return first
