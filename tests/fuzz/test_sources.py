"""The sources: nothing in them unpickles, evaluates, starts a shell, or guesses a file's name.

A call that could is listed below with the reason why it does not, and the list has no more than is there.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for part in ("deepzero_apps", "solvers") for p in (ROOT / part).rglob("*.py"))

MODULES = {
    "pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "copyreg", "ctypes", "xml", "commands",
}  # fmt: skip
"""Modules that run, or make, what a file says."""

CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp",
    "torch.load", "torch.save", "torch.jit.load", "torch.export.load", "torch.package", "torch.hub.load",
    "torch.ops.load_library", "torch.from_file", "joblib.load", "joblib.dump", "np.load", "np.fromfile",
    "numpy.load", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader",
    "yaml.UnsafeLoader", "yaml.FullLoader", "pandas.read_pickle", "shutil.unpack_archive", "archive.extract",
    "archive.extractall", "Markup", "pty.spawn", "os.chmod", "socket.socket", "subprocess.run",
    "subprocess.Popen", "subprocess.call", "subprocess.check_output",
}  # fmt: skip

ALLOWED = {
    ("deepzero_apps/cli/allocator.py", "import ctypes"): "one call of the C library, by name",
    ("deepzero_apps/cli/verbs.py", "import_module"): "verbs, from a list in the sources",
    ("deepzero_apps/cli/imported.py", "import_module"): "what the user names on the command line",
    ("deepzero_apps/foreign/mappings.py", "yaml.load"): "by a loader of plain values",
    ("deepzero_apps/smoothing/exported_files.py", "torch.export.load"): "of a copy without pickle",
    (
        "deepzero_apps/smoothing/exported_files.py",
        "torch.jit.load",
    ): "of code that reaches no file",
    ("deepzero_apps/smoothing/serving/process.py", "socket.socket"): "the port of serve",
    ("deepzero_apps/runs/records.py", "subprocess.run"): "git describe, of this very package",
    ("deepzero_apps/workers/where.py", "subprocess.run"): "Ray's status",
    ("solvers/pipes.py", "subprocess.Popen"): "the simulator that the user names",
}
"""Files and calls, and why."""


def name_of(node: ast.AST) -> str:
    """The dotted name of an expression; empty where it is none."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = name_of(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def suspects(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
            yield from (f"import {name}" for name in names if name.split(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            called = name_of(node.func)
            if called in CALLS:
                yield called
            yield from suspicious_options(node, called)


def suspicious_options(node: ast.Call, called: str) -> Iterator[str]:
    given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
    if called.endswith("import_module") and not isinstance(node.args[0], ast.Constant):
        yield "import_module"
    if given.get("shell"):
        yield f"{called}(shell=True)"
    if given.get("allow_pickle"):
        yield f"{called}(allow_pickle=True)"
    if called.endswith(("savez", "np.save")) and given.get("allow_pickle") is not False:
        yield f"{called} without allow_pickle=False"
    if called.endswith("Environment") and given.get("autoescape") is not True:
        yield f"{called} without autoescape"
    if given.get("verify") is False:
        yield f"{called}(verify=False)"
    if given.get("follow_redirects"):
        yield f"{called}(follow_redirects=True)"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "import pickle"),
        ("from dill import loads", "import dill"),
        ("torch.load(f)", "torch.load"),
        ("subprocess.run(c, shell=True)", "subprocess.run(shell=True)"),
        ("jinja2.Environment()", "jinja2.Environment without autoescape"),
        ("np.savez(f, a=1)", "np.savez without allow_pickle=False"),
        ("yaml.load(t, Loader=yaml.Loader)", "yaml.load"),
    ],
)
def test_a_suspect_is_seen(source: str, found: str) -> None:
    assert found in list(suspects(ast.parse(source)))


def test_the_sources_have_no_suspect_but_those_with_a_reason() -> None:
    found = {
        (str(path.relative_to(ROOT)), suspect)
        for path in SOURCES
        for suspect in suspects(ast.parse(path.read_text(encoding="utf-8")))
    }

    assert found - ALLOWED.keys() == set()
    assert ALLOWED.keys() - found == set(), "reasons for what is not there any more"


def test_templates_escape_everything() -> None:
    for path in (ROOT / "deepzero_apps").rglob("*.j2"):
        text = path.read_text(encoding="utf-8")
        assert "autoescape" not in text
        for words in ("|safe", "| safe", "{% raw"):
            assert text.count(words) == 0, f"{path}: {words}"
