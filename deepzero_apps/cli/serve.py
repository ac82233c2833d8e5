"""``deepzero-apps serve``: classes with abstention, and certificates, over HTTP."""

__all__ = ["ServeSettings", "run", "served"]

import ipaddress
import socket
import warnings
from dataclasses import asdict
from typing import Literal, Self

from pydantic import Field, model_validator
from rich.console import Console

from deepzero_apps.cli.certify import CertifySettings, subject_of
from deepzero_apps.cli.driving import write_json
from deepzero_apps.cli.scenes import Anywhere, DefenceSettings
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.cli.votes import Votes
from deepzero_apps.smoothing.serving import Limits, Subject
from deepzero_apps.smoothing.serving.worker import Worker


class ServeSettings(DefenceSettings):
    """Serves a classifier, defended or not, over HTTP: predictions, and certificates on demand.

    With --run FOLDER, data, classifier, denoiser and sigma are those of that ``defend`` run; without,
    the bare classifier as the flags describe it. SIGTERM and Ctrl-C stop it gracefully.
    """

    run: Anywhere | None = None
    """The folder of a finished defend run; flags that contradict its settings are refused. One whose
    classifier is a module:object or a service needs --classifier again."""

    host: str = Field("127.0.0.1", min_length=1)
    """The address to listen on. There is no authentication: the default is this machine only."""

    port: int = Field(8000, ge=0, le=65535)
    """The port; 0 for a free one. The first line of output tells it."""

    host_names: tuple[str, ...] = ()
    """Names by which clients may ask a service that listens to this machine only, besides localhost and
    its address: that of a proxy in front. Other names are refused, so that no web page can lead its
    own name here. A service that listens elsewhere takes any name."""

    name: str = Field("smoothed", pattern=r"^[A-Za-z0-9._-]+$")
    """What clients call the model, in /v2/models/NAME."""

    n: int = Field(200, ge=1)
    """Votes of a prediction, if the request says nothing else."""

    max_n: int = Field(10_000, ge=1)
    """The most votes that a request may choose; what a certificate takes if it chooses none."""

    n0: int = Field(100, ge=1)
    """Votes that select the class of a certificate."""

    alpha: float = Field(0.001, gt=0, lt=0.5)
    """Probability of a wrong prediction or a false certificate, if the request says nothing else."""

    noise: Literal["gaussian", "grid"] = "gaussian"
    """grid rounds noisy images to multiples of 1/255, for black boxes that take 8-bit images."""

    noise_seed: int | None = Field(None, ge=0)
    """Makes the noise a keyed function of the image: the same answer whenever asked, and slower.
    By default it is drawn from the system's secret entropy, and told in the answer."""

    max_images: int = Field(16, ge=1)
    """Images a request."""

    max_body: int | None = Field(None, ge=1)
    """Bytes a request; as many as --max-images images need by default, at most 8 MiB."""

    queue: int = Field(64, ge=1)
    """Requests inside at once; further ones get 503 with Retry-After."""

    timeout: float = Field(60.0, gt=0, lt=float("inf"))
    """Seconds that a request may take."""

    grace: float = Field(10.0, ge=0, le=3600)
    """Seconds to finish what is inside when the service stops."""

    rows: int = Field(1024, ge=1)
    """Images shown to the classifier in one call."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.n > self.max_n:
            raise ValueError(f"--n must be at most --max-n, {self.max_n}, got {self.n}")
        Votes(n=self.n, n0=self.n0, alpha=self.alpha).settings(self.sigma, 0)
        return self


def run(settings: ServeSettings) -> int:
    """Serves until it is told to stop."""
    try:
        from deepzero_apps.smoothing.serving.application import application
        from deepzero_apps.smoothing.serving.process import listening, serve
    except ModuleNotFoundError as error:
        raise Misuse(f"serve needs {error.name}: pip install 'deepzero-apps[serve]'") from error
    try:
        listener = listening(settings.host, settings.port)
    except (OSError, UnicodeError) as error:
        raise Misuse(
            f"--host, --port: cannot listen on {settings.host} port {settings.port}: {error}"
        ) from error
    with listener:
        subject = served(settings)
        limits = _limits(settings, subject)
        worker = Worker(
            subject.classifier,
            places=limits.queue,
            rows=limits.rows,
            device=settings.device,
            seed=settings.noise_seed,
        )
        app = application(
            subject, limits, worker, hosts=_hosts(listener.getsockname()[0], settings)
        )
        serve(
            app,
            worker,
            listener,
            grace=settings.grace,
            announce=lambda: _announce(listener),
        )
    counts = worker.counts
    Console(soft_wrap=True).print(f"stopped; {counts.jobs:,} requests, {counts.votes:,} votes")
    write_json(settings.json_file, {"settings": settings.record(), "counts": asdict(counts)})
    return 0


def served(settings: ServeSettings) -> Subject:
    """Loads what is served, as ``certify`` would.

    Raises:
        Misuse: If it cannot be had, or its settings could never certify anything.
    """
    given = settings.fields_of(DefenceSettings)
    votes = Votes(n=settings.max_n, n0=settings.n0, alpha=settings.alpha, noise=settings.noise)
    _, classifier, view, resolved, _ = subject_of(
        CertifySettings(**given, run=settings.run, votes=votes)
    )
    test = view.splits.test
    return Subject(
        name=settings.name,
        classifier=classifier,
        classes=tuple(test.classes),
        shape=test.shape,
        settings=votes.settings(resolved.sigma, 0),
        n=settings.n,
        example=test.pixels(slice(0, 1))[0].cpu(),
    )


def _limits(settings: ServeSettings, subject: Subject) -> Limits:
    return Limits(
        images=settings.max_images,
        body=settings.max_body or Limits.body_for(settings.max_images, subject.shape),
        queue=settings.queue,
        timeout=settings.timeout,
        rows=settings.rows,
    )


def _hosts(address: str, settings: ServeSettings) -> set[str] | None:
    """The names that requests may be sent to; None for any."""
    if not ipaddress.ip_address(address).is_loopback:
        return None
    given = {name.lower().rstrip(".") for name in settings.host_names}
    return {"localhost", "127.0.0.1", "::1", address, settings.host.lower(), *given}


def _announce(listener: socket.socket) -> None:
    """Tells the address, and who can reach it."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    console = Console(soft_wrap=True)
    if ipaddress.ip_address(host).is_loopback:
        whom = "this machine only; --host opens it to others"
    else:
        whom = "whoever reaches this machine"
        warnings.warn(
            f"--host {host}: there is no authentication, anybody who reaches this address can "
            "ask; put a proxy in front",
            stacklevel=2,
        )
    console.print(f"serving on http://{shown}:{port}/ ({whom})", markup=False)
