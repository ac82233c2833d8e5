"""One console for bars, warnings and log lines: nothing is torn, nothing is cut, levels hold."""

import io
import logging
import re
import threading
import warnings

import pytest
from rich.console import Console

from deepzero_apps.cli import logs, main, progress

LOGGER = logging.getLogger("deepzero_apps.cli.test_logs")


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 60 columns, as the shared console sees it."""
    screen = io.StringIO()

    def new() -> Console:
        return Console(file=screen, force_terminal=True, width=60, soft_wrap=True, emoji=False)

    monkeypatch.setattr(logs, "_new", new)
    return screen


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["a debug", "an info", "a warning", "an error", "warned"]),
        ("info", ["an info", "a warning", "an error", "warned"]),
        ("warning", ["a warning", "an error", "warned"]),
        ("error", ["an error"]),
    ],
)
def test_a_level_shows_itself_and_what_is_graver(
    level: str, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with logs.one_console(), logs.logging_on(level):
        LOGGER.debug("a %s", "debug")
        LOGGER.info("an info")
        LOGGER.warning("a warning")
        LOGGER.error("an error")
        warnings.warn("warned", stacklevel=1)
        logging.getLogger("somebody_else").warning("not ours")

    said = capsys.readouterr().err
    words = ("a debug", "an info", "a warning", "an error", "warned", "not ours")
    assert [word for word in words if word in said] == shown


def test_a_record_is_one_line_with_time_level_and_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    with logs.one_console(), logs.logging_on("info"):
        LOGGER.info("[bold]a path[/bold] %s :smile: %s", "x" * 200, "end")

    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d info deepzero_apps\.cli\.test_logs: "
        r"\[bold\]a path\[/bold\] x{200} :smile: end",
        line,
    )


def test_what_was_set_before_is_put_back() -> None:
    logger = logging.getLogger("deepzero_apps")
    before = (logger.level, list(logger.handlers), warnings.showwarning)

    with logs.one_console(), logs.logging_on("debug"):
        assert logger.level == logging.DEBUG

    assert (logger.level, list(logger.handlers), warnings.showwarning) == before


@pytest.mark.filterwarnings("default")
def test_lines_stand_above_the_bar_and_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)

    with logs.one_console(), logs.logging_on("info"):
        for i in progress.tracked(range(3), "training", total=3):
            LOGGER.info("line %d from here", i)
            thread = threading.Thread(target=LOGGER.info, args=("line %d from a thread", i))
            thread.start()
            thread.join()
            warnings.warn(f"warning number {i}", stacklevel=1)

    # The screen as it is seen: a carriage return and "erase line" begin a line anew.
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\r", plain).replace("\r\n", "\n")
    lines = [line.rsplit("\r", 1)[-1] for line in shown.splitlines()]
    whole = [re.sub(r"^[\d:]+ info \S+ ", "", line.strip()) for line in lines]
    for i in range(3):
        assert whole.count(f"line {i} from here") == 1
        assert whole.count(f"line {i} from a thread") == 1
        assert whole.count(f"warning: warning number {i}") == 1
    assert "training" in shown


def test_what_cannot_be_told_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with logs.one_console(), logs.logging_on("info"):
        LOGGER.info("a number: %d", "none")
        LOGGER.info("after it")

    assert "after it" in capsys.readouterr().err


def test_a_block_is_timed_for_debugging(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.one_console(), logs.logging_on("debug"), logs.timed(LOGGER, "nothing"):
        pass
    assert re.search(r"debug .*: nothing took 0\.0\d\d s", capsys.readouterr().err)


def test_a_level_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", "--log-level", "loud"]) == 2
    assert "loud" in "".join(capsys.readouterr())
