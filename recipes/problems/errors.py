"""The one error of this package: data that cannot be used as they stand."""

from __future__ import annotations


class DataError(ValueError):
    """Data are missing, damaged or not of the expected form; the message says where, and what to do."""
