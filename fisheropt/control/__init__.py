"""Batch-size control: controllers that propose, `quantise` that decides, and the sampler that obeys."""

from fisheropt.control.base import Controller, GradientNoise
from fisheropt.control.fixed import Fixed
from fisheropt.control.go_f import GOF
from fisheropt.control.inner_product import InnerProduct
from fisheropt.control.matched_step import matched_step
from fisheropt.control.noise_scale import NoiseScale
from fisheropt.control.norm_test import NormTest
from fisheropt.control.quantise import quantise
from fisheropt.control.sampler import AdaptiveBatchSampler
from fisheropt.control.table import resolve

__all__ = [
    "GOF",
    "AdaptiveBatchSampler",
    "Controller",
    "Fixed",
    "GradientNoise",
    "InnerProduct",
    "NoiseScale",
    "NormTest",
    "matched_step",
    "quantise",
    "resolve",
]
