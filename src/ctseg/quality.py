"""How good a mask probably is, from the network's own probabilities: an estimate of its Dice for each case.

The expected Dice of a mask m, if each voxel belonged to the organ with the probability p that the network gives it, is
about 2 sum(p m) / (sum(p) + sum(m)) (the soft Dice of the network with itself; class-wise confidence as in Li et al.,
"Estimating model performance under domain shifts with class-specific confidence scores", MICCAI 2022). Networks are
surer than they are right, so the number is mapped to a Dice by a straight line that is fitted on patients that were not
trained on (`ctseg calibrate`), and kept in the bundle's metadata with the correlation measured there. Without such a
line no estimate is given, only the expected Dice itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctseg.errors import BundleError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Calibration:
    """A straight line from expected Dice to Dice, and how well it held where it was fitted.

    Attributes:
        slope: of the line.
        intercept: of the line.
        patients: how many it was fitted on.
        error: mean absolute difference from the real Dice, each patient estimated by a line fitted on the others.
        pearson: correlation of expected and real Dice over the patients.
        spearman: their rank correlation.
        low: the lowest expected Dice of these patients; None where it is not known.
        high: the highest.
    """

    slope: float
    intercept: float
    patients: int
    error: float
    pearson: float
    spearman: float
    low: float | None = None
    high: float | None = None

    def outside(self, expected: float) -> bool:
        """Whether the line would be drawn on beyond the patients it was fitted on: its error says nothing there."""
        return (self.low is not None and expected < self.low) or (self.high is not None and expected > self.high)

    def dice(self, expected: float) -> float:
        """Return the Dice that an expected Dice stands for, within 0 to 1."""
        return min(1.0, max(0.0, self.slope * expected + self.intercept))


@dataclass(frozen=True)
class Quality:
    """What is to be thought of one organ's mask in one case.

    Attributes:
        expected_dice: from the probabilities alone.
        dice: the estimate; None without a calibration.
        error: mean absolute error of such estimates where they were calibrated; None without, and outside.
        outside: the expected Dice is none that the calibration has seen.
    """

    expected_dice: float
    dice: float | None = None
    error: float | None = None
    outside: bool = False


def overlap_sums(logits: torch.Tensor) -> list[tuple[float, float, float]]:
    """Return (sum(p m), sum(p), sum(m)) of each organ, m being the network's own mask.

    Args:
        logits: (C, ...): one organ's logit, or background and organs. Voxels with the lowest float were not run and
            count as certain background.
    """
    from ctseg.annotation.uncertainty import organ_sums

    return [sums.overlap for sums in organ_sums(logits, entropy=False)]


def expected_dice(sums: tuple[float, float, float]) -> float | None:
    """Return 2 sum(p m) / (sum(p) + sum(m)); None where the mask is empty, of which nothing can be said."""
    common, probable, masked = sums
    return 2 * common / (probable + masked) if masked else None


def estimate(
    logits: torch.Tensor, labels: Sequence[str], calibrations: Mapping[str, Calibration]
) -> dict[str, Quality]:
    """Return the quality of each organ that the network found.

    Args:
        logits: as for `overlap_sums`.
        labels: names of the organs, in the order of the channels.
        calibrations: by name of the organ, from `calibrations_of`.
    """
    found = {name: expected_dice(sums) for name, sums in zip(labels, overlap_sums(logits), strict=True)}
    return estimated({name: value for name, value in found.items() if value is not None}, calibrations)


def estimated(expected: Mapping[str, float], calibrations: Mapping[str, Calibration]) -> dict[str, Quality]:
    """Return the quality of organs whose expected Dice is known.

    Args:
        expected: organ -> expected Dice.
        calibrations: as for `estimate`.
    """
    found = {}
    for name, value in expected.items():
        line = calibrations.get(name)
        if line is None:
            found[name] = Quality(value)
        else:
            outside = line.outside(value)
            found[name] = Quality(value, line.dice(value), None if outside else line.error, outside)
    return found


def calibrations_of(told: Any, bundle: str) -> dict[str, Calibration]:
    """Read the `quality` of a bundle's metadata: organ -> the fields of `Calibration`.

    Raises:
        BundleError: when it has another form.
    """
    if not told:
        return {}
    try:
        return {str(name): Calibration(**entry) for name, entry in told.items()}
    except (AttributeError, TypeError) as error:
        fields = ", ".join(Calibration.__dataclass_fields__)
        raise BundleError(
            f"the quality of bundle {bundle} is {told!r}, expected for each organ {fields}; "
            "write it with ctseg calibrate, and make the bundle again with scripts/build_bundles"
        ) from error


def summary(quality: Mapping[str, Quality]) -> dict[str, Any] | None:
    """Return it as plain values: each organ's, and `dice`, the mean estimate; None where nothing is estimated."""
    if not quality:
        return None
    organs = {
        name: {
            "expected_dice": round(one.expected_dice, 4),
            "dice": None if one.dice is None else round(one.dice, 3),
            "error": None if one.error is None else round(one.error, 3),
            "outside": one.outside,
        }
        for name, one in quality.items()
    }
    known = [one.dice for one in quality.values() if one.dice is not None]
    return {"dice": round(sum(known) / len(known), 3) if known else None, "organs": organs}


def notes(quality: Mapping[str, Any] | None) -> list[str]:
    """Return a line for each organ of what `summary` returned whose Dice is estimated."""
    lines = []
    for name, one in ((quality or {}).get("organs") or {}).items():
        if one["dice"] is not None:
            doubt = ", far from the patients it was fitted on: do not trust it" if one.get("outside") else ""
            lines.append(f"note: {name}: estimated Dice {one['dice']:.2f}, no measurement{doubt} (docs/quality.md)")
    return lines
