"""One request brought to a service and its response brought back, however often it takes.

What may pass is tried again: no connection, no answer in time, status 408, 425, 429 or 5xx, and
a body that cannot be read. Waits grow exponentially with full jitter; ``Retry-After`` holds back
all requests, up to a limit. What will not pass is not tried again: 400 and 422 say that this
request is bad, and it is lost; any other status says that the service is not the one described.
Redirects are not followed, so that credentials never go to another host. An attempt has one deadline
from its first byte to its last, and a body that is packed more than once is not unpacked: each layer
would multiply it by a thousand.

No message holds a header or a piece of a response: either may contain a credential.

References:
    | Exponential Backoff and Jitter (Brooker, 2015)
    | https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    | HTTP Semantics (Fielding et al., 2022), Sec. 10.2.3: Retry-After
    | https://www.rfc-editor.org/rfc/rfc9110
"""

__all__ = ["LARGEST_RESPONSE", "Courier", "Undelivered"]

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from pyrate_limiter import Limiter, Rate
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from deepzero_apps.smoothing.answers import ClassifierError
from deepzero_apps.smoothing.services.credentials import resolved
from deepzero_apps.smoothing.services.deadline import Deadline
from deepzero_apps.smoothing.services.decoding import Garbage
from deepzero_apps.smoothing.services.service import Service

LARGEST_RESPONSE = 64 * 2**20
"""Bytes that a response may have, unpacked."""

_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "gzip, deflate"}
_PACKINGS = ("identity", "gzip", "x-gzip", "deflate")
_PASSING = (408, 425, 429)
_BAD_REQUEST = (400, 422)
_NAP = 0.1

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Undelivered(Exception):
    """A request that has no answer, after all attempts."""


class _Passing(Exception):
    """A fault that may pass.

    Args:
        reason: What to say.
        after: Seconds that the service asks to wait; None where it does not.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Courier:
    """Posts to one service; may be used by many threads.

    Args:
        service: The service.
        largest: Bytes that a response may have, unpacked.

    Raises:
        ClassifierError: If a variable of the environment is missing.
    """

    def __init__(self, service: Service, *, largest: int = LARGEST_RESPONSE) -> None:
        self._service, self._largest = service, largest
        self.host = urlsplit(service.url).netloc
        headers = httpx.Headers(_HEADERS)
        headers.update(resolved(service.headers, os.environ))
        self._client = httpx.Client(
            headers=headers,
            timeout=service.timeout,
            limits=httpx.Limits(
                max_connections=service.concurrency,
                max_keepalive_connections=service.concurrency,
            ),
        )
        self._deadline = Deadline(self._client)
        self._limiter = None
        if service.rate is not None:
            self._limiter = Limiter(Rate(1, max(1, round(1000 / service.rate))), buffer_ms=1)
        self._resume_at = 0.0

    def deliver(
        self,
        body: bytes,
        read: Callable[[bytes], Answer],
        *,
        charge: Callable[[int], None],
        stop: threading.Event,
    ) -> Answer:
        """Posts a request until it is answered.

        Args:
            body: The request's body.
            read: Reads a response's body; raises `Garbage` where it is none.
            charge: Told the number of each attempt, from 1, before it is made.
            stop: Ends all waiting once it is set.

        Returns:
            What ``read`` returned.

        Raises:
            Undelivered: If it has no answer after all attempts, or was stopped.
            ClassifierError: If the service is not the one described.
        """
        attempts = Retrying(
            stop=stop_after_attempt(self._service.retries + 1),
            wait=self._wait,
            retry=retry_if_exception_type((_Passing, Garbage)),
            before_sleep=self._note,
            sleep=lambda seconds: self._rest(seconds, stop),
            reraise=True,
        )
        try:
            for attempt in attempts:
                with attempt:
                    self._pace(stop)
                    charge(attempt.retry_state.attempt_number)
                    return read(self._post(body))
        except (_Passing, Garbage) as error:
            raise Undelivered(str(error)) from None
        raise Undelivered("no attempt was made")

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _post(self, body: bytes) -> bytes:
        """Makes one attempt; gives the body of an answer."""
        deadline = time.monotonic() + self._service.timeout
        try:
            with (
                self._deadline.within(self._service.timeout),
                self._client.stream("POST", self._service.url, content=body) as response,
            ):
                self._judge(response)
                return self._received(response, deadline)
        except httpx.TimeoutException:
            raise _Passing(f"no answer within {self._service.timeout:g} s") from None
        except httpx.ConnectError:
            raise _Passing("no connection") from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise _Passing(f"a broken connection ({type(error).__name__})") from None

    def _judge(self, response: httpx.Response) -> None:
        status = response.status_code
        if 200 <= status < 300:
            return
        if status in _PASSING or status >= 500:
            after = _seconds(response.headers.get("Retry-After", ""))
            raise _Passing(f"status {status}", after)
        if status in _BAD_REQUEST:
            raise Undelivered(f"status {status}, a request that it refuses")
        remedy = {
            401: "check the credentials in headers",
            403: "check the credentials in headers",
            404: "check url",
            413: "choose a smaller batch",
        }.get(status, "check url and protocol")
        if 300 <= status < 400:
            remedy = "redirects are not followed; set url to where it leads"
        raise ClassifierError(f"the service at {self.host} answers status {status}: {remedy}")

    def _received(self, response: httpx.Response, deadline: float) -> bytes:
        """Reads a body piece by piece: it may be endless, or come endlessly slowly."""
        packing = response.headers.get("Content-Encoding", "identity").strip().lower()
        if packing not in _PACKINGS:
            raise _Passing("a body packed in a way that was not asked for")
        content = bytearray()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > self._largest:
                raise _Passing(f"a body of more than {self._largest:,} bytes")
            if time.monotonic() > deadline:
                raise _Passing(f"no whole answer within {self._service.timeout:g} s")
        return bytes(content)

    def _wait(self, state: RetryCallState) -> float:
        """Seconds until the next attempt: full jitter, and no less than the service asks for."""
        longest = self._service.longest_wait
        drawn = wait_random_exponential(multiplier=self._service.backoff, max=longest)(state)
        fault = state.outcome.exception() if state.outcome is not None else None
        if isinstance(fault, _Passing) and fault.after is not None:
            asked = min(fault.after, longest)
            self._resume_at = max(self._resume_at, time.monotonic() + asked)
            return max(drawn, asked)
        return drawn

    def _note(self, state: RetryCallState) -> None:
        fault = state.outcome.exception() if state.outcome is not None else None
        seconds = state.next_action.sleep if state.next_action is not None else 0.0
        _log.warning(
            "%s: %s; attempt %d of %d failed, the next in %.2f s",
            self.host,
            fault,
            state.attempt_number,
            self._service.retries + 1,
            seconds,
        )

    def _pace(self, stop: threading.Event) -> None:
        """Waits for its turn: for a pause that the service asked for, and for the rate."""
        self._rest(self._resume_at - time.monotonic(), stop)
        if self._limiter is not None:
            while not self._limiter.try_acquire("request", timeout=_NAP):
                self._rest(0, stop)

    def _rest(self, seconds: float, stop: threading.Event) -> None:
        if stop.wait(max(0.0, seconds)):
            raise Undelivered("stopped")


def _seconds(retry_after: str) -> float | None:
    """Reads a Retry-After header: seconds, or a date."""
    if retry_after.strip().isdecimal() and len(retry_after) < 10:
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
