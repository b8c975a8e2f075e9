"""Taps: where and when the statistics are collected."""

from fisheropt.taps.base import Tap
from fisheropt.taps.microbatch import MicrobatchTap
from fisheropt.taps.observe import observe
from fisheropt.taps.routes import Route, explain, routes
from fisheropt.taps.sample import SampleTap

__all__ = ["MicrobatchTap", "Route", "SampleTap", "Tap", "explain", "observe", "routes"]
