"""The subcommands: their names, and where each is found."""

__all__ = ["COMMANDS", "Command"]

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from deepzero_apps.cli.settings import PlainSettings


@dataclass(frozen=True)
class Command:
    """A subcommand; its module is imported when it is asked for, so that an overview costs nothing.

    Attributes:
        module: Its module in this package, with a function ``run`` of its settings.
        settings: The class of its settings, there.
        summary: What it does, in a few words.
    """

    module: str
    settings: str
    summary: str

    def settings_class(self) -> type[PlainSettings]:
        """Imports the class of its settings."""
        found: type[PlainSettings] = getattr(self._imported(), self.settings)
        return found

    def function(self) -> Callable[[Any], int]:
        """Imports what runs it: settings to an exit code."""
        run: Callable[[Any], int] = self._imported().run
        return run

    def _imported(self) -> ModuleType:
        return import_module(f"deepzero_apps.cli.{self.module}")


COMMANDS = {
    "demo": Command("demo", "DemoSettings", "both applications at a small size, with figures"),
    "train": Command("train", "TrainSettings", "train a network with or without backpropagation"),
    "defend": Command("defend", "DefendSettings", "train a denoiser in front of a classifier"),
    "plan": Command("plan", "PlanSettings", "say what a certification will cost and reach"),
    "certify": Command("certify", "CertifySettings", "issue certificates for a data set"),
    "recertify": Command(
        "recertify", "RecertifySettings", "make certificates again from the votes of a run"
    ),
    "merge": Command("merge", "MergeSettings", "join certifications of disjoint images"),
    "serve": Command("serve", "ServeSettings", "answer over HTTP, with certificates on demand"),
    "verify": Command("verify", "VerifySettings", "recompute certificates and flag what is wrong"),
    "report": Command("report", "ReportSettings", "show certificates as one HTML page"),
    "correct": Command(
        "correct", "CorrectSettings", "train a corrector in the loop of a coarse simulator"
    ),
    "rollout": Command("rollout", "RolloutSettings", "run a corrected simulator, with figures"),
    "runs list": Command("runs_list", "RunsListSettings", "find runs: their state and results"),
    "runs show": Command("runs_show", "RunsShowSettings", "tell all about one run"),
    "runs compare": Command(
        "runs_compare", "RunsCompareSettings", "put runs side by side, with a figure"
    ),
    "compare estimators": Command(
        "compare_estimators", "CompareEstimatorsSettings", "first order, CGE and RGE, q = d"
    ),
    "compare defence": Command(
        "compare_defence", "CompareDefenceSettings", "all defences at equal queries"
    ),
    "compare correction": Command(
        "compare_correction",
        "CompareCorrectionSettings",
        "all correctors at equal simulator steps",
    ),
}
