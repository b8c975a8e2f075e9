"""report.html: what a run did, in small pictures, in numbers with their uncertainty, and in words.

`python recipes/report.py <run directory>` writes it anew.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recipes import figures
from recipes.pages import duration, number, percent, render, with_error
from recipes.record import read_metrics, read_result
from recipes.schema import SETTINGS
from recipes.studies import conduct
from recipes.studies import page as study_page

PAGE = "report.html"

Row = tuple[str, str, str]

STATUS = {
    "ABOVE": "above: the data tell every measured direction apart",
    "UNDECIDED": "undecided: the weakest direction cannot be told from its sampling fluctuation yet",
    "BELOW": "below: the weakest direction carries no information that these data could show",
}


def write(folder: Path) -> Path:
    """Write the page of the run in `folder` from its metrics.jsonl, result.json and config.yaml."""
    result = read_result(folder)
    if result is None:
        raise FileNotFoundError(
            f"{folder} has no result.json, so it is no directory of a run; give the path a run printed."
        )
    if result["findings"] is not None:
        return study_page.write(folder, folder / PAGE, result)
    lines = read_metrics(folder)
    group = first_group(result)
    values = {
        "result": result,
        "sentence": sentence(result),
        "verdict": (result["report"] or {}).get("verdict"),
        "advice": (result["report"] or {}).get("advice", []),
        "cards": cards(result),
        "panels": panels(lines, result, group),
        "rows": outcome_rows(result),
        "noise": noise_rows(result, group),
        "eigenvalues": eigenvalue_rows(group),
        "extra_groups": max(0, len((result["report"] or {}).get("groups", [])) - 1),
        "config": (folder / SETTINGS).read_text(),
        "command": " ".join(["python recipes/train.py", *result["overrides"]]),
    }
    return render("report.html", folder / PAGE, values)


def sentence(result: Mapping[str, Any]) -> str:
    """The outcome in a line."""
    if result.get("findings") is not None:
        return conduct.sentence(result)
    if result["train_loss"] is None:
        return result["error"] or "nothing was measured"
    parts = [f"training loss {number(result['train_loss'], 6)}"]
    if result["relative_suboptimality"] is not None:
        parts.append(f"(f - f*)/f* = {number(result['relative_suboptimality'], 3)}")
    if result["accuracy"] is not None:
        parts.append(f"test accuracy {100 * result['accuracy']:.2f} %")
    return ", ".join(parts) + f" after {result['steps']} steps in {duration(result['seconds'])}"


def first_group(result: Mapping[str, Any]) -> dict[str, Any]:
    """The report of the first parameter group, {} where there is none."""
    groups = (result["report"] or {}).get("groups", [])
    return dict(groups[0]) if groups else {}


def cards(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The few numbers to see first."""
    shown = [("training loss", number(result["train_loss"], 5))]
    if result["relative_suboptimality"] is not None:
        shown.append(("(f − f*)/f*", number(result["relative_suboptimality"], 3)))
    if result["accuracy"] is not None:
        shown.append(("test accuracy", f"{100 * result['accuracy']:.2f} %"))
    elif result["test_loss"] is not None:
        shown.append(("test loss", number(result["test_loss"], 5)))
    if result["steps"] is not None:
        shown += [("steps", number(result["steps"])), ("time", duration(result["seconds"]))]
    return shown


def panels(
    lines: list[dict[str, Any]], result: Mapping[str, Any], group: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Title, explanation and picture of every panel that the run has data for."""
    if not lines:
        return []
    drawn = [
        (
            "Loss",
            "On all training data, and on the test data; grey: the minibatches.",
            figures.loss(lines, result["optimum"]),
        ),
        (
            "Distance to the optimum",
            "(f − f*)/f*, from an optimum computed to machine precision.",
            figures.suboptimality(lines),
        ),
        (
            "Fisher spectrum",
            f"{_shown_of(group)}. Below Λ* a direction is lost in sampling fluctuation, above 3Λ* it is identified.",
            figures.spectrum(lines, "eigenvalues"),
        ),
        (
            "Spectrum with the floor",
            "The effective eigenvalues that the optimizer works with: with the anchor they reach the floor τ.",
            figures.spectrum(lines, "effective_eigenvalues"),
        ),
        (
            "Spectrum at the end",
            "Dots: eigenvalues ± 2 standard errors. Dashes: with the floor.",
            figures.final_spectrum(group),
        ),
        (
            "Effective dimension",
            "Directions that the damped metric resolves, ± 2 standard errors.",
            figures.dimension(lines),
        ),
        (
            "Signal and noise of a step",
            "Where noise is above signal, a step is mostly chance. Negative estimates are left out.",
            figures.signal_and_noise(lines),
        ),
        (
            "Temperature and batch size",
            "Learning rate over batch size sets how far the noise spreads.",
            figures.temperature(lines),
        ),
        (
            "Noise floor",
            "Distance to the optimum, and where fresh samples at the present temperature would hold it, τ tr(PG)/4. A "
            "loader that visits every sample once an epoch goes below it.",
            figures.noise_floor(lines),
        ),
        ("Test accuracy", "Share of the test data classified rightly.", figures.accuracy(lines)),
    ]
    return [(title, words, picture) for title, words, picture in drawn if picture is not None]


def outcome_rows(result: Mapping[str, Any]) -> list[Row]:
    """Objective and generalisation, each with what it was computed over."""
    if result["train_loss"] is None:
        return []
    every = f"exact, over all {number(result['train_samples'])} training samples"
    rows = [("training loss f", number(result["train_loss"], 8), every)]
    if result["optimum"] is not None:
        rows.append(("optimum f*", number(result["optimum"], 8), "exact, solved for in float64"))
        rows.append(("f − f*", number(result["suboptimality"], 4), every))
    if result.get("information_min") is not None:
        rows.append(("smallest Fisher information", number(result["information_min"], 4), every))
    if result["test_loss"] is not None:
        rows.append(
            (
                "test loss",
                number(result["test_loss"], 6),
                f"mean over {number(result['test_samples'])} test samples",
            )
        )
    if result["accuracy"] is not None:
        share, count = result["accuracy"], result["test_samples"]
        error = (share * (1 - share) / count) ** 0.5
        rows.append(("test accuracy", percent(share, error), f"binomial standard error, {number(count)} test samples"))
    return rows


def noise_rows(result: Mapping[str, Any], group: Mapping[str, Any]) -> list[Row]:
    """What the gradient noise says, each number with its standard error or degrees of freedom."""
    if not group:
        return []
    dof = f"{number(round(group['dof']))} degrees of freedom" if group.get("dof") else "degrees of freedom unknown"
    counted = f"{number(round(group['count']))} effective {group.get('unit', 'sample')}s" if group.get("count") else dof
    known = {
        "noise_trace": ("noise per sample, tr G", dof),
        "signal": ("signal ‖∇L‖², unbiased", dof),
        "temperature": ("temperature η/b", "exact"),
        "temperature_momentum": ("temperature with momentum and shortened steps", "exact"),
        "temperature_finite": ("the same for this many data", "exact"),
        "noise_floor": ("noise floor of the loss, fresh samples", dof),
        "noise_floor_epoch_end": ("the same at the end of a shuffled epoch", "if the metric is the inverse curvature"),
        "stationary": ("stationary at this temperature", "upper bound of 95 %"),
        "predicted_decrease": ("decrease of the loss a step", "from products of gradients"),
        "serial_steps": ("serial steps", "exact"),
        "samples_used": ("samples used", "exact"),
        "batch_changes": ("changes of the batch size", "exact"),
        "batch_size": ("batch size b", "exact"),
        "lambda_star": (
            "threshold Λ*",
            f"holds with probability {1 - group.get('delta', 0.05):g}, {counted}",
        ),
        "status": ("state of the weakest direction", counted),
        "floor": ("floor τ", f"set from Λ*, {counted}"),
        "certified": ("floor certified by Cholesky", "exact for the measured matrix"),
        "lowest": ("smallest information of a reading", "over the whole run"),
        "held_out_smallest": (
            "smallest information on held-out data",
            f"{number(round(group.get('held_out_samples') or 0))} distinct samples",
        ),
        "held_out_status": ("state of the weakest direction, held out", ""),
        "held_out_certified": ("floor certified on held-out data", "exact for the measured matrix"),
        "identified": ("directions identified", f"of {group.get('directions', '?')} measured, {counted}"),
        "samples_to_identify": ("more samples to identify the others", "if their information stays as it is"),
        "required_samples": ("samples needed for ± 50 %", "bound, for this number of directions"),
        "metric": ("metric", ""),
        "damping": ("damping", counted),
        "effective_dimension": ("effective dimension", counted),
        "controller": ("controller", ""),
        "proposed_batch_size": ("batch size proposed", dof),
        "why": ("what the controller last said", ""),
    }
    shown = [key for key in known if group.get(key) not in (None, "")]
    return [(known[key][0], _shown(key, group), known[key][1]) for key in shown]


def eigenvalue_rows(group: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rank, eigenvalue with its error, effective eigenvalue, and on which side of the threshold it is."""
    values, errors, lifted = (
        group.get(key) or [] for key in ("eigenvalues", "eigenvalues_se", "effective_eigenvalues")
    )
    star = group.get("lambda_star")
    order = sorted(range(len(values)), key=lambda i: float(values[i]))
    rows = []
    for rank, i in enumerate(order, start=1):
        side = "–" if star is None else _side(values[i], star)
        effective = number(sorted(lifted)[rank - 1]) if lifted else "–"
        rows.append((str(rank), with_error(values[i], errors[i] if errors else None), effective, side))
    return rows


def _side(value: float, star: float) -> str:
    if value > 3 * star:
        return "identified, above 3Λ*"
    return "undecided" if value > star else "below Λ*"


def _shown_of(group: Mapping[str, Any]) -> str:
    count = len(group.get("eigenvalues") or [])
    return f"{figures.CURVES} of {count} eigenvalues" if count > figures.CURVES else "Eigenvalues"


def _shown(key: str, group: Mapping[str, Any]) -> str:
    value = group[key]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return STATUS.get(value, value)
    return with_error(value, group.get(f"{key}_se"))


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["."]:
        print(f"report: {write(Path(argument))}")
