"""Taps: where and when the statistics are collected."""

from fisheropt.taps.base import Tap
from fisheropt.taps.explain import Explanation, explain
from fisheropt.taps.microbatch import MicrobatchTap
from fisheropt.taps.observe import observe
from fisheropt.taps.routes import Route, routes
from fisheropt.taps.sample import SampleTap

__all__ = ["Explanation", "MicrobatchTap", "Route", "SampleTap", "Tap", "explain", "observe", "routes"]
