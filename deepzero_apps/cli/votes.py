"""How many votes a certification takes: settings that several verbs share."""

__all__ = ["RADII", "Votes"]

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepzero_apps.cli.scenes import Scene
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.smoothing.bounds import WITH_RADII, Procedure, Settings
from deepzero_apps.smoothing.rules import rule_of
from deepzero_apps.vision import Images, Splits

RADII = (0.0, 0.25, 0.5, 0.75)


class Votes(BaseModel):
    """How many votes are asked for, and how sure a certificate is."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    images: int = Field(200, ge=0)
    """How many images of the split, from its start; 0 for all."""

    split: Literal["test", "validation"] = "test"
    """Which images: test for results, validation for choices."""

    n0: int = Field(100, ge=1)
    """Votes that select the class, an image."""

    n: int = Field(0, ge=0)
    """Further votes that bound its probability, an image, or the most of them for a procedure
    that may stop earlier; 0 for the usual: 2,000 fixed ones, or at most 200,000."""

    procedure: Procedure = "fixed"
    """fixed takes all n votes; decide stops an image as soon as --radii are decided; anytime goes
    on until the budget ends; adaptive fixes an image's number by its selection votes."""

    radii: tuple[float, ...] = ()
    """Radii that decide and adaptive decide, ascending; .25 .5 .75 by default."""

    noise: Literal["gaussian", "grid"] = "gaussian"
    """grid rounds noisy images to multiples of 1/255, for services that take 8-bit images; the
    certificate is then one of the classifier behind that rounding."""

    alpha: float = Field(0.001, gt=0, lt=0.5)
    """Probability that a certificate is false."""

    rows: int = Field(1024, ge=1, exclude=True)  # decides nothing but the speed
    """Images shown to the classifier in one call."""

    @property
    def most(self) -> int:
        """The estimation votes of an image, or the most of them."""
        return self.n or (2_000 if self.procedure == "fixed" else 200_000)

    def record(self) -> dict[str, Any]:
        """Returns the fields that define the result, resolved."""
        return {**self.model_dump(mode="json"), "n": self.most}

    def settings(self, sigma: float, seed: int) -> Settings:
        """Returns the certification settings.

        Raises:
            Misuse: If they could never certify anything.
        """
        decides = self.procedure in WITH_RADII
        try:
            settings = Settings(
                sigma=sigma,
                n0=self.n0,
                n=self.most,
                alpha=self.alpha,
                seed=seed,
                procedure=self.procedure,
                radii=self.radii or (RADII[1:] if decides else ()),
                noise=self.noise,
            )
            rule_of(settings)  # refuses radii out of reach
        except (ValidationError, ValueError) as error:
            raise Misuse(f"--n, --n0, --alpha, --procedure, --radii: {error}") from error
        return settings

    def chosen(self, view: Scene) -> Images:
        """Returns the images to certify."""
        return self.part_of(view.splits)

    def part_of(self, splits: Splits) -> Images:
        """Returns the images to certify, of data on any device."""
        every = splits.test if self.split == "test" else splits.validation
        return every.subset(slice(0, self.images or len(every)))
