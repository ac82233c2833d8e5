"""What strangers wrote, read within limits: files of settings, archives of arrays, text for a terminal.

Such a file may be damaged, or made to harm: to exhaust memory, to run code, to draw on the
terminal. What is read here is refused with a ``ValueError`` or comes out harmless.
"""

__all__ = ["printable", "read_arrays", "read_mapping", "refuse_bomb"]

from deepzero_apps.foreign.arrays import read_arrays, refuse_bomb
from deepzero_apps.foreign.mappings import read_mapping
from deepzero_apps.foreign.text import printable
