"""Layer x wrapper x statistic against the oracle: all pairs of the three, or with FISHEROPT_GRID=full every combination.

Nothing is listed by hand: layers, wrappers and statistics are those that have enrolled. A combination is either exact or
refused with the words that its wrapper names, which are words of the documentation or torch's own.
"""

import os
import warnings
from itertools import product

import pytest
import torch

import fisheropt
from tests.cases import CASES
from tests.engine.test_statistics import EXACT
from tests.expected import JUDGES, public
from tests.layers import LAYERS
from tests.oracle import per_sample_gradients
from tests.others import OTHERS
from tests.test_docs import explained
from tests.wrappers import WRAPPERS, OfTorch, cast

SUBJECTS = LAYERS | OTHERS | CASES
CLASSES = {name.split()[0] if name in LAYERS else name: name for name in SUBJECTS}
"""One subject, the last, of every class of layers; each other subject and case by itself."""
EVERY = 8
"""Of how many classes one is compiled, which takes as long as fifty other runs."""


def pairs():
    """Every class with every wrapper, statistics in turn; every other setting with one of both in turn."""
    titles, quick = list(JUDGES), [wrapper for wrapper in WRAPPERS if wrapper != "compiled"]
    for i, name in enumerate(CLASSES.values()):
        for j, wrapper in enumerate(quick):
            yield name, wrapper, titles[(i + j) % len(titles)]
    for i, name in enumerate(list(CLASSES.values())[::EVERY]):
        yield name, "compiled", titles[i % len(titles)]
    for i, name in enumerate(name for name in SUBJECTS if name not in CLASSES.values()):
        yield name, quick[i % len(quick)], titles[i % len(titles)]


GRID = sorted(product(SUBJECTS, WRAPPERS, JUDGES) if os.environ.get("FISHEROPT_GRID") == "full" else pairs())


def run(name, wrapper, judge):
    """Pairs of what one combination measured and what is right."""
    case = cast(SUBJECTS[name](), wrapper.dtype)
    truth = [g.detach() for g in per_sample_gradients(case).values()]
    case = wrapper.prepared(case)
    named = {n: p for n, p in case.model.named_parameters() if p.requires_grad}
    tap = fisheropt.observe(case.model, judge.build(named))
    case.model, tap = wrapper.placed(case.model, tap)
    case.model.zero_grad()
    wrapper.backward(case)
    named = {n: case.model.get_parameter(n) for n in named}
    yield from judge.pairs(tap, named, truth, wrapper.scale)
    tap.remove()


def close(found, right, tolerance):
    if tolerance is None:
        torch.testing.assert_close(found, right, **EXACT)
    else:
        assert (found - right).norm() <= tolerance * right.norm() + 1e-6


@pytest.mark.parametrize(("name", "title", "statistic"), GRID)
def test_exact_or_refused(name, title, statistic):
    wrapper, judge = WRAPPERS[title], JUDGES[statistic]
    words = wrapper.refused(SUBJECTS[name](), judge.build(dict(SUBJECTS[name]().model.named_parameters())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's compiler, and of autocast beside checkpoints
        if words is None:
            for found, right in run(name, wrapper, judge):
                close(found, right, wrapper.tolerance)
            return
        with pytest.raises(Exception, match=words) as error:
            list(run(name, wrapper, judge))
    assert isinstance(words, OfTorch) or any(piece in str(error.value) for piece in explained())


def test_every_public_statistic_has_a_judge():
    assert {judge.of for judge in JUDGES.values()} == public()


def test_all_pairs_meet():
    """But for the compiler, every class of layers meets every wrapper and every statistic, and these each other."""
    grid, names = set(GRID), list(CLASSES.values())
    assert {(n, w) for n, w, _ in grid} >= {(n, w) for n, w in product(names, WRAPPERS) if w != "compiled"}
    assert {(n, s) for n, _, s in grid} >= set(product(names, JUDGES))
    assert {(w, s) for _, w, s in grid} >= set(product(WRAPPERS, JUDGES))
    assert {n for n, _, _ in grid} == set(SUBJECTS)
