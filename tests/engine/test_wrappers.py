"""Statistics do not change under what users wrap around a model, and a tap leaves no trace."""

import copy
import gc
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fisheropt
from tests.cases import CASES, Case, Scale, batch, classification, tokens
from tests.engine.test_statistics import EXACT, check_full
from tests.oracle import covariance, per_sample_gradients

COMPILED = [
    (name, statistic)
    for name in ("linear", "sequence", "custom", "mixture", "tied", "called_twice")
    for statistic in (fisheropt.FullCovariance(), fisheropt.SecondMoment(), fisheropt.Trace())
    if isinstance(statistic, fisheropt.FullCovariance) or name in ("custom", "mixture")
]


def measured(case, run, statistic=None):
    case.model.zero_grad()
    with fisheropt.observe(case.model, statistic or fisheropt.FullCovariance()) as tap:
        run()
    return tap.covariance().per_sample().matrix()


class Checkpointed(nn.Module):
    """Its two halves are run again in backward."""

    def __init__(self, reentrant):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), Scale(6))
        self.second, self.last = nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 3)
        self.reentrant = reentrant

    def forward(self, x):
        for part in (self.first, self.second):
            x = checkpoint(part, x, use_reentrant=self.reentrant)
        return self.last(x)


def unwrapped(case):
    """The same parameters in a plain stack, for the oracle, which cannot run checkpoints."""
    model = case.model
    return Case(nn.Sequential(model.first, model.second, model.last), case.batch, case.losses)


@pytest.mark.parametrize("statistic", [fisheropt.FullCovariance(), fisheropt.SecondMoment()])
def test_checkpointing(statistic):
    case = Case(Checkpointed(False).double(), batch(4, classes=3), classification)
    truth = per_sample_gradients(unwrapped(case))
    with fisheropt.observe(case.model, statistic) as tap:
        case.loss().backward()
    if isinstance(statistic, fisheropt.FullCovariance):
        torch.testing.assert_close(tap.covariance().per_sample().matrix(), covariance(truth), **EXACT)
        return
    for p, gradients in zip(case.model.parameters(), truth.values(), strict=True):
        torch.testing.assert_close(tap.covariance(p).per_sample().diagonal(), gradients.var(0), **EXACT)


def test_reentrant_checkpointing_is_exact_or_refused():
    x, y = batch(4, classes=3)
    case = Case(Checkpointed(True).double(), (x.requires_grad_(), y), classification)
    truth = per_sample_gradients(unwrapped(case))
    with fisheropt.observe(case.model, fisheropt.SecondMoment()) as tap:
        case.loss().backward()
    for p, gradients in zip(case.model.parameters(), truth.values(), strict=True):
        torch.testing.assert_close(tap.covariance(p).per_sample().diagonal(), gradients.var(0), **EXACT)
    with fisheropt.observe(case.model, fisheropt.FullCovariance()) as tap:
        case.loss().backward()
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        tap.covariance()


@pytest.mark.filterwarnings("ignore")  # torch looks at .grad of what is no leaf, and hides its own warning of it
@pytest.mark.parametrize(("name", "statistic"), COMPILED)
def test_compile_fullgraph(name, statistic):
    case = CASES[name]()
    torch._dynamo.reset()
    taps = [fisheropt.observe(case.model, statistic) for _ in range(2)]
    taps[1].enable(False)
    case.loss().backward()
    taps[0].enable(False)
    taps[1].enable(True)
    compiled = torch.compile(case.model, fullgraph=True, backend="aot_eager")
    case.model.zero_grad()
    case.loss(compiled).backward()
    parameters = [None] if isinstance(statistic, fisheropt.FullCovariance) else list(taps[0].parameters.values())
    for p in parameters:
        eager, traced = (tap.covariance(p).value for tap in taps)
        torch.testing.assert_close(traced, eager, **EXACT)


@pytest.mark.filterwarnings("ignore")  # of Inductor itself
def test_compile_with_inductor_and_switching():
    case = CASES["custom"]()
    torch._dynamo.reset()
    with fisheropt.observe(case.model, fisheropt.FullCovariance()) as tap:
        compiled = torch.compile(case.model, fullgraph=True)
        for on in (False, True, False, True):
            tap.enable(on)
            tap.clear()
            case.model.zero_grad()
            case.loss(compiled).backward()
    truth = covariance(per_sample_gradients(case))
    torch.testing.assert_close(tap.covariance().per_sample().matrix(), truth, rtol=1e-6, atol=1e-9)


def test_a_model_compiled_before_is_not_silently_missed():
    case = CASES["mlp"]()
    torch._dynamo.reset()
    compiled = torch.compile(case.model, backend="aot_eager")
    case.loss(compiled).backward()
    with fisheropt.observe(case.model, fisheropt.FullCovariance()) as tap:
        case.loss(compiled).backward()
    try:
        seen = tap.covariance().per_sample().matrix()
    except RuntimeError as error:
        assert "compiled" in str(error)
    else:
        torch.testing.assert_close(seen, covariance(per_sample_gradients(case)), **EXACT)


@pytest.mark.parametrize("name", ["linear", "mlp", "sequence", "custom"])
def test_autocast_accumulates_in_full_precision(name):
    case = CASES[name]()
    case.model.float()
    case.batch = tuple(x.float() if x.is_floating_point() else x for x in case.batch)

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            case.loss().backward()

    seen = measured(case, run)
    truth = covariance(per_sample_gradients(case))
    assert seen.dtype is torch.float64
    assert (seen - truth).norm() <= 0.02 * truth.norm()


def test_float32_by_choice():
    case = CASES["mlp"]()
    case.model.float()
    case.batch = (case.batch[0].float(), case.batch[1])
    assert (
        measured(case, lambda: case.loss().backward(), fisheropt.FullCovariance(dtype=torch.float32)).dtype
        is torch.float32
    )


def test_functional_inference_and_no_grad_leave_it_alone():
    case = CASES["mlp"]()
    with fisheropt.observe(case.model, fisheropt.FullCovariance()) as tap:
        with torch.no_grad():
            case.model(case.batch[0])
        with torch.inference_mode():
            case.model(case.batch[0])
        case.model(case.batch[0])  # no backward follows
        case.loss().backward()
    torch.testing.assert_close(tap.covariance().per_sample().matrix(), covariance(per_sample_gradients(case)), **EXACT)


def test_a_removed_tap_leaves_no_trace():
    case = CASES["custom"]()
    before = {n: {k: repr(v) for k, v in vars(m).items() if "hooks" in k} for n, m in case.model.named_modules()}
    keys = list(case.model.state_dict())
    for statistic in (fisheropt.FullCovariance(), fisheropt.Trace()):
        fisheropt.observe(case.model, statistic).remove()
    after = {n: {k: repr(v) for k, v in vars(m).items() if "hooks" in k} for n, m in case.model.named_modules()}
    assert before == after
    assert keys == list(case.model.state_dict())
    assert all(not p._backward_hooks for p in case.model.parameters())


def anatomy(model):
    """All that a module has but its hooks' numbers, and the hooks by their own identity."""
    held = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            plain = isinstance(value, dict) and "hooks" in key
            held[name, key] = (
                list(value.values()) if plain else (sorted(value) if isinstance(value, dict) else id(value))
            )
    for name, p in model.named_parameters():
        held[name, "hooks"] = (p._backward_hooks or None, p._post_accumulate_grad_hooks or None, sorted(vars(p)))
    return held


@pytest.mark.parametrize("name", ["mlp", "custom", "convolution", "normalised", "embedding", "called_twice", "frozen"])
@pytest.mark.parametrize("statistic", [fisheropt.Trace(), fisheropt.SecondMoment(), fisheropt.FullCovariance()])
def test_a_tap_changes_no_gradient_and_leaves_nothing_behind(name, statistic):
    case = CASES[name]()
    before = anatomy(case.model)

    def gradients():
        case.model.zero_grad()
        case.loss().backward()
        return [None if p.grad is None else p.grad.clone() for p in case.model.parameters()]

    plain = gradients()
    with fisheropt.observe(case.model, statistic):
        for p, q in zip(gradients(), plain, strict=True):
            assert (p is None and q is None) or torch.allclose(p, q, rtol=1e-12, atol=1e-15)
    assert anatomy(case.model) == before
    for p, q in zip(gradients(), plain, strict=True):
        assert (p is None and q is None) or torch.equal(p, q)


def test_an_optimizer_that_goes_takes_its_hooks_along():
    case = CASES["custom"]()
    before = anatomy(case.model)
    for cls in (fisheropt.FisherFloorSGD, fisheropt.GodambeSGD, fisheropt.AdaptiveBatchSGD):
        optimizer = cls(case.model, lr=0.1)
        case.loss().backward()
        optimizer.step()
        del optimizer
        gc.collect()
        assert anatomy(case.model) == before, cls


@pytest.mark.filterwarnings("ignore")  # torch looks at .grad of what is no leaf, and hides its own warning of it
@pytest.mark.parametrize("compiled", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("statistic", [fisheropt.FullCovariance(), fisheropt.SecondMoment()])
def test_blocks_that_are_compiled_by_themselves(compiled, statistic):
    """Coordinates of compiled and eager layers are added before they are squared."""
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3)))
    case = Case(model.double(), batch(4, classes=3), classification)
    truth = per_sample_gradients(case)
    torch._dynamo.reset()
    with fisheropt.observe(case.model, statistic) as tap:
        for place in compiled:
            if place:
                model[place].compile(backend="aot_eager")
            else:
                model[place] = torch.compile(model[place], backend="aot_eager")
        case.loss().backward()
    if isinstance(statistic, fisheropt.FullCovariance):
        torch.testing.assert_close(tap.covariance().per_sample().matrix(), covariance(truth), **EXACT)
        return
    for p, gradients in zip(tap.parameters.values(), truth.values(), strict=True):
        torch.testing.assert_close(tap.covariance(p).per_sample().diagonal(), gradients.var(0), **EXACT)


def test_a_tapped_model_is_copied_pickled_and_saved():
    case = CASES["custom"]()
    with fisheropt.observe(case.model, fisheropt.FullCovariance()):
        case.loss().backward()
        file = io.BytesIO()
        torch.save(case.model, file)
        file.seek(0)
        copies = [
            copy.deepcopy(case.model),
            pickle.loads(pickle.dumps(case.model)),
            torch.load(file, weights_only=False),
        ]
        for model in copies:
            twin = Case(model, case.batch, case.losses)
            twin.model.zero_grad()
            twin.loss().backward()
            for p, q in zip(model.parameters(), case.model.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad)


def test_a_rule_of_the_users_own():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    case = Case(nn.Sequential(Doubled(4, 5), nn.ReLU(), nn.Linear(5, 3)).double(), batch(4, classes=3), classification)
    assert "Generic" in str(fisheropt.explain(case.model)).splitlines()[1]  # an overridden forward is not nn.Linear's
    check_full(case)


REFUSED = {
    "attention": (lambda: nn.MultiheadAttention(4, 2), "requires_grad_"),
    "recurrent": (lambda: nn.LSTM(4, 4), "@fisheropt.rule"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_route_is_named_with_the_line_to_write(name):
    build, line = REFUSED[name]
    model = nn.Sequential(nn.Linear(4, 4), build())
    with pytest.raises(ValueError, match="no route") as error:
        fisheropt.observe(model, fisheropt.Trace())
    assert "1." in str(error.value) and line in str(error.value)
    for p in model[1].parameters():
        p.requires_grad_(False)
    fisheropt.observe(model, fisheropt.Trace()).remove()


def test_batch_norm_is_refused_in_train_mode_and_exact_in_eval():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    case = Case(model, batch(4, classes=3), classification)
    tap = fisheropt.observe(model, fisheropt.FullCovariance())
    with pytest.raises(RuntimeError, match="couples the samples"):
        case.loss().backward()
    tap.remove()
    model.eval()
    check_full(case)


def test_a_sample_that_is_not_the_first_axis_is_refused():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.last(torch.tanh(self.first(x)).flatten(0, 1)).unflatten(0, x.shape[:2])

    x, y = torch.randn(9, 7, 4), torch.randint(0, 3, (9, 7))
    case = Case(Flat(), (x, y), tokens)
    for statistic in (fisheropt.FullCovariance(), fisheropt.Trace()):
        with fisheropt.observe(case.model, statistic), pytest.raises(RuntimeError, match="first axis"):
            case.loss().backward()
