"""MS-T2: the full matrices of softmax regression, without the gauge, against sampled ones."""

from __future__ import annotations

from typing import ClassVar, final

import torch

from fisheropt.theory.spectrum import Kind
from recipes.studies.arguments import require
from recipes.studies.base import Finding, Findings, Study, Tell
from recipes.studies.spectra_compare import compare, histograms
from recipes.studies.spectra_samples import Setting, orthonormal, random_head

PROPORTIONS, SNR, RATIO, NOISE = (0.4, 0.35, 0.25), 8.0, 3.0, 0.4
OUTLIERS: dict[Kind, tuple[float, ...]] = {
    "hessian": (0.1903, 0.1705, 0.1348, 0.1249, 0.1106, 0.1021),
    "information": (0.1362, 0.1196),
}
EDGES: dict[Kind, float] = {"hessian": 0.108, "information": 0.090}
OVERLAP = 0.04
_NAMES: dict[Kind, str] = {"hessian": "T2a, Hessian", "information": "T2b, information"}
_EDGE_REMARKS: dict[Kind, str] = {
    "hessian": "the document's edge is too high: it hides a sixth outlier, which its own sample shows at .1021",
    "information": "soft edge",
}


@final
class SpectraFull(Study):
    """Both matrices of MS-T2.

    Args:
        dimension: d; the matrices have (C - 1)d rows.
        draws: sampled matrices of each kind.
        seed: of head and samples.
    """

    title: ClassVar[str] = "Effective spectra of full softmax matrices"
    question: ClassVar[str] = (
        "The matrix Dyson equation extends the effective spectrum from diagonal blocks to the whole Hessian and the whole "
        "empirical Fisher of three classes, the direction that softmax does not see left out. Do sampled matrices agree?"
    )
    reference: ClassVar[str] = "extension of ours, in the setting of benarous2025local, MS-T2"

    def __init__(self, dimension: int = 400, draws: int = 3, seed: int = 0) -> None:
        require(dimension >= 20, f"dimension={dimension}", "dimension=400, 20 or more")
        require(draws >= 1, f"draws={draws}", "draws=3, one or more")
        self.dimension, self.draws, self.seed = dimension, draws, seed

    def run(self, tell: Tell) -> Findings:
        """Predict and sample both."""
        generator = torch.Generator().manual_seed(self.seed)
        means = orthonormal(self.dimension, len(PROPORTIONS))
        head = means + NOISE * random_head(self.dimension, len(PROPORTIONS), generator)
        setting = Setting(means, head, PROPORTIONS, SNR)
        rows, found = [], []
        for index, (kind, documented) in enumerate(OUTLIERS.items()):
            tell(index / 2, _NAMES[kind])
            found.append(compare(_NAMES[kind], setting, RATIO, kind, "full", self.draws, generator))
            rows.append(_edge(kind, found[-1].spectrum.edge))
            rows += found[-1].rows(documented, overlap=OVERLAP)
        return Findings(tuple(rows), (histograms("Full Hessian and full empirical Fisher", *found),))


def _edge(kind: Kind, seen: float) -> Finding:
    what = f"{_NAMES[kind]}: predicted edge"
    return Finding.told(what, seen, expected=EDGES[kind], remark=_EDGE_REMARKS[kind])
