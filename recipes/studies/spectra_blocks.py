"""MS-T1: bulk, outliers and overlaps of diagonal blocks against sampled matrices."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, final

import torch

from fisheropt.theory.spectrum import Kind
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Study, Tell
from recipes.studies.spectra_compare import Comparison, compare, histograms
from recipes.studies.spectra_samples import Setting, orthonormal, random_head

OVERLAP = 0.02
TRAINED, NOISE = 1.5, 0.4


class Case(NamedTuple):
    """A line of MS-T1: its setting, and the edge and outliers that the document has at a random start of its own."""

    proportions: tuple[float, ...]
    snr: float
    ratio: float
    kind: Kind
    trained: bool
    edge: float
    outliers: tuple[float, ...]


TWO, THREE = (0.5, 0.5), (0.5, 0.3, 0.2)
CASES = {
    "T1a": Case(TWO, 4.0, 4.0, "hessian", False, 0.1266, (0.1887, 0.1885)),
    "T1b": Case(TWO, 4.0, 4.0, "information", False, 0.1873, (0.2844, 0.2540)),
    "T1c": Case(TWO, 1.0, 4.0, "hessian", False, 0.4289, ()),
    "T1d": Case(TWO, 1.0, 4.0, "information", False, 0.9116, (0.9600,)),
    "T1e": Case(TWO, 20.0, 2.0, "hessian", False, 0.0356, (0.1410, 0.1409)),
    "T1f": Case(THREE, 8.0, 3.0, "hessian", False, 0.0664, (0.1443, 0.1015, 0.0832)),
    "T1g": Case(THREE, 8.0, 3.0, "information", False, 0.1072, (0.2892,)),
    "T1h": Case(THREE, 8.0, 3.0, "hessian", True, 0.0554, (0.1242, 0.0639, 0.0562)),
    "T1i": Case(THREE, 8.0, 3.0, "information", True, 0.0513, (0.0726,)),
}
_NAMES: dict[Kind, str] = {"hessian": "Hessian", "information": "information"}
_PAIRS = (("T1f", "T1g", "far from trained"), ("T1h", "T1i", "near trained"))
# The document's nodes reached out to a probability of about 2e-6, which decides soft edges.
_NODES = 500_000


@final
class SpectraBlocks(Study):
    """The nine blocks of MS-T1.

    Args:
        dimension: d.
        draws: sampled matrices a case.
        seed: of heads and samples.
    """

    title: ClassVar[str] = "Effective spectra of diagonal blocks"
    question: ClassVar[str] = (
        "Do bulk, edge, outliers and eigenvector overlaps of sampled Hessian and information blocks of softmax regression "
        "on a Gaussian mixture lie where the effective spectrum puts them? Two and three classes, random and nearly "
        "trained heads."
    )
    reference: ClassVar[str] = "after benarous2025local, MS-T1"

    def __init__(self, dimension: int = 800, draws: int = 3, seed: int = 0) -> None:
        require(dimension >= 20, f"dimension={dimension}", "dimension=800, 20 or more")
        require(draws >= 1, f"draws={draws}", "draws=3, one or more")
        self.dimension, self.draws, self.seed = dimension, draws, seed

    def run(self, tell: Tell) -> Findings:
        """Predict and sample every case."""
        generator = torch.Generator().manual_seed(self.seed)
        random, noise = (random_head(self.dimension, 3, generator) for _ in range(2))
        rows: list[Finding] = []
        found: dict[str, Comparison] = {}
        for index, (name, case) in enumerate(CASES.items()):
            tell(index / len(CASES), f"{name}, {_NAMES[case.kind]}")
            means = orthonormal(self.dimension, len(case.proportions))
            head = TRAINED * means + NOISE * noise if case.trained else random[:, : len(case.proportions)]
            setting = Setting(means, head, case.proportions, case.snr)
            found[name] = compare(
                f"{name}, {_NAMES[case.kind]}", setting, case.ratio, case.kind, 0, self.draws, generator
            )
            rows.append(_edge(name, case, setting))
            rows += found[name].rows(case.outliers, overlap=OVERLAP)
        pictures = [histograms(f"Head {where}", found[a], found[b]) for a, b, where in _PAIRS]
        return Findings(tuple(rows), tuple(pictures))


def _edge(name: str, case: Case, setting: Setting) -> Finding:
    """The predicted edge beside the document's; the information's depends on the start and the nodes."""
    hessian = case.kind == "hessian"
    seen = setting.predicted(case.ratio, case.kind, 0, samples=_NODES).edge
    remark = "" if hessian else "soft: moved by the random start, and by the nodes, which are 500 000 here"
    what = f"{name}, {_NAMES[case.kind]}: predicted edge"
    return Finding.near(what, seen, case.edge, relative=0.04 if hessian else 0.09, remark=remark)
