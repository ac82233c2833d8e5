"""Simulators that somebody else wrote: a program behind a pipe, a Python function.

**Protocol of a program.** It reads requests from its standard input, one after the other, until
that ends, and answers each on its standard output (and flushes it). Numbers are little-endian,
integers of 64 bits and doubles:

======== ======================================== ==========================================
         a request                                an answer
======== ======================================== ==========================================
4 ints   b, n, m, f                               b, n, m, 0
doubles  b * n: fields, one state after another   b * n: new fields
doubles  b: the parameter of each state           none
doubles  b * m: native parts                      b * m: new native parts
doubles  b * n if f is 1: the forcing             none
======== ======================================== ==========================================

b counts the states, which are independent of one another; n is the number of values in a field,
its last axis fastest; m is how many more numbers a restart needs. A request has m = 0 where a
simulation begins without native part; the answer always has the m that was agreed on. A program
may begin to answer before it has read everything. In C the whole of it is::

    while (fread(h, 8, 4, stdin) == 4) {
        fread(u, 8, h[0] * h[1], stdin);
        fread(p, 8, h[0], stdin);
        for (i = 0; i < h[0]; i++) advance(u + i * h[1], p[i]);
        h[2] = h[3] = 0;
        fwrite(h, 8, 4, stdout);
        fwrite(u, 8, h[0] * h[1], stdout);
        fflush(stdout);
    }

**Errors.** Whatever such a simulator does wrong is a `SimulatorError`, which names the step and
carries the last good state, so that a simulation can be continued from it.
"""

__all__ = ["Function", "Program", "SimulatorError", "serve"]

import math
import os
import shutil
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.pipes import Pipe, PipeError
from solvers.states import check_forcing, check_state, integer, problem

Array = NDArray[np.float64]

Answer = ArrayLike | tuple[ArrayLike, ArrayLike | None]
"""New fields, or new fields and new native parts."""

_HEADER = struct.Struct("<4q")


class SimulatorError(RuntimeError):
    """A simulator crashed, hung or answered nothing that could be used.

    Attributes:
        step: How many steps the simulator had made before the one that failed.
        fields: The last good fields, those handed to the failed step.
        native: Their native parts.
    """

    def __init__(self, message: str, step: int, fields: Array, native: Array | None) -> None:
        super().__init__(message, step, fields, native)
        self.step = step
        self.fields = fields
        self.native = native

    def __str__(self) -> str:
        return str(self.args[0])


class Function:
    """A Python function as a simulator.

    It runs in this process, so that nothing can end it when it hangs: a function that may hang
    belongs into a `Program`, for which `serve` is the other end.

    Args:
        function: Called as ``function(fields, parameters, native)``, and with ``forcing=...``
            where there is one. It gets copies, and answers new fields or a pair of new fields
            and new native parts.
        shape: The shape of one field, ``(channels, *grid)``.
        batched: Whether the function takes b states at once, ``(b, *shape)`` and parameters
            ``(b,)``. Otherwise it is called for one state after another, with a field of shape
            ``shape``, a float and one native part.
        reach: How many cells a step carries a change, if known; infinity for a global solver.
        accepts_forcing: Whether the function takes ``forcing``.

    Attributes:
        steps: How many steps were made.

    Example:
        >>> decay = Function(lambda field, rate, _: field * (1 - rate), (1, 4), batched=False)
        >>> decay.step(np.ones((1, 1, 4)), np.array([0.25]))[0]
        array([[[0.75, 0.75, 0.75, 0.75]]])
    """

    def __init__(
        self,
        function: Callable[..., Answer],
        shape: Sequence[int],
        *,
        batched: bool = True,
        reach: float | None = None,
        accepts_forcing: bool = False,
    ) -> None:
        if not callable(function):
            raise TypeError(f"function must be callable, got {type(function).__name__}")
        self._function = function
        self.shape = _shape(shape)
        self.batched = batched
        self.reach = _reach(reach)
        self.accepts_forcing = accepts_forcing
        self.steps = 0

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: Array | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """Advances b states by one time step.

        Args:
            fields: Of shape ``(b, *shape)``.
            parameters: The parameter of each state, of shape ``(b,)``.
            native: The native parts, of shape ``(b, ...)``, or ``None``.
            forcing: Of the shape of ``fields``, where the function takes it.

        Returns:
            New fields and new native parts.

        Raises:
            TypeError: If an array is none of float64.
            ValueError: If an argument does not fit.
            SimulatorError: If the function raises or answers what is no state.
        """
        check_state(self.shape, fields, parameters, native)
        check_forcing(forcing, fields, accepted=self.accepts_forcing)
        others = [None if a is None else a.copy() for a in (parameters, native, forcing)]
        try:
            after, kept = self._answer(fields.copy(), *others)
        except Exception as error:
            what = f"the function raised {type(error).__name__}: {error}"
            raise _failed(what, self.steps, fields, native) from error
        if wrong := problem(after, kept, fields):
            raise _failed(f"the function {wrong}", self.steps, fields, native)
        self.steps += 1
        return after, kept

    def _answer(self, fields: Array, *others: Array | None) -> tuple[Array, Array | None]:
        if self.batched:
            return _called(self._function, fields, *others)
        rows = [
            _called(self._function, field, *(None if a is None else a[row] for a in others))
            for row, field in enumerate(fields)
        ]
        if not rows:
            return fields, None
        natives = [kept for _, kept in rows if kept is not None]
        return np.stack([after for after, _ in rows]), np.stack(natives) if natives else None


class Program:
    """A program as a simulator: a process that stays, asked through pipes as described above.

    It is started by the first step. After an error it is killed, and the next step starts a
    fresh one. It ends when it is closed, forgotten, or this process ends. Threads take turns. A
    fork of this process starts a program of its own.

    Args:
        command: The program and its arguments, as a list.
        shape: The shape of one field, ``(channels, *grid)``.
        timeout: After how many seconds without a complete answer a step has failed; the first
            step includes the start of the program.
        native_size: How many numbers m the native part of a state has.
        reach: How many cells a step carries a change, if known; infinity for a global solver.
        accepts_forcing: Whether the program takes a forcing.
        directory: Where it runs; the current directory by default.

    Attributes:
        steps: How many steps were made.

    Raises:
        TypeError: If ``command`` is one string.
        ValueError: If the program cannot be found or a number is out of its range.

    Example:
        >>> code = (
        ...     "from solvers.external import serve;"
        ...     "serve(lambda fields, rates, native: fields - rates[:, None], (3,))"
        ... )
        >>> import sys
        >>> with Program([sys.executable, "-c", code], (3,), timeout=60) as program:
        ...     program.step(np.ones((1, 3)), np.array([0.25]))[0]
        array([[0.75, 0.75, 0.75]])
    """

    def __init__(
        self,
        command: Sequence[str],
        shape: Sequence[int],
        *,
        timeout: float = 10.0,
        native_size: int = 0,
        reach: float | None = None,
        accepts_forcing: bool = False,
        directory: str | None = None,
    ) -> None:
        if isinstance(command, str):
            raise TypeError(
                f"command must be a list of words, got {command!r}; split it with shlex.split"
            )
        words = tuple(map(os.fspath, command))
        found = shutil.which(words[0]) if words else None
        if found is None:
            raise ValueError(f"command must begin with a program that can be run, got {words[:1]}")
        self.command = (os.path.abspath(found), *words[1:])
        if not timeout > 0:
            raise ValueError(f"timeout must be positive, got {timeout}")
        self.shape = _shape(shape)
        self.timeout, self.directory = timeout, directory
        self.native_size = integer("native_size", native_size, least=0)
        self.reach = _reach(reach)
        self.accepts_forcing = accepts_forcing
        self.steps = 0
        self._pipe: Pipe | None = None
        self._lock, self._owner = threading.Lock(), os.getpid()

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: Array | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """Advances b states by one time step.

        Args:
            fields: Of shape ``(b, *shape)``.
            parameters: The parameter of each state, of shape ``(b,)``.
            native: The native parts, of shape ``(b, native_size)``, or ``None`` to begin.
            forcing: Of the shape of ``fields``, where the program takes it.

        Returns:
            New fields and new native parts; ``None`` where ``native_size`` is 0.

        Raises:
            TypeError: If an array is none of float64.
            ValueError: If an argument does not fit.
            SimulatorError: If the program ends, does not answer in time, or answers what is no
                state.
        """
        self._forget_after_fork()
        with self._lock:
            check_state(self.shape, fields, parameters, native)
            check_forcing(forcing, fields, accepted=self.accepts_forcing)
            if native is not None and native.shape != (len(fields), self.native_size):
                raise ValueError(
                    f"native must have shape {(len(fields), self.native_size)}, got {native.shape}"
                )
            try:
                after, kept = self._answer(fields, parameters, native, forcing)
                if wrong := problem(after, kept, fields):
                    raise PipeError(wrong)
            except PipeError as error:
                self._drop()
                raise _failed(f"the program {error}", self.steps, fields, native) from error
            except BaseException:
                # An answer that still comes would be taken for that to the next step.
                self._drop()
                raise
            self.steps += 1
            return after, kept

    def close(self) -> None:
        """Ends the program; the next step starts a fresh one. Closing twice does nothing."""
        self._forget_after_fork()
        with self._lock:
            if self._pipe is not None:
                self._pipe.close()
                self._pipe = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(
        self, fields: Array, parameters: Array, native: Array | None, forcing: Array | None
    ) -> tuple[Array, Array | None]:
        rows, width, m = len(fields), math.prod(self.shape), self.native_size
        expected = (rows, width, m, 0)

        def size(header: bytes) -> int:
            found = _HEADER.unpack(header)
            if found != expected:
                raise PipeError(f"must answer the header {expected}, got {found}")
            return _HEADER.size + 8 * rows * (width + m)

        begun, forced = (0 if native is None else m), forcing is not None
        request = [_HEADER.pack(rows, width, begun, forced)]
        given = (fields, parameters, native, forcing)
        request += [a.astype("<f8", copy=False).tobytes() for a in given if a is not None]
        if self._pipe is None:
            self._pipe = Pipe(self.command, directory=self.directory)
        answer = self._pipe.ask(b"".join(request), _HEADER.size, size, timeout=self.timeout)
        numbers = np.frombuffer(answer, "<f8", offset=_HEADER.size).astype(np.float64, copy=False)
        after, kept = np.split(numbers, [rows * width])
        return after.reshape(rows, *self.shape), kept.reshape(rows, m) if m else None

    def _drop(self) -> None:
        if self._pipe is not None:
            self._pipe.kill()
            self._pipe = None

    def _forget_after_fork(self) -> None:
        if self._owner != os.getpid():
            # The lock may have been held by a thread that does not exist here.
            self._pipe, self._lock, self._owner = None, threading.Lock(), os.getpid()


def serve(function: Callable[..., Answer], shape: Sequence[int]) -> None:
    """Answers a `Program` until it asks no more: the other end of the pipe, for Python programs.

    What the function prints goes to standard error, so that it does not mix with answers.

    Args:
        function: As for a batched `Function`.
        shape: The shape of one field.
    """
    with os.fdopen(os.dup(0), "rb") as source, os.fdopen(os.dup(1), "wb") as sink:
        os.dup2(2, 1)
        while len(header := source.read(_HEADER.size)) == _HEADER.size:
            rows, width, m, forced = _HEADER.unpack(header)
            sizes = (rows * width, rows, rows * m, forced * rows * width)
            numbers = np.frombuffer(source.read(8 * sum(sizes)), "<f8").astype(np.float64)
            fields, parameters, native, forcing = np.split(numbers, np.cumsum(sizes)[:-1])
            after, kept = _called(
                function,
                fields.reshape(rows, *shape),
                parameters,
                native.reshape(rows, m) if m else None,
                forcing.reshape(rows, *shape) if forced else None,
            )
            answer = [a.astype("<f8").tobytes() for a in (after, kept) if a is not None]
            m = 0 if kept is None else math.prod(kept.shape[1:])
            header = _HEADER.pack(len(after), math.prod(after.shape[1:]), m, 0)
            sink.write(b"".join((header, *answer)))
            sink.flush()


def _called(
    function: Callable[..., Answer], *state: NDArray[Any] | None
) -> tuple[Array, Array | None]:
    """Calls the function of a user and copies what it answers."""
    *arguments, forcing = state
    keywords = {} if forcing is None else {"forcing": forcing}
    answer = function(*arguments, **keywords)
    after, kept = answer if isinstance(answer, tuple) else (answer, None)
    return (
        np.array(after, dtype=np.float64),
        None if kept is None else np.array(kept, dtype=np.float64),
    )


def _failed(what: str, steps: int, fields: Array, native: Array | None) -> SimulatorError:
    kept = None if native is None else native.copy()
    return SimulatorError(f"step {steps + 1} failed: {what}", steps, fields.copy(), kept)


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(integer("shape", size, least=1) for size in shape)
    if not sizes:
        raise ValueError("shape must be (channels, *grid), got ()")
    return sizes


def _reach(reach: float | None) -> float | None:
    if reach is not None and not (reach >= 0 and (reach == math.inf or reach == int(reach))):
        raise ValueError(f"reach must be whole, infinity or None, got {reach}")
    return reach
