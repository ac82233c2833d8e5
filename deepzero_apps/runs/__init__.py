"""A run's folder: its settings, metrics, checkpoints and result, written whole or not at all.

    | settings, lock, metrics, result | :class:`RunFolder`
    | one tree of tensors and numbers in one file | :func:`save_file`, :func:`load_file`
    | every refusal | :class:`RunFolderError`

No file here is ever unpickled. POSIX only: the lock is ``flock``, and renaming over a file is atomic.
"""

__all__ = ["RunFolder", "RunFolderError", "load_file", "save_file"]

from deepzero_apps.runs.files import RunFolderError
from deepzero_apps.runs.folder import RunFolder
from deepzero_apps.runs.tensorfile import load_file, save_file
