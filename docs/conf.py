"""Sphinx configuration."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

project = "fisheropt"
author = "fisheropt contributors"
copyright = "2026, fisheropt contributors"
version = release = re.findall(r'^version = "(.*)"', (HERE.parent / "pyproject.toml").read_text(), re.MULTILINE)[0]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "bibliography",
]
exclude_patterns = ["_build", "experiments/results", "benchmarks"]
myst_enable_extensions = ["amsmath", "dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

default_role = "code"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "fisheropt"
