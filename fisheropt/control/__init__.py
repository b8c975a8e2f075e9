"""Batch-size control: controllers that propose, `quantise` that decides, and the sampler that obeys."""

from fisheropt.control.adascale import AdaScale
from fisheropt.control.base import Controller, GradientNoise, Moment, Proposal
from fisheropt.control.cabs import CABS
from fisheropt.control.certified import Certified
from fisheropt.control.equal_temperature import EqualTemperature, as_batches
from fisheropt.control.fixed import Fixed
from fisheropt.control.go_f import GOF
from fisheropt.control.go_h import GOH
from fisheropt.control.inner_product import InnerProduct
from fisheropt.control.linear_decay import LinearDecay
from fisheropt.control.matched_step import matched_step
from fisheropt.control.noise_scale import NoiseScale
from fisheropt.control.norm_test import NormTest
from fisheropt.control.parts import Part
from fisheropt.control.quantise import quantise
from fisheropt.control.sample_lr import SampleLR
from fisheropt.control.sampler import AdaptiveBatchSampler
from fisheropt.control.sasa import SASA
from fisheropt.control.seesaw import Seesaw
from fisheropt.control.smith import Smith
from fisheropt.control.table import resolve

__all__ = [
    "CABS",
    "GOF",
    "GOH",
    "SASA",
    "AdaScale",
    "AdaptiveBatchSampler",
    "Certified",
    "Controller",
    "EqualTemperature",
    "Fixed",
    "GradientNoise",
    "InnerProduct",
    "LinearDecay",
    "Moment",
    "NoiseScale",
    "NormTest",
    "Part",
    "Proposal",
    "SampleLR",
    "Seesaw",
    "Smith",
    "as_batches",
    "matched_step",
    "quantise",
    "resolve",
]
