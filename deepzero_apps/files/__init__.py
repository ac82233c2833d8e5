"""Files that survive a crash: replaced as a whole, extended by whole lines, locked by one process.

    | a file's whole content replaced               | :func:`replace`
    | lines appended by one process                 | :class:`LineFile`, :func:`append`, :func:`lines_of`
    | a file that says who is at work in a folder   | :func:`lock`, :class:`InUse`
    | an ``OSError`` told with a way out            | :func:`explained`

What is done here raises ``OSError``; whoever builds on it says what that means for a run, a
journal or a folder of trajectories. POSIX only: locks are ``flock``, and renaming over a file is
atomic.
"""

__all__ = ["InUse", "LineFile", "append", "explained", "lines_of", "lock"]
__all__ += ["is_temporary", "remove_temporary", "replace", "sync"]

from deepzero_apps.files.atomic import is_temporary, remove_temporary, replace, sync
from deepzero_apps.files.errors import explained
from deepzero_apps.files.lines import LineFile, append, lines_of
from deepzero_apps.files.locks import InUse, lock
