"""A program that runs beside this process and is asked through pipes, with a deadline.

Requests go to its standard input, answers come from its standard output, and what it says on
standard error is kept for messages. All three are read and written as they become ready, in one
loop: a program may answer while it is still being asked, and neither side waits for the other to
empty a full pipe. There is no thread.

POSIX only. The program leads a process group of its own, which is killed as a whole, so that
what it started goes with it; an interrupt typed at the terminal does not reach it.
"""

__all__ = ["Pipe", "PipeError"]

import contextlib
import fcntl
import math
import os
import select
import signal
import subprocess
import time
import weakref
from collections.abc import Callable, Sequence
from typing import IO

_CHUNK = 2**20
_GRACE = 1.0
_TAIL = 2000
_LONGEST = 3600.0


class PipeError(Exception):
    """What went wrong with a program, in words."""


class Pipe:
    """A running program; whoever fails to get an answer should close it.

    Args:
        command: The program and its arguments.
        directory: Where it runs; the current directory by default.

    Raises:
        PipeError: If it cannot be started.
    """

    def __init__(self, command: Sequence[str], *, directory: str | None = None) -> None:
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                list(command),
                bufsize=0,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                cwd=directory,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise PipeError(f"could not be started: {error}") from error
        streams = self._process.stdin, self._process.stdout, self._process.stderr
        self._input, self._output, self._errors = map(_unblocked, streams)
        self._said, self._silent = b"", False
        self._owner = os.getpid()
        # Also runs when this object is forgotten and when the interpreter ends.
        self._end = weakref.finalize(self, _end, self._process)

    def ask(
        self, request: bytes, header: int, size: Callable[[bytes], int], *, timeout: float
    ) -> bytearray:
        """Sends a request and waits for the answer to it.

        Args:
            request: What to send.
            header: The number of bytes that an answer begins with, whatever it is.
            size: Tells from them how long the whole answer is; may raise `PipeError`.
            timeout: After how many seconds to give up.

        Returns:
            The answer.

        Raises:
            PipeError: If the program ends, closes a pipe, answers more or does not answer.
        """
        self._refuse_unasked()
        message = memoryview(request)
        deadline = time.monotonic() + timeout
        sent, answer, expected = 0, bytearray(), header
        while sent < len(message) or len(answer) < expected:
            if time.monotonic() > deadline:
                raise PipeError(
                    f"gave no answer within {timeout:g} s: it took {sent} of {len(message)} bytes "
                    f"and answered {len(answer)}{self._tail()}"
                )
            missing = expected - len(answer)
            writable, readable = self._wait(deadline, sent < len(message), missing > 0)
            if writable:
                sent += self._write(message[sent : sent + _CHUNK])
            if readable:
                answer += self._read(min(_CHUNK, missing))
                if expected == header == len(answer):
                    expected = size(bytes(answer))
        self._refuse_unasked()
        return answer

    def close(self) -> None:
        """Ends the program: closes its input, waits a second, kills it. Twice is once."""
        self._end()

    def kill(self) -> None:
        """Kills the program, and what it started, at once."""
        if os.getpid() == self._owner:
            _kill(self._process)
        self._end()

    def _wait(self, deadline: float, writing: bool, reading: bool) -> tuple[bool, bool]:
        """Waits until the program takes or gives bytes; keeps what it says meanwhile."""
        poll = select.poll()
        for descriptor, wanted, event in (
            (self._input, writing, select.POLLOUT),
            (self._output, reading, select.POLLIN),
            (self._errors, not self._silent, select.POLLIN),
        ):
            if wanted:
                poll.register(descriptor, event)
        left = min(deadline - time.monotonic(), _LONGEST)
        ready = dict(poll.poll(max(0, math.ceil(1000 * left))))
        if self._errors in ready:
            self._listen()
        return self._input in ready, self._output in ready

    def _write(self, part: memoryview) -> int:
        try:
            return os.write(self._input, part)
        except BlockingIOError:
            return 0
        except OSError:
            raise self._broken("closed its standard input") from None

    def _read(self, most: int) -> bytes:
        part = os.read(self._output, most)
        if not part:
            raise self._broken("closed its standard output")
        return part

    def _refuse_unasked(self) -> None:
        if _readable(self._output):
            raise PipeError(f"wrote more than it was asked for{self._tail()}")

    def _listen(self) -> None:
        """Keeps the end of what the program says; it is silent once it closed standard error."""
        said = os.read(self._errors, _CHUNK)
        self._said = (self._said + said)[-_TAIL:]
        self._silent = not said

    def _broken(self, what: str) -> PipeError:
        """Says how the program ended; if it did not, what it did instead."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            what = _ending(self._process.wait(_GRACE))
        return PipeError(what + self._tail())

    def _tail(self) -> str:
        # One read empties a pipe; a program that goes on talking is not listened to for ever.
        for _ in range(2):
            if not self._silent and _readable(self._errors):
                self._listen()
        said = self._said.decode(errors="replace").strip()
        return f"; it said: {said}" if said else ""


def _readable(descriptor: int) -> bool:
    """Whether there are bytes to read; the end of a stream is none."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


def _unblocked(stream: IO[bytes] | None) -> int:
    if stream is None:
        raise PipeError("has no pipe")
    os.set_blocking(stream.fileno(), False)
    # Larger pipes mean fewer turns of the loop; where there is no such call, or no room, they work.
    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, _CHUNK)
    return stream.fileno()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        # In a fork of the process that started it, this ends at once: it is no child here.
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    # Once it has been waited for, its number may belong to another process.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
