"""How many workers, on which machines, with what each: and the connection to Ray that this takes."""

__all__ = ["Connection", "Where"]

import os
import secrets
import socket
import subprocess
import sys
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

_KNOCK = 10.0
"""Seconds that a cluster has to accept a connection."""

_STATUS = 30.0
"""Seconds that Ray's own command has to find a cluster behind the connection; it takes about one."""

_ADDRESS = "auto, HOST:PORT or ray://HOST:PORT"


@dataclass(frozen=True)
class Where:
    """Where workers run.

    Args:
        count: The number of workers; by default one for each GPU or each ``threads`` CPUs that
            the cluster has, on this machine alone 1.
        cluster: The address of a running Ray cluster: ``auto``, ``HOST:PORT`` or
            ``ray://HOST:PORT``; by default the workers are processes of this machine.
        threads: The threads, and so the CPUs, of each worker.
        device: What each computes on: ``cpu``, or ``cuda`` for a GPU of its own. Where
            there are fewer GPUs than workers, they share them evenly.

    Raises:
        ValueError: If ``count`` or ``threads`` is not positive, or ``cluster`` is empty.
    """

    count: int | None = None
    cluster: str | None = None
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, value in (("workers", self.count), ("threads", self.threads)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.cluster is not None and not self.cluster.strip():
            raise ValueError(f"cluster must be {_ADDRESS}, got an empty text")

    @property
    def on_gpu(self) -> bool:
        """Whether workers compute on GPUs."""
        return self.device.startswith("cuda")


class Connection:
    """Ray, started on this machine or joined where it runs, and left as it was found.

    Ray runs whatever code it is sent, and listens on all of a machine's addresses. So a Ray that is
    started here answers only who knows a secret that is drawn for it; it has no dashboard, and
    reports to nobody.

    Args:
        where: Where workers are to run.

    Attributes:
        ray: The module.
        count: The number of workers.
        options: What Ray reserves for each worker.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ConnectionError: If no cluster answers at the address.
        ValueError: If the cluster has no GPU and one is wanted.
    """

    def __init__(self, where: Where) -> None:
        if where.cluster is None and "ray" not in sys.modules:
            _keep_to_ourselves()  # Ray looks when it is imported, and never again
        self.ray = _imported()
        self._own = not self.ray.is_initialized()
        if self._own:
            self._open(where)
        self.count = where.count or self._usual_count(where)
        gpus = {"num_gpus": self._gpus_each()} if where.on_gpu else {}
        self.options: dict[str, Any] = {"num_cpus": where.threads, **gpus}

    def close(self) -> None:
        """Ends the Ray that was started here, or leaves the cluster that was joined here."""
        if self._own and self.ray.is_initialized():
            self.ray.shutdown()

    def _open(self, where: Where) -> None:
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray's own future versions
            if where.cluster is None:
                cpus = (where.count or 1) * where.threads
                self.ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
                return
            try:
                _knock(where.cluster)
                self.ray.init(address=where.cluster, **quiet)
            except (OSError, ValueError, RuntimeError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise ConnectionError(
                    f"cluster must be {_ADDRESS} of a running Ray cluster, got {where.cluster} "
                    f"({reason}); start one by `ray start --head`, and set RAY_AUTH_MODE=token "
                    "here if it asks for a token"
                ) from error

    def _usual_count(self, where: Where) -> int:
        if where.cluster is None:
            return 1
        resources = self.ray.cluster_resources()
        total = resources.get("GPU", 0) if where.on_gpu else resources["CPU"] / where.threads
        return max(1, int(total))

    def _gpus_each(self) -> float:
        gpus = self.ray.cluster_resources().get("GPU", 0)
        if not gpus:
            raise ValueError(
                "device must be cpu for workers on machines without a GPU, got cuda; Ray sees none"
            )
        share: float = min(1.0, int(1000 * gpus / self.count) / 1000)
        return share


def _keep_to_ourselves() -> None:
    """Asks Ray, by the environment that its processes inherit, to refuse strangers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _knock(address: str) -> None:
    """Finds out soon that nobody is there, or somebody else, which takes Ray minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=_KNOCK).close()
    if not address.startswith("ray://"):
        _ask_its_status(address)


def _ask_its_status(address: str) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        subprocess.run(command, capture_output=True, timeout=_STATUS, check=False)
    except subprocess.TimeoutExpired:
        raise TimeoutError(
            f"what listens there does not answer as Ray within {_STATUS:.0f} s"
        ) from None


def _imported() -> ModuleType:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "workers need Ray, which is not installed; pip install deepzero-apps[ray]"
        ) from error
    module: ModuleType = ray
    return module
