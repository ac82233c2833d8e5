"""``deepzero-apps merge``: joins the votes of several workers into one run."""

__all__ = ["MergeSettings", "run"]

from pathlib import Path
from typing import Annotated

import tyro

from deepzero_apps.cli.driving import write_json
from deepzero_apps.cli.recertify import conclude
from deepzero_apps.cli.settings import CommonSettings, Misuse
from deepzero_apps.runs import RunFolder
from deepzero_apps.smoothing.recertify import merge, recertify
from deepzero_apps.smoothing.vote_log import read_votes

_WHOLE = "1/1"


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
    votes = [read_votes(part) for part in settings.parts]
    config = {**RunFolder(settings.parts[0]).config, "shard": _WHOLE}
    with RunFolder.create(settings.out, config, resume=False) as run_folder:
        joint = merge(votes, settings.out)
        certificates = recertify(joint, joint.settings)
        row = conclude(settings.out, certificates, title=f"{len(votes)} parts")
        result = {"images": len(certificates), "wanted": len(joint.images), "queries": joint.spent}
        run_folder.finish({**result, "seconds": row["seconds"]})
    write_json(settings.json_file, {"settings": config, "rows": [row]})
    return 0
