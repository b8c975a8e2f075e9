"""What each public statistic is, of the oracle's per-sample gradients; a new statistic enters by one class.

A judge builds a statistic for some named parameters and yields, of a tap that has read it, pairs of what was found and what
the gradients say, both of one sample's gradient.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import ClassVar

import torch

import fisheropt
from fisheropt.statistics import JointStatistic, Statistic

JUDGES: dict[str, "Judge"] = {}
K = 3


class Judge(ABC):
    """Args: named: the tapped parameters by name; truth: gradients in the same order, [n, *parameter] each."""

    of: ClassVar[type[Statistic]]

    @abstractmethod
    def build(self, named):
        """The statistic."""

    @abstractmethod
    def pairs(self, tap, named, truth, scale):
        """What was found and what is right, for a loss that was multiplied by `scale` before backward."""

    def dof(self, tap, named):
        """The degrees of freedom that the tap tells."""
        return tap.read(None if issubclass(self.of, JointStatistic) else next(iter(named.values()))).dof


def judge(title):
    def enrol(cls):
        JUDGES[title] = cls()
        return cls

    return enrol


def flat(gradients):
    return torch.cat([g.flatten(1) for g in gradients], 1)


def noise(tap, parameter, scale):
    return tap.read(parameter).unscaled(scale).covariance().per_sample()


def public(root=Statistic):
    """The statistics that a user can name."""
    found = {cls for cls in root.__subclasses__() if getattr(fisheropt, cls.__name__, None) is cls}
    return found.union(*(public(cls) for cls in root.__subclasses__()))


@judge("Trace")
class OfTrace(Judge):
    of = fisheropt.Trace

    def build(self, named):
        return fisheropt.Trace()

    def pairs(self, tap, named, truth, scale):
        for p, g in zip(named.values(), truth, strict=True):
            yield noise(tap, p, scale).trace(), g.flatten(1).var(0).sum()


@judge("SecondMoment")
class OfSecondMoment(Judge):
    of = fisheropt.SecondMoment

    def build(self, named):
        return fisheropt.SecondMoment()

    def pairs(self, tap, named, truth, scale):
        for p, g in zip(named.values(), truth, strict=True):
            yield noise(tap, p, scale).diagonal(), g.var(0)


@judge("Kronecker")
class OfKronecker(Judge):
    of = fisheropt.Kronecker

    def build(self, named):
        return fisheropt.Kronecker()

    def pairs(self, tap, named, truth, scale):
        for p, g in zip(named.values(), truth, strict=True):
            g = (g - g.mean(0)).reshape(len(g), *((g.shape[1], -1) if g.ndim > 1 else (1, 1)))
            left, right = fisheropt.Kronecker().factors(noise(tap, p, scale), p)
            yield left, torch.einsum("noi,npi->op", g, g) / (len(g) - 1)
            yield right, torch.einsum("noi,noj->ij", g, g) / (len(g) - 1)


@judge("FullCovariance")
class OfFullCovariance(Judge):
    of = fisheropt.FullCovariance

    def build(self, named):
        return fisheropt.FullCovariance()

    def pairs(self, tap, named, truth, scale):
        yield noise(tap, None, scale).matrix(), torch.atleast_2d(torch.cov(flat(truth).T))


class OfProjection(Judge):
    """In random directions of one kind."""

    of = fisheropt.Projection

    def build(self, named):
        return fisheropt.Projection(self.along(named))

    def pairs(self, tap, named, truth, scale):
        units, along = torch.eye(K, dtype=truth[0].dtype), self.along(named).values()
        basis = torch.cat([torch.stack([d.combine(u).reshape(-1) for u in units]) for d in along], 1)
        yield noise(tap, None, scale).matrix(), torch.cov(basis @ flat(truth).T)

    def along(self, named):
        generator = torch.Generator().manual_seed(7)
        return {
            name: self.drawn(p, partial(torch.randn, generator=generator, dtype=p.dtype)) for name, p in named.items()
        }

    @abstractmethod
    def drawn(self, parameter, draw):
        """The part of the directions in one parameter."""


@judge("Projection, dense")
class OfDense(OfProjection):
    def drawn(self, parameter, draw):
        return fisheropt.DenseDirections(draw(K, *parameter.shape))


@judge("Projection, rank one")
class OfRankOne(OfProjection):
    def drawn(self, parameter, draw):
        if parameter.ndim < 2:
            return fisheropt.DenseDirections(draw(K, *parameter.shape))
        return fisheropt.RankOneDirections(draw(K, parameter.shape[0]), draw(K, parameter[0].numel()))


@judge("Gram")
class OfGram(Judge):
    of = fisheropt.Gram

    def build(self, named):
        return fisheropt.Gram()

    def pairs(self, tap, named, truth, scale):
        g = flat(truth) - flat(truth).mean(0)
        yield tap.gram().unscaled(scale).matrix, (g @ g.T / (len(g) - 1)).double()

    def dof(self, tap, named):
        return tap.gram().dof
