"""The same numbers as statsmodels, to 1e-8."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from fisheropt.inference import SandwichCovariance, sandwich
from tests.inference.fits import features, linear, responses

api = pytest.importorskip("statsmodels.api", reason="statsmodels is the reference: pip install -e .[test]")

N, D = 240, 3


def reference(likelihood: str, seed: int = 0, **options: Any) -> Any:
    """The fit of statsmodels, its constant last."""
    x, y = data(likelihood, seed)
    design = torch.cat((x, torch.ones(len(x), 1)), 1).numpy()
    kind = {"bernoulli": api.Logit, "poisson": api.Poisson, "gaussian": api.OLS}[likelihood]
    newton = {} if likelihood == "gaussian" else {"method": "newton", "tol": 1e-14, "disp": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(y[:, 0].numpy(), design).fit(**newton, **options)


def data(likelihood: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = features(N, D, seed)
    return x, responses(x, likelihood, seed + 1)


def ours(likelihood: str, weights: Any, seed: int = 0, **options: Any) -> SandwichCovariance:
    x, y = data(likelihood, seed)
    batches = list(zip(x.split(64), y.split(64), strict=True))
    return sandwich(linear(torch.from_numpy(weights).clone()), batches, likelihood, **options)


def close(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson", "gaussian"])
@pytest.mark.parametrize("seed", [0, 10])
def test_hc0(likelihood: str, seed: int) -> None:
    expected = reference(likelihood, seed, cov_type="HC0")
    fit = ours(likelihood, expected.params, seed)
    close(fit.covariance, expected.cov_params())
    close(torch.cat([s.flatten() for s in fit.standard_errors().values()]), expected.bse)
    close(torch.tensor([row["p_value"] for row in fit.coordinates()], dtype=torch.float64), expected.pvalues)
    ends = torch.cat([torch.stack(pair, -1).reshape(-1, 2) for pair in fit.confidence_intervals().values()])
    close(ends, expected.conf_int())


@pytest.mark.parametrize("correction", ["HC1", "HC2", "HC3"])
def test_linear_corrections(correction: str) -> None:
    expected = reference("gaussian", cov_type=correction)
    close(ours("gaussian", expected.params, correction=correction).covariance, expected.cov_params())


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
def test_hc1_of_other_models_is_the_degrees_of_freedom(likelihood: str) -> None:
    """Statsmodels has HC1 for linear models only, and gives HC0 under that name for the others."""
    expected = reference(likelihood, cov_type="HC0", cov_kwds={"scaling_factor": N / (N - D - 1)})
    close(ours(likelihood, expected.params, correction="HC1").covariance, expected.cov_params())


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
@pytest.mark.parametrize("power", [1, 2])
def test_leverages_are_the_hat_values_of_glm(likelihood: str, power: int) -> None:
    """HC2 and HC3 of a generalised linear model, put together from the hat values of statsmodels."""
    x, y = data(likelihood)
    design = torch.cat((x, torch.ones(len(x), 1)), 1)
    family = api.families.Binomial() if likelihood == "bernoulli" else api.families.Poisson()
    expected = api.GLM(y[:, 0].numpy(), design.numpy(), family=family).fit(tol=1e-14, maxiter=100)
    hat = torch.from_numpy(expected.get_hat_matrix_diag())
    residual = torch.from_numpy(expected.resid_response) / (1 - hat) ** (power / 2)
    scores = residual[:, None] * design
    bread = torch.from_numpy(expected.normalized_cov_params)
    found = ours(likelihood, expected.params, correction=f"HC{power + 1}")
    close(found.covariance, bread @ (scores.T @ scores) @ bread)


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson", "gaussian"])
@pytest.mark.parametrize("corrected", [True, False])
def test_clusters(likelihood: str, corrected: bool) -> None:
    groups = torch.arange(N) % 17
    options = {"groups": groups.numpy(), "use_correction": corrected}
    expected = reference(likelihood, cov_type="cluster", cov_kwds=options)
    fit = ours(likelihood, expected.params, clusters=groups + 5, correction=None if corrected else "HC0")
    close(fit.covariance, expected.cov_params())
    assert (fit.clusters, fit.dof) == (17, 16)


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
def test_log_likelihood(likelihood: str) -> None:
    expected = reference(likelihood, cov_type="HC0")
    assert ours(likelihood, expected.params).log_likelihood == pytest.approx(expected.llf, rel=1e-12)


def test_wald() -> None:
    expected = reference("bernoulli", cov_type="HC0")
    fit = ours("bernoulli", expected.params)
    rows = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.5]], dtype=torch.float64)
    theirs = expected.wald_test((rows.numpy(), [0.2, 0.1]), scalar=True)
    found = fit.wald(rows, torch.tensor([0.2, 0.1]).double())
    assert (found.statistic, found.p_value) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-8)
    named, all_weights = fit.wald("weight"), expected.wald_test(torch.eye(4)[:3].numpy(), scalar=True)
    assert (named.dof, named.statistic) == (3, pytest.approx(all_weights.statistic, rel=1e-8))


def test_students_t() -> None:
    expected = reference("gaussian", cov_type="HC3", use_t=True)
    fit = ours("gaussian", expected.params, correction="HC3")
    assert fit.dof == expected.df_resid
    ends = torch.cat([torch.stack(pair, -1).reshape(-1, 2) for pair in fit.confidence_intervals(dof=fit.dof).values()])
    close(ends, expected.conf_int())
    close(torch.tensor([row["p_value"] for row in fit.coordinates(dof=fit.dof)], dtype=torch.float64), expected.pvalues)


def test_one_step_from_a_near_start_is_the_optimum_to_second_order() -> None:
    expected = reference("bernoulli", cov_type="HC0")
    start = expected.params + 0.3 * expected.bse
    fit = ours("bernoulli", start, one_step=True)
    left = (fit.estimate - torch.from_numpy(expected.params)).abs() / torch.from_numpy(expected.bse)
    assert float(left.max()) < 0.01 < float(torch.tensor(0.3))
    assert fit.distance < 0.02
