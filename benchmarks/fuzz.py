r"""Feeds broken files to every reader of what a stranger may have written.

    OMP_NUM_THREADS=1 python benchmarks/fuzz.py --inputs 120000 --json fuzz.json
    OMP_NUM_THREADS=1 python benchmarks/fuzz.py --atheris 120

Valid files are broken with their structure in mind (``tests/fuzz/mutations.py``): bits, cuts,
splices, values of other types, huge numbers, deep nesting, bytes that are no text. Each reader may
refuse with the errors that it documents (``tests/fuzz/readers.py``). A *fault* is any other error,
an input that takes more than five seconds of the processor or a minute, or one that needs more than 8 GiB. Inputs follow from the
seed alone: ``--only NAME --seed S --first I --inputs 1`` makes one again. The first input of each
fault is kept below ``--keep``; it belongs into ``tests/fuzz/corpus``.

``--atheris SECONDS`` feeds the readers that are Python all through what libFuzzer makes of coverage,
so many seconds each (``pip install atheris``).
"""

import argparse
import hashlib
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from random import Random
from signal import ITIMER_PROF, ITIMER_REAL, SIGALRM, SIGPROF, setitimer, signal
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

if TYPE_CHECKING:
    from tests.fuzz.readers import Reader

SECONDS, LONGEST, BYTES = 5, 60, 8 * 2**30
PYTHON = ("service answers", "requests to serve", "logs of the field", "run folders", "votes")


INSTRUMENTED = [
    *("deepzero_apps.smoothing.services", "deepzero_apps.smoothing.serving", "jmespath", "json"),
    *(
        "deepzero_apps.smoothing.verification",
        "deepzero_apps.runs",
        "deepzero_apps.smoothing.vote_log",
    ),
]
"""What libFuzzer is told the coverage of."""


class Hang(BaseException):
    """An input took too long. No reader may catch it."""


def main() -> int:
    """Fuzzes, prints a line a reader, and fails if there is a fault."""
    options = _options()
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    logging.disable()
    warnings.simplefilter("ignore")
    if options.inside:
        return _guided(options.only, options.atheris, options.keep)
    if options.atheris:
        return _atheris(options.atheris, options.keep)
    from tests.fuzz.readers import READERS

    chosen = [READERS[options.only]] if options.only else list(READERS.values())
    shares = sum(reader.share for reader in chosen)
    rows = []
    for reader in chosen:
        inputs = -(-options.inputs * reader.share // shares)
        rows.append(_fuzzed(reader, range(options.first, options.first + inputs), options))
        print(json.dumps(rows[-1]), flush=True)
    faults = sum(sum(row["faults"].values()) for row in rows)
    print(f"{sum(row['inputs'] for row in rows):,} inputs, {faults} faults")
    if options.json is not None:
        options.json.write_text(json.dumps({"seed": options.seed, "rows": rows}, indent=2) + "\n")
    return 1 if faults else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together")
    parser.add_argument("--only", help="one reader, by its name")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--atheris", type=int, metavar="SECONDS")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _fuzzed(reader: "Reader", numbers: range, options: argparse.Namespace) -> dict[str, Any]:
    """Feeds a reader; says what became of it."""
    faults: Counter[str] = Counter()
    accepted, slowest, started = 0, 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        for number in numbers:
            content = reader.broken(Random(f"{reader.name}/{options.seed}/{number}"))
            began = time.perf_counter()
            good, fault = _tried(reader, content, Path(scratch))
            slowest = max(slowest, time.perf_counter() - began)
            accepted += good
            if fault is not None:
                kind = fault.split(": ")[0]
                faults[kind] += 1
                if faults[kind] == 1:
                    _keep(reader, content, options.keep)
                    print(f"  FAULT {reader.name} #{number}: {fault}", flush=True)
    return {
        "reader": reader.name,
        "inputs": len(numbers),
        "accepted": accepted,
        "faults": dict(faults),
        "seconds": round(time.perf_counter() - started, 1),
        "slowest": round(slowest, 3),
    }


def _tried(reader: "Reader", content: bytes, folder: Path) -> tuple[bool, str | None]:
    """Whether an input was accepted, and what went wrong."""
    try:
        with _within(ITIMER_PROF, SECONDS), _within(ITIMER_REAL, LONGEST):
            return reader.accepts(content, folder), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever a reader raises is what is looked for
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "deepzero_apps" in f.filename or "/solvers/" in f.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "elsewhere"
        return False, f"{type(error).__name__} at {place}: {str(error)[:160]!r}"


@contextmanager
def _within(clock: int, seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang(f"more than {seconds} s")

    number = SIGALRM if clock == ITIMER_REAL else SIGPROF
    before = signal(number, stop)
    setitimer(clock, seconds)
    try:
        yield
    finally:
        setitimer(clock, 0)
        signal(number, before)


def _keep(reader: "Reader", content: bytes, keep: Path) -> None:
    place = keep / reader.name.replace(" ", "-")
    place.mkdir(parents=True, exist_ok=True)
    (place / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)


def _atheris(seconds: int, keep: Path) -> int:
    """Each reader in a process of its own, since libFuzzer ends its process."""
    codes = []
    for name in PYTHON:
        print(f"{name}:", flush=True)
        flags = ["--inside", "--only", name, "--atheris", str(seconds), "--keep", str(keep)]
        codes.append(subprocess.run([sys.executable, __file__, *flags], check=False).returncode)
    return int(any(codes))


def _guided(name: str, seconds: int, keep: Path) -> int:
    atheris = import_module("atheris")
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.readers import READERS

    reader = READERS[name]
    with tempfile.TemporaryDirectory() as corpus, tempfile.TemporaryDirectory() as scratch:
        for number, seed in enumerate(reader.seeds()):
            Path(corpus, str(number)).write_bytes(seed)

        def test(content: bytes) -> None:
            _, fault = _tried(reader, content, Path(scratch))
            if fault is not None:
                _keep(reader, content, keep)
                raise RuntimeError(fault)

        flags = [f"-max_total_time={seconds}", "-max_len=4096", "-print_final_stats=1"]
        flags += ["-verbosity=0", "-rss_limit_mb=8192"]
        atheris.Setup([sys.argv[0], *flags, corpus], test)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
