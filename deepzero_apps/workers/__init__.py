"""Work in many processes, on one machine or a cluster: by Ray, and without a scheduler of ours.

    | processes that hold an object each, are asked, die and are replaced | :class:`Pool`
    | how many of them, and where                                         | :class:`Where`
    | a gradient whose pieces they measure                                | :class:`Sharded`

Ray is an extra: ``pip install deepzero-apps[ray]``. Nothing here imports it before a pool is opened.
"""

__all__ = ["Pool", "Sharded", "Shared", "Where", "WorkersLost"]

from deepzero_apps.workers.pool import Pool, Shared, WorkersLost
from deepzero_apps.workers.sharded import Sharded
from deepzero_apps.workers.where import Where
