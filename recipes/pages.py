"""Self-contained HTML pages: templates with their style sheet inside, and numbers set to be read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.files import write_whole


def render(template: str, path: Path, values: Mapping[str, Any]) -> Path:
    """Fill in a template of recipes/templates and write the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    write_whole(path, environment.get_template(template).render(**values))
    return path


def number(value: float | int | None, digits: int = 4) -> str:
    """A few significant digits, with powers of ten as a reader writes them; a dash for what is not known."""
    if value is None or value != value:
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
    return f"{mantissa}·10{exponent_digits(int(exponent))}"


def exponent_digits(exponent: int) -> str:
    """The exponent in superscript."""
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def with_error(value: float | None, error: float | None) -> str:
    """Value ± one standard error, both to the second digit of the error."""
    if value is None or error is None or not error > 0:
        return number(value)
    exponent = math.floor(math.log10(max(abs(value), error)))
    exponent = 0 if -3 <= exponent < 5 else exponent
    value, error = value / 10.0**exponent, error / 10.0**exponent
    decimals = max(0, 1 - math.floor(math.log10(error)))
    both = f"{value:.{decimals}f} ± {error:.{decimals}f}"
    return f"({both})·10{exponent_digits(exponent)}" if exponent else both


def percent(value: float, error: float) -> str:
    """A share with its standard error."""
    return f"{100 * value:.2f} ± {100 * error:.2f} %"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as is fit."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
