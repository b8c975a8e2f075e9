"""What FisherFloorSGD says of a group: numbers with their uncertainty, a verdict and advice."""

from __future__ import annotations

import math
from typing import Any

import torch

from fisheropt.optim import running
from fisheropt.optim.critical import null_space
from fisheropt.optim.floor import MODES
from fisheropt.optim.floor.level import evidence, resolved, threshold
from fisheropt.optim.floor.spectrum import eigen, reaches, running_eigen
from fisheropt.optim.group import Group
from fisheropt.theory.identification import samples_to_identify
from fisheropt.theory.status import ABOVE_RATIO, Status, classify
from fisheropt.theory.whitening import required_samples

Details = dict[str, Any]

_OUT_OF_REACH = 1e9

NOT_FINITE = (
    "The model is not finite in eval mode where it is in train mode, as buffers that hold inf or nan do to it: look at "
    "model.eval()(inputs), or write fisher='hutchinson' where the mode allows it, which measures in train mode."
)


def details(group: Group) -> Details:
    """Numbers of a measured group, ready for JSON."""
    count = evidence(group)
    values, resolution = resolved(running_eigen(group)[0])
    star = threshold(group, values, count)
    anchored = group["mode"] == "anchor"
    effective = (
        eigen(null_space.others(group), group["information"] + group["stiffness"])[0].clamp_min(0)
        if anchored
        else values
    )
    return {
        "directions": len(values),
        "evidence": count,
        "eigenvalues": values.tolist(),
        "eigenvalues_se": (values * (2 / count) ** 0.5).clamp_min(resolution).tolist(),
        "effective_eigenvalues": effective.tolist(),
        "effective_smallest": float(effective[0]),
        "lambda_star": star,
        "delta": group["delta"],
        "status": classify(float(values[0]), star).value,
        "identified": int((values > ABOVE_RATIO * star).sum()),
        "below": int((values < star).sum()),
        "null": int((values == 0).sum()),
        "held": int(group["held"]),
        "acted": int(group["acted"]),
        "readings": int(group["measured"]),
        "halvings": int(group["halvings"]),
        "left_out": int(group["left_out"]),
        "not_finite": int(group["not_finite"]),
        "lowest": group["lowest"],
        "floor": group["level"],
        "certified": bool(group["certified"]),
        "required_samples": required_samples(len(values), group["delta"]),
        "samples_to_identify": _to_identify(values, count, star, group["delta"]),
    }


def nothing_finite(group: Group) -> tuple[str, tuple[str, ...]]:
    """Verdict and advice where no reading has had finite information."""
    number = int(group["not_finite"])
    return f"The information was not finite at any of {number} readings, and the floor is not set.", (NOT_FINITE,)


def _to_identify(values: torch.Tensor, count: float, star: float, delta: float) -> int | None:
    """How many more samples would settle the directions that are not identified and not null; None where none is left."""
    undecided = values[(values > 0) & (values <= ABOVE_RATIO * star)]
    if not len(undecided):
        return None
    return max(1, samples_to_identify(float(undecided[0]), float(values[-1]), len(values), delta) - math.floor(count))


def held_out(group: Group) -> Details:
    """The same of batches that were not trained on; {} before the first.

    Args:
        group: with the running mean "held_information", and how many samples were distinct.
    """
    count, basis = evidence(group, "held_information", group["held_distinct"]), null_space.others(group)
    if not count:
        return {}
    values, resolution = resolved(eigen(basis, group["held_information"])[0])
    star = threshold(group, values, count)
    return {
        "held_out_samples": count,
        "held_out_smallest": float(values[0]),
        "held_out_smallest_se": max(float(values[0]) * (2 / count) ** 0.5, resolution),
        "held_out_lambda_star": star,
        "held_out_status": classify(float(values[0]), star).value,
        "held_out_certified": bool(group["level"]) and reaches(basis, group["held_information"], group["level"]),
    }


def verdict(numbers: Details, mode: str, unit: str) -> str:
    """What the information says, then what the floor does, then what held-out data say."""
    total, star = numbers["directions"], numbers["lambda_star"]
    words = (
        f"{numbers['identified']} of {total} directions are identified at {numbers['evidence']:.0f} effective {unit} "
        f"(information above 3Λ* = {ABOVE_RATIO * star:.3g}, δ = {numbers['delta']:g}); {numbers['below']} lie below "
        f"their fluctuation Λ*.{_more(numbers, unit)}"
    )
    if mode != "monitor":
        words += " " + (
            MODES[mode].verdict(numbers)
            if numbers["floor"]
            else "The floor is not set yet: too few samples were measured."
        )
    if "held_out_samples" in numbers:
        words += " " + _held_out(numbers)
    return words


def _more(numbers: Details, unit: str) -> str:
    """How many more samples would settle the rest, were their information what it looks like now."""
    more, rest = numbers["samples_to_identify"], numbers["directions"] - numbers["identified"] - numbers["null"]
    if more is None or not rest:
        return ""
    which = "them all" if not numbers["identified"] else f"the other {rest if rest > 1 else 'one'}"
    if more > _OUT_OF_REACH:
        return f" More than a billion {unit} would be needed to settle {which} in this sense."
    return f" About {_rounded(more):,} more {unit} would settle {which}."


def _rounded(number: int) -> int:
    """Two digits: the eigenvalues behind it are not known better."""
    return round(number, min(0, 2 - len(str(number))))


def _held_out(numbers: Details) -> str:
    floor = ""
    if numbers["floor"]:
        floor = f", which {'reaches' if numbers['held_out_certified'] else 'does NOT reach'} τ (Cholesky)"
    return (
        f"On {numbers['held_out_samples']:.0f} held-out samples the smallest information is "
        f"{numbers['held_out_smallest']:.3g} ± {numbers['held_out_smallest_se']:.1g}{floor}; against their Λ* = "
        f"{numbers['held_out_lambda_star']:.3g} it is {numbers['held_out_status']}."
    )


def advice(numbers: Details, group: Group, unit: str) -> tuple[str, ...]:
    """What to do about it."""
    found = []
    if not running.effective_count(group, "covariance"):
        found.append("Write FisherFloorSGD(model, ...), or run at least two backward() a step, to see the noise.")
    if numbers["not_finite"]:
        found.append(
            f"The information of {numbers['not_finite']} readings was not finite and was left out. {NOT_FINITE}"
        )
    null, total, mode = numbers["null"], numbers["directions"], group["mode"]
    if null:
        found.append(
            f"{null} of {total} directions carry no information at all, as a shift of all logits or a dead unit does: no "
            f"data will settle them, and no floor lifts them."
        )
    if numbers["status"] != Status.ABOVE.value and null < total:
        smallest, largest = numbers["eigenvalues"][null], numbers["eigenvalues"][-1]
        found.append(
            f"Weak directions have {smallest:.2g} ± {numbers['eigenvalues_se'][null]:.1g} of information where strong ones "
            f"have {largest:.2g}: parameters along them are set by the start{' and the anchor' * (mode == 'anchor')}, not "
            f"by the data."
        )
    if numbers["evidence"] < numbers["required_samples"]:
        more = numbers["required_samples"] - numbers["evidence"]
        found.append(
            f"About {more:,.0f} more {unit} would settle the information within one half in every direction; raise the "
            f"batch size, or write smoothing=.99"
        )
    if group["data_size"] is None:
        found.append(
            f"{unit.capitalize()} seen again in a later epoch are counted again here; write data_size=len(dataset) to "
            f"count no more than there are."
        )
    if mode == "anchor" and numbers["held"] > null:
        found.append(
            "Collect data along the held directions, drop redundant features, or accept the anchor as a prior."
        )
    if mode == "backtrack" and numbers["left_out"]:
        found.append("Steps are left out at the floor: lower it, or write mode='penalty' to push away from it.")
    return tuple(found)
