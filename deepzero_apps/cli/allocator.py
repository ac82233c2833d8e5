"""How the C library hands memory out.

By default glibc returns large blocks to the system when they are freed and asks for them again at
the next layer. Every fresh page then costs a fault, which is a tenth of the time of a network that
is evaluated over and over. Kept blocks cost memory that the process has used once anyway.
"""

__all__ = ["keep_freed_memory"]

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 2**30


def keep_freed_memory() -> bool:
    """Lets the process reuse freed blocks of up to a gigabyte.

    Returns:
        Whether the C library took it up; any but glibc does not.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGE) and mallopt(_TRIM_THRESHOLD, _LARGE))
