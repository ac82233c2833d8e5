import copy
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from solvers.burgers import Burgers
from solvers.external import Function, Program, SimulatorError
from tests.programs import ADDER, BAD, FIELDS, GOOD, Array, adder, exists, pid


@pytest.fixture(scope="module")
def burgers_c(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler named cc")
    program = tmp_path_factory.mktemp("c") / "burgers"
    source = Path(__file__).with_name("burgers.c")
    # Without contraction: a fused multiplication and addition rounds once, numpy twice.
    flags = ["-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, source, "-o", program, "-lm"], check=True)
    return str(program)


def test_a_c_program_equals_the_numpy_solver_to_the_bit(burgers_c: str) -> None:
    flow = Burgers(12, length=7.0, dt=0.05, forced=False)
    nu = np.array([0.0, 0.1, 0.7])
    forcing = np.random.default_rng(0).normal(size=(3, *flow.shape))
    fields = flow.initial(nu, seed=0)[0]
    theirs, native = fields, None
    command = [burgers_c, "12", "7.0", "0.05"]
    with Program(command, flow.shape, native_size=1, reach=1, accepts_forcing=True) as program:
        for _ in range(10):
            fields = flow.step(fields, nu, forcing=forcing)[0]
            theirs, native = program.step(theirs, nu, native, forcing=forcing)
        np.testing.assert_array_equal(theirs, fields)
        np.testing.assert_array_equal(native, np.full((3, 1), 10.0))
        np.testing.assert_array_equal(program.step(fields, nu)[0], flow.step(fields, nu)[0])
        assert (program.steps, program.reach) == (11, 1)


def test_batches_larger_than_any_pipe_do_not_deadlock(burgers_c: str) -> None:
    flow = Burgers(64, length=64, forced=False)
    nu = np.full(100, 0.1)
    fields = flow.initial(nu, seed=0)[0]
    with Program([burgers_c, "64", "64", "0.1"], flow.shape, native_size=1) as program:
        theirs = program.step(fields, nu)[0]  # 6.5 MB each way
    np.testing.assert_array_equal(theirs, flow.step(fields, nu)[0])


def test_a_program_that_answers_before_it_has_read_does_not_deadlock() -> None:
    # Both sides write 8 MB, before either reads: only whoever reads while it writes gets through.
    code = """
import struct, sys
b, n, m, f = struct.unpack("<4q", sys.stdin.buffer.read(32))
sys.stdout.buffer.write(struct.pack("<4q", b, n, 0, 0) + bytes(8 * b * n))
sys.stdout.buffer.flush()
sys.stdin.buffer.read(8 * b * (n + 1))
sys.stdin.buffer.read(1)
"""
    with Program([sys.executable, "-I", "-S", "-c", code], (1, 1024)) as program:
        after = program.step(np.ones((1024, 1, 1024)), np.ones(1024))[0]
    np.testing.assert_array_equal(after, 0)


def test_fields_and_native_parts_go_through_and_inputs_stay() -> None:
    fields = FIELDS.copy()
    with adder() as program:
        after, native = program.step(fields, GOOD)
        assert native is not None
        np.testing.assert_array_equal(native, [[0.0], [0.0]])
        after, native = program.step(after, GOOD, np.array([[5.0], [7.0]]))
    np.testing.assert_array_equal(after, FIELDS + 2)
    np.testing.assert_array_equal(native, [[6.0], [8.0]])
    np.testing.assert_array_equal(fields, FIELDS)
    after[0] = 0  # the answer is the caller's own, and can be written to


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("sys.exit('no more licences')", r"ended with exit code 1; it said: no more licences$"),
        ("os._exit(7)", r"ended with exit code 7$"),
        ("os.abort()", "was killed by SIGABRT"),
        ("1 / 0", r"exit code 1; it said: .*ZeroDivisionError"),
        ("os.close(1); sys.stdin.read()", "closed its standard output"),
        ("after[4] = float('nan')", "answered NaN or infinity in the fields of state 1$"),
        ("native[0] = float('inf')", "answered NaN or infinity in the native part of state 0$"),
        ("n = 2; after.pop(), after.pop()", r"header \(2, 3, 1, 0\), got \(2, 2, 1, 0\)$"),
        (
            "sys.stdout.write('x' * 60); sys.stdout.flush()",
            r"header \(2, 3, 1, 0\), got \(8680820",
        ),
        ("sink.write(struct.pack('<4q', -1, 3, 1, 0))", r"header .*, got \(-1, 3, 1, 0\)$"),
    ],
)
def test_a_fault_is_an_error_that_names_the_step_and_keeps_the_state(
    fault: str, match: str
) -> None:
    native = np.array([[1.0], [2.0]])
    with adder(fault) as program:
        program.step(FIELDS, GOOD)
        first = pid(program)
        with pytest.raises(
            SimulatorError, match=r"(?s)^step 2 failed: the program .*" + match
        ) as caught:
            program.step(FIELDS, BAD, native)
        assert caught.value.step == program.steps == 1
        assert not np.shares_memory(caught.value.fields, FIELDS)
        np.testing.assert_array_equal(caught.value.fields, FIELDS)
        np.testing.assert_array_equal(caught.value.native, native)
        assert not exists(first)
        # A fresh program goes on from the state that was kept.
        after, _ = program.step(caught.value.fields, GOOD, caught.value.native)
        np.testing.assert_array_equal(after, FIELDS + 1)
        assert pid(program) != first


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("time.sleep(60)", r"within 0\.5 s: it took 112 of 112 bytes and answered 0$"),
        (
            "after.pop()\nsink.write(struct.pack('<4q5d', b, n, m, 0, *after)); sink.flush(); time.sleep(60)",
            "answered 72$",
        ),
        ("while True: time.sleep(.1); sink.write(b'0'); sink.flush()", "answered [1-5]$"),
        ("while True: sys.stderr.write('residual 1e+99 ')", r"answered 0; it said: .*residual"),
        ("import signal; os.kill(os.getpid(), signal.SIGSTOP)", "answered 0$"),
    ],
)
def test_a_hang_ends_at_the_deadline(fault: str, match: str) -> None:
    with adder(fault) as program:
        program.step(FIELDS, GOOD)
        program.timeout = 0.5
        first = pid(program)
        start = time.monotonic()
        with pytest.raises(SimulatorError, match=match):
            program.step(FIELDS, BAD, np.zeros((2, 1)))
        assert time.monotonic() - start < 10  # of 60, on a busy machine too
        assert not exists(first)


def test_a_program_that_stops_reading_ends_at_the_deadline() -> None:
    program = Program(["sleep", "60"], (1, 1000), timeout=0.3)
    with pytest.raises(SimulatorError, match=r"it took \d+ of 8008032 bytes and answered 0"):
        program.step(np.zeros((1000, 1, 1000)), np.zeros(1000))


def test_bytes_beyond_an_answer_are_refused() -> None:
    code = ADDER.replace("sink.flush()", "sink.write(b'!'); sink.flush()")
    program = Program([sys.executable, "-I", "-S", "-c", code, ""], (1, 3), native_size=1)
    with pytest.raises(SimulatorError, match="step 1 failed: the program wrote more than"):
        program.step(FIELDS, GOOD)


def test_a_program_that_ended_between_steps_is_reported() -> None:
    with adder() as program:
        program.step(FIELDS, GOOD)
        os.kill(pid(program), 9)
        with pytest.raises(
            SimulatorError, match="step 2 failed: the program was killed by SIGKILL"
        ):
            program.step(FIELDS, GOOD)


def test_what_a_program_says_is_kept_at_its_end_only() -> None:
    program = adder("sys.stderr.write('a' * 3_000_000 + 'end'); sys.exit(1)")
    with pytest.raises(SimulatorError, match=r"aaaend$") as caught:
        program.step(FIELDS, BAD)
    assert len(str(caught.value)) < 2200


def test_talking_on_standard_error_is_no_fault() -> None:
    with adder("sys.stderr.write('b' * 3_000_000)") as program:
        np.testing.assert_array_equal(program.step(FIELDS, BAD)[0], FIELDS + 1)
    with adder("os.dup2(os.open(os.devnull, os.O_WRONLY), 2)") as program:
        for _ in range(2):
            np.testing.assert_array_equal(program.step(FIELDS, BAD)[0], FIELDS + 1)


def test_serve_is_the_other_end_in_python() -> None:
    code = """
from solvers.external import serve
def step(fields, parameters, native, forcing=0):
    print("a line that must not mix with the answer")
    return fields * parameters[:, None] + forcing, native if native is not None else fields[:, :2]
serve(step, (3,))
"""
    fields, factors = np.arange(6.0).reshape(2, 3), np.array([2.0, 3.0])
    command = [sys.executable, "-c", code]
    with Program(command, (3,), native_size=2, accepts_forcing=True, timeout=30) as program:
        after, native = program.step(fields, factors)
        np.testing.assert_array_equal(after, [[0, 2, 4], [9, 12, 15]])
        np.testing.assert_array_equal(native, fields[:, :2])
        after, native = program.step(fields, factors, np.ones((2, 2)), forcing=fields)
        np.testing.assert_array_equal(after, [[0, 3, 6], [12, 16, 20]])
        np.testing.assert_array_equal(native, np.ones((2, 2)))
        assert program.step(fields[:0], factors[:0])[0].shape == (0, 3)


@pytest.mark.parametrize("batched", [True, False])
def test_a_function_of_a_batch_or_of_one_state_is_a_simulator(batched: bool) -> None:
    def step(
        field: Array, rate: Array, native: Array | None, forcing: Array
    ) -> tuple[Array, Array]:
        rate = np.reshape(rate, (-1, 1, 1) if batched else ())
        field -= rate * field  # what it is given is its own
        kept = np.zeros((*field.shape[:-2], 2)) if native is None else native + 1
        return field + forcing, kept

    function = Function(step, (1, 3), batched=batched, reach=0, accepts_forcing=True)
    fields, rates, forcing = FIELDS.copy(), np.array([0.5, 1.0]), np.ones((2, 1, 3))
    after, native = function.step(fields, rates, forcing=forcing)
    np.testing.assert_array_equal(after, [[[1, 1.5, 2]], [[1, 1, 1]]])
    np.testing.assert_array_equal(function.step(fields, rates, native, forcing=forcing)[1], 1.0)
    np.testing.assert_array_equal(fields, FIELDS)
    assert (function.steps, function.reach) == (2, 0)


def test_a_function_may_answer_fields_alone_and_reuse_its_memory() -> None:
    memory = np.zeros((1, 3))

    def step(field: Array, rate: float, _: None) -> Array:
        memory[:] = field + rate
        return memory

    function = Function(step, (1, 3), batched=False)
    first, native = function.step(FIELDS, np.array([1.0, 2.0]))
    function.step(FIELDS, GOOD)
    np.testing.assert_array_equal(first, np.add(FIELDS, [[[1]], [[2]]]))
    assert native is None
    assert function.step(FIELDS[:0], GOOD[:0])[0].shape == (0, 1, 3)


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (lambda _: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda u: u[:, :, :2], r"must answer fields of shape \(2, 1, 3\), got \(2, 1, 2\)"),
        (
            lambda u: u / np.array([[[1.0]], [[np.nan]]]),
            "answered NaN or infinity in the fields of state 1",
        ),
        (lambda u: (u, np.ones(3)), r"must answer 2 native parts, got an array of shape \(3,\)"),
        (
            lambda u: (u, [[1.0], [np.inf]]),
            "answered NaN or infinity in the native part of state 1",
        ),
        (lambda _: None, r"must answer fields of shape \(2, 1, 3\), got \(\)"),
        (lambda u: (u, u, u), "raised ValueError: too many values"),
        (lambda _: "words", "raised ValueError: could not convert"),
    ],
)
def test_a_function_that_fails_is_an_error_that_keeps_the_state(
    answer: Callable[[Array], Array], match: str
) -> None:
    faults = [lambda u: u, answer]
    function = Function(lambda u, _, __: faults[function.steps](u), (1, 3))
    fields, _ = function.step(FIELDS, GOOD)
    with pytest.raises(SimulatorError, match=f"step 2 failed: the function ({match})") as caught:
        function.step(fields, GOOD, np.ones((2, 4)))
    assert caught.value.step == 1
    np.testing.assert_array_equal(caught.value.fields, FIELDS)
    np.testing.assert_array_equal(caught.value.native, np.ones((2, 4)))


def test_an_interrupt_in_a_function_is_no_error_of_the_simulator() -> None:
    def step(*_: object) -> Array:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Function(step, (1, 3)).step(FIELDS, GOOD)


def test_errors_can_be_copied_as_processes_do_that_pass_them_on() -> None:
    error = copy.deepcopy(SimulatorError("step 3 failed", 2, FIELDS, None))
    assert (str(error), error.step, error.native) == ("step 3 failed", 2, None)
    np.testing.assert_array_equal(error.fields, FIELDS)


@pytest.mark.parametrize("make", [adder, lambda: Function(lambda u, *_: u, (1, 3))])
@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"fields": FIELDS[0]}, ValueError, r"fields must have shape \(b, 1, 3\), got \(1, 3\)"),
        ({"fields": FIELDS.astype(np.float32)}, TypeError, "fields must be .*, got float32 array"),
        ({"fields": FIELDS.tolist()}, TypeError, "fields must be an array of float64, got list"),
        ({"parameters": GOOD[:1]}, ValueError, r"parameters must have shape \(2,\), got \(1,\)"),
        ({"parameters": 1.0}, TypeError, "parameters must be an array of float64, got float"),
        ({"native": np.zeros((1, 1))}, ValueError, r"native must have 2 rows, got shape \(1, 1\)"),
        ({"forcing": FIELDS}, ValueError, "forcing must be None, .* pass accepts_forcing=True"),
    ],
)
def test_states_that_do_not_fit_are_refused_and_end_nothing(
    make: Callable[[], Program | Function],
    change: dict[str, Array],
    kind: type[Exception],
    match: str,
) -> None:
    with pytest.raises(kind, match=match):
        make().step(**{"fields": FIELDS, "parameters": GOOD, **change})


def test_native_parts_and_forcing_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"native must have shape \(2, 1\), got \(2, 2\)"):
        adder().step(FIELDS, GOOD, np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"forcing must have shape \(2, 1, 3\), got \(2, 1, 2\)"):
        adder(accepts_forcing=True).step(FIELDS, GOOD, forcing=FIELDS[:, :, 1:])


@pytest.mark.parametrize(
    ("command", "settings", "kind", "match"),
    [
        ("sleep 1", {}, TypeError, "list of words, got 'sleep 1'; split it with shlex.split"),
        ([], {}, ValueError, r"must begin with a program that can be run, got \(\)"),
        (["no-such-program", "1"], {}, ValueError, r"can be run, got \('no-such-program',\)"),
        (["sleep"], {"timeout": 0}, ValueError, "timeout must be positive, got 0"),
        (["sleep"], {"timeout": math.nan}, ValueError, "timeout must be positive, got nan"),
        (["sleep"], {"native_size": -1}, ValueError, "native_size must be at least 0, got -1"),
        (["sleep"], {"shape": ()}, ValueError, r"shape must be \(channels, \*grid\), got \(\)"),
        (["sleep"], {"shape": (2, 0)}, ValueError, "shape must be at least 1, got 0"),
        (
            ["sleep"],
            {"reach": 1.5},
            ValueError,
            r"reach must be whole, infinity or None, got 1\.5",
        ),
        (["sleep"], {"reach": math.nan}, ValueError, "reach must be whole, infinity or None"),
    ],
)
def test_settings_out_of_range_are_refused(
    command: list[str], settings: dict[str, float], kind: type[Exception], match: str
) -> None:
    with pytest.raises(kind, match=match):
        Program(command, **{"shape": (1, 3), **settings})  # type: ignore[arg-type]


def test_a_program_that_cannot_start_and_no_function_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "no-program"
    text.write_bytes(b"\x00")
    text.chmod(0o755)
    with pytest.raises(SimulatorError, match="step 1 failed: the program could not be started"):
        Program([str(text)], (1, 3)).step(FIELDS, GOOD)
    with pytest.raises(SimulatorError, match=r"could not be started: .*nowhere"):
        Program(["sleep"], (1, 3), directory=str(tmp_path / "nowhere")).step(FIELDS, GOOD)
    with pytest.raises(TypeError, match="function must be callable, got int"):
        Function(3, (1, 3))  # type: ignore[arg-type]
