"""The service as an ASGI application: routes, limits at the door, refusals as JSON.

A question goes one way: its headers are looked at, it takes a place or is sent away (503 with
``Retry-After``), its body is read under a limit while it streams in, parsed by a thread, answered
by the worker, and written. The event loop waits and never works. Who hangs up is not worked for.

Every refusal is ``{"error": "FIELD must be ..."}``: 400 no JSON, 404, 405, 408 a body that does
not come, 413 too long, 415 another type, 421 meant for another host, 422 another request, 502 the
classifier failed, 503 overloaded, stopping or too slow.

A page in a browser on this machine must not be able to ask. It cannot send JSON to another origin without
a preflight, which is not answered; and where its own name is made to lead to this machine (DNS rebinding),
the name that it asks for is not one of ours.
"""

__all__ = ["application"]

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from time import monotonic
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from deepzero_apps.smoothing.answers import ClassifierError
from deepzero_apps.smoothing.serving import inference_protocol as protocol
from deepzero_apps.smoothing.serving.jobs import Certifying, Predicting
from deepzero_apps.smoothing.serving.page import page
from deepzero_apps.smoothing.serving.pixels import Refused, shortened
from deepzero_apps.smoothing.serving.questions import (
    CertifyRequest,
    PredictRequest,
    certificate_answer,
    certify_job,
    predict_answer,
    predict_job,
)
from deepzero_apps.smoothing.serving.subject import Limits, Subject
from deepzero_apps.smoothing.serving.worker import Closing, Overloaded, Worker
from deepzero_apps.zeroth_order.oracle import BudgetExhausted

T = TypeVar("T")

_GONE = 499
"""Nobody reads this status: the client hung up. It is counted."""

_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


class _Gone(Exception):
    """The client hung up."""


def application(
    subject: Subject, limits: Limits, worker: Worker, *, hosts: Collection[str] | None = None
) -> FastAPI:
    """Builds the service.

    Args:
        subject: What is served.
        limits: What a request may take.
        worker: Asks the classifier; of ``limits.queue`` places.
        hosts: The names, in small letters and without port, that requests may be sent to; any by
            default.

    Returns:
        The application, with its OpenAPI description at ``/openapi.json``.
    """
    app = FastAPI(
        title=f"deepzero-apps: {subject.name}",
        description="A smoothed classifier: classes with abstention, and certificates.",
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat whatever Host was sent
    )
    desk = _Desk(limits, worker)
    _add_questions(app, subject, desk)
    _add_protocol(app, subject, desk)
    _add_accounts(app, subject, desk)
    _add_refusals(app)
    if hosts is not None:
        app.add_middleware(_Named, hosts=frozenset(hosts))
    return app


class _Named:
    """Refuses what was sent to another name than ours."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self._app
        if scope["type"] == "http":
            asked = Headers(scope=scope).get("host", "")
            if _without_port(asked) not in self._hosts:
                answer = _refusal(
                    421, f"Host must be a name of this service, got {shortened(asked)}"
                )
        await answer(scope, receive, send)


def _without_port(host: str) -> str:
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    return name.strip("[]").rstrip(".").lower()


class _Desk:
    """Takes questions in: the way that all of them go."""

    def __init__(self, limits: Limits, worker: Worker) -> None:
        self.limits, self.worker = limits, worker
        self.statuses: Counter[int] = Counter()
        self.started = monotonic()

    async def answered(
        self, request: Request, answer: Callable[[Request, float], Any]
    ) -> Response:
        """Answers a question, or says why not; counts either."""
        try:
            response = await self._answered(request, answer)
        except _Gone:
            response = Response(status_code=_GONE)
        except Exception:
            self.statuses[500] += 1
            raise
        self.statuses[response.status_code] += 1
        return response

    async def _answered(
        self, request: Request, answer: Callable[[Request, float], Any]
    ) -> Response:
        try:
            _check_headers(request, self.limits.body)
            with self.worker.place():
                deadline = asyncio.get_running_loop().time() + self.limits.timeout
                return JSONResponse(await answer(request, deadline))
        except Refused as error:
            return _refusal(error.status, str(error))
        except Overloaded as error:
            return _refusal(503, str(error), {"Retry-After": str(error.retry_after)})
        except Closing as error:
            return _refusal(503, str(error), {"Retry-After": "5"})
        except (ClassifierError, BudgetExhausted) as error:
            # what a black box says of itself is for the operator, not for clients
            logging.getLogger(__name__).error("%s", error)
            return _refusal(502, "the classifier failed; the service's log says how")

    async def job(self, request: Request, deadline: float, parse: Callable[[bytes], T]) -> T:
        """Reads the body and makes a job of it, in a thread: parsing takes its time."""
        body = await _body(request, self.limits.body, deadline)
        return await asyncio.to_thread(parse, body)

    async def votes(
        self, request: Request, deadline: float, job: Predicting | Certifying, future: Future[T]
    ) -> T:
        """Waits for the worker's answer, but not longer than the client does."""
        self.worker.submit(job)
        answer = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(_hung_up(request))
        try:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            either: set[asyncio.Future[Any]] = {answer, gone}
            await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise _Gone
            raise Closing(f"the answer took more than {self.limits.timeout:g} s; ask for less")
        finally:
            job.abandoned = True
            gone.cancel()
            answer.add_done_callback(_look_away)


def _add_questions(app: FastAPI, subject: Subject, desk: _Desk) -> None:
    @app.post("/v1/predict", **_described(PredictRequest))
    async def predict(request: Request) -> Response:
        """Gives the classes of images, or abstains."""

        async def answer(request: Request, deadline: float) -> dict[str, Any]:
            job = await desk.job(
                request, deadline, lambda body: predict_job(body, subject, desk.limits)
            )
            answers = await desk.votes(request, deadline, job, job.future)
            return {
                **predict_answer(answers, job, subject.classes),
                "classifier": desk.worker.fingerprint,
            }

        return await desk.answered(request, answer)

    @app.post("/v1/certify", **_described(CertifyRequest))
    async def certify(request: Request) -> Response:
        """Gives the certificate of one image."""

        async def answer(request: Request, deadline: float) -> dict[str, Any]:
            job = await desk.job(request, deadline, lambda body: certify_job(body, subject))
            certificate = await desk.votes(request, deadline, job, job.future)
            return certificate_answer(certificate, job, subject.classes)

        return await desk.answered(request, answer)


def _add_protocol(app: FastAPI, subject: Subject, desk: _Desk) -> None:
    @app.get("/v2")
    async def server() -> dict[str, Any]:
        """Says which server this is."""
        return protocol.server_metadata()

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """Says that the process answers."""
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        """Says whether questions are taken."""
        return _readiness(desk)

    @app.get("/v2/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """Says what the model takes and gives."""
        _check_name(name, subject)
        return protocol.model_metadata(subject)

    @app.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> Response:
        """Says whether questions are taken."""
        _check_name(name, subject)
        return _readiness(desk)

    @app.post("/v2/models/{name}/infer", **_described(protocol.InferRequest))
    async def infer(name: str, request: Request) -> Response:
        """Gives the classes of images, -1 for abstention."""
        _check_name(name, subject)

        async def answer(request: Request, deadline: float) -> dict[str, Any]:
            job, asked = await desk.job(
                request, deadline, lambda body: protocol.infer_job(body, subject, desk.limits)
            )
            answers = await desk.votes(request, deadline, job, job.future)
            return protocol.infer_answer(answers, job, asked, subject.name)

        return await desk.answered(request, answer)


def _add_accounts(app: FastAPI, subject: Subject, desk: _Desk) -> None:
    @app.get("/", response_class=HTMLResponse)
    async def home(request: Request) -> HTMLResponse:
        """Tells people what is served."""
        text = page(subject, desk.limits, str(request.base_url), desk.worker.fingerprint)
        return HTMLResponse(text, headers=_PAGE_HEADERS)

    @app.get("/v1/health")
    async def health() -> Response:
        """Says what is served and whether questions are taken."""
        return _readiness(desk, {"model": subject.name, "classifier": desk.worker.fingerprint})

    @app.get("/metrics")
    async def metrics() -> dict[str, Any]:
        """Counts questions by status, votes and seconds since the start."""
        counts = desk.worker.counts
        return {
            "questions": sum(desk.statuses.values()),
            "by_status": {str(status): n for status, n in sorted(desk.statuses.items())},
            "inside": desk.worker.inside,
            "places": desk.limits.queue,
            "votes": counts.votes,
            "packs": counts.packs,
            "jobs": counts.jobs,
            "failures": counts.failures,
            "seconds_asking": counts.seconds,
            "seconds_up": monotonic() - desk.started,
        }


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:  # noqa: ARG001 - fixed
        return _refusal(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:  # noqa: ARG001 - fixed
        return _refusal(500, "a defect of the service; its log says where")


def _check_headers(request: Request, most: int) -> None:
    """Refuses by the headers alone what need not be read."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise Refused(f"Content-Type must be application/json, got {shortened(kind)}", status=415)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise Refused(f"Content-Encoding must be none, got {shortened(encoding)}", status=415)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise Refused(f"the body must be at most {most} bytes, got {length[:20]}", status=413)


async def _body(request: Request, most: int, deadline: float) -> bytes:
    """Reads the body, no further than its limit."""
    chunks, size = [], 0
    try:
        async with asyncio.timeout_at(deadline):
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise Refused(f"the body must be at most {most} bytes, got more", status=413)
                chunks.append(chunk)
    except TimeoutError as error:
        raise Refused(f"the body must be whole in time, got {size} bytes", status=408) from error
    except ClientDisconnect as error:
        raise _Gone from error
    return b"".join(chunks)


async def _hung_up(request: Request) -> None:
    """Returns when the client does not wait any more."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_name(name: str, subject: Subject) -> None:
    if name != subject.name:
        raise HTTPException(404, f"the model must be {subject.name}, got {shortened(name)}")


def _readiness(desk: _Desk, about: Mapping[str, Any] | None = None) -> Response:
    ready = not desk.worker.closing
    return JSONResponse({"ready": ready, **(about or {})}, status_code=200 if ready else 503)


def _refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status_code=status, headers=dict(headers or {}))


def _described(kind: type[PredictRequest | CertifyRequest | protocol.InferRequest]) -> Any:  # noqa: ANN401 - FastAPI's
    """Tells FastAPI what a body that we read ourselves looks like."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = schema.pop("$defs", {})
    body = {"required": True, "content": {"application/json": {"schema": _inlined(schema, parts)}}}
    return {"response_model": None, "openapi_extra": {"requestBody": body}}


def _inlined(schema: Any, parts: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """A schema without references, because FastAPI has no place for another's definitions."""
    if isinstance(schema, list):
        return [_inlined(part, parts) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(parts[schema["$ref"].rpartition("/")[2]], parts)
    return {key: _inlined(value, parts) for key, value in schema.items()}


def _look_away(answer: asyncio.Future[Any]) -> None:
    """Reads an error that nobody waits for any more, so that it is not reported as forgotten."""
    if not answer.cancelled():
        answer.exception()
