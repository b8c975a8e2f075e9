"""Error bars of a fit: sandwich covariance, standard errors, intervals and tests."""

from fisheropt.inference.covariance import SandwichCovariance
from fisheropt.inference.heads import draw, log_loss, profiled
from fisheropt.inference.information import InformationTest
from fisheropt.inference.of_model import sandwich
from fisheropt.inference.wald import Wald

__all__ = ["InformationTest", "SandwichCovariance", "Wald", "draw", "log_loss", "profiled", "sandwich"]
