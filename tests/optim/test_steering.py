"""What a steered optimizer does with a controller's proposal, and with batches that come in parts."""

import copy
from dataclasses import dataclass, field
from typing import ClassVar, final

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fisheropt
from fisheropt.control import Controller, Proposal
from fisheropt.optim.steering import changes
from tests.cases import CASES
from tests.oracle import covariance, flattened, per_sample_gradients

SAMPLES, WIDTH = 96, 5


@final
@dataclass(frozen=True)
class Scripted(Controller):
    """Says what it was told to say, and keeps what it was told."""

    sizes: tuple[float, ...] = ()
    lr_factor: float = 1.0
    wants: frozenset[str] = frozenset()
    heard: list = field(default_factory=list, compare=False)
    name: ClassVar[str] = "scripted"

    @property
    def needs(self):
        return self.wants

    def initial_state(self):
        return {"calls": 0.0}

    def propose(self, state, reading, moment):
        self.heard.append((reading, moment))
        calls = int(state["calls"])
        size = self.sizes[calls % len(self.sizes)] if self.sizes else moment.stay()
        return Proposal(moment.clip(size), {"calls": calls + 1.0}, self.lr_factor, f"call {calls}")


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, WIDTH, generator=generator, dtype=torch.float64)
    return TensorDataset(x, (x.sum(1) > 0).double())


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def train(held=None, net=None, size=24, epochs=2, zero=None, scaler=None, **options):
    net, samples = net or model(), data()
    sampler = fisheropt.AdaptiveBatchSampler(samples, size, device_batch_size=held, seed=3)
    optimizer = fisheropt.AdaptiveBatchSGD(net, lr=0.2, sampler=sampler, every=1, **options)
    for _ in range(epochs):
        for x, y in DataLoader(samples, batch_sampler=sampler):
            loss = F.binary_cross_entropy_with_logits(net(x).squeeze(1), y)
            (loss if scaler is None else scaler.scale(loss)).backward()
            optimizer.step() if scaler is None else scaler.step(optimizer)
            if scaler is not None:
                scaler.update()
            (zero or optimizer.zero_grad)()
    return net, optimizer, sampler


@pytest.mark.parametrize("clear", ["optimizer", "model"])
@pytest.mark.parametrize("metric", [None, "fisher"])
def test_a_batch_in_parts_is_the_batch(metric, clear):
    """Parameters, momentum, noise and its degrees of freedom: parts of 8 of a batch of 24 change none of them."""
    options = {"metric": metric, "controller": Scripted(), "momentum": 0.6, "weight_decay": 0.01}
    whole, at_once, _ = train(**options)
    net = model()
    zero = net.zero_grad if clear == "model" else None
    parts, in_parts, sampler = train(8, net, zero=zero, **options)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-12)
    first, second = at_once.report(), in_parts.report()
    assert first.steps == second.steps == 8 and first.samples == second.samples
    for key in ("noise_trace", "noise_trace_se", "dof", "signal", "batch_size", "noise_floor"):
        assert second.as_dict()["groups"][0][key] == pytest.approx(first.as_dict()["groups"][0][key], rel=1e-8), key
    assert sampler.samples_seen == 2 * SAMPLES and sampler.outstanding == ()


def test_parts_under_a_gradient_scaler_are_the_batch():
    whole, _, _ = train(controller=Scripted(), momentum=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    parts, _, _ = train(8, controller=Scripted(), momentum=0.5, scaler=scaler)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-8)


def test_a_batch_left_between_its_parts_begins_anew():
    """The loader is left after one part of three: nothing of it is in the first step of the next iteration."""
    net, samples = model(), data()
    reference = copy.deepcopy(net)
    sampler = fisheropt.AdaptiveBatchSampler(samples, 24, device_batch_size=8, seed=3)
    optimizer = fisheropt.AdaptiveBatchSGD(net, lr=0.2, sampler=sampler, controller="fixed")
    for x, y in DataLoader(samples, batch_sampler=sampler):
        F.binary_cross_entropy_with_logits(net(x).squeeze(1), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        break
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), reference.parameters(), strict=True))
    seen = []
    for x, y in DataLoader(samples, batch_sampler=sampler):
        F.binary_cross_entropy_with_logits(net(x).squeeze(1), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append((x, y))
        if len(seen) == 3:
            break
    x, y = (torch.cat(column) for column in zip(*seen, strict=True))
    F.binary_cross_entropy_with_logits(reference(x).squeeze(1), y).backward()
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.2 * q.grad, rtol=1e-9, atol=1e-12)


def test_sizes_follow_the_controller_and_are_told():
    _, optimizer, sampler = train(controller=Scripted((12.0, 32.0, 48.0)), epochs=1)
    group = optimizer.report().as_dict()["groups"][0]
    rows = changes(optimizer.param_groups[0])
    assert (rows[0]["from"], rows[0]["to"], rows[0]["step"]) == (24, 11, 0)  # 11 and 45 are powers of √2
    assert all(a["to"] == b["from"] for a, b in zip(rows, rows[1:], strict=False))
    assert group["batch_changes"] == len(rows) >= 2 and group["why"].startswith("call")
    assert rows[-1]["to"] == sampler.batch_size
    assert "It changed" in optimizer.report().verdict


def test_advice_changes_nothing():
    """The same steps as with a fixed batch, and still a proposal."""
    advised, optimizer, sampler = train(controller=Scripted((48.0,), lr_factor=0.5), advise=True)
    fixed, _, _ = train(controller="fixed")
    assert sampler.batch_size == 24 and optimizer.param_groups[0]["proposed_batch_size"] == 48.0
    assert all(torch.equal(p, q) for p, q in zip(advised.parameters(), fixed.parameters(), strict=True))
    assert "advise=True" in optimizer.report().advice[0]


def test_the_factor_of_a_proposal_is_that_of_the_next_step():
    halved, _, _ = train(controller=Scripted(lr_factor=0.5), epochs=1, size=48)
    reference, samples = model(), data()
    sampler = fisheropt.AdaptiveBatchSampler(samples, 48, seed=3)
    for (x, y), lr in zip(DataLoader(samples, batch_sampler=sampler), (0.2, 0.1), strict=True):
        reference.zero_grad()
        F.binary_cross_entropy_with_logits(reference(x).squeeze(1), y).backward()
        with torch.no_grad():
            for p in reference.parameters():
                p -= lr * p.grad
    for p, q in zip(halved.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("metric", [None, "fisher"])
def test_weight_decay_is_signal_and_no_noise(metric, maximize):
    case = CASES["mlp"]()
    gradients = per_sample_gradients(case)
    noise, mean = covariance(gradients), flattened(gradients).mean(0)
    theta = torch.cat([p.detach().flatten() for p in case.model.parameters()]).to(mean)
    controller = Scripted()
    optimizer = fisheropt.AdaptiveBatchSGD(
        case.model, lr=0.1, controller=controller, metric=metric, damping=0.5, weight_decay=0.3, maximize=maximize
    )
    case.loss().backward()
    optimizer.step()
    inverse = torch.eye(len(noise), dtype=noise.dtype)
    if metric:
        inverse = torch.linalg.inv(noise + (0.5 + 0.3) * inverse)
    objective = (-mean if maximize else mean) + 0.3 * theta
    (reading, _) = controller.heard[0]
    trace = float((inverse * noise).sum())
    assert reading.noise == pytest.approx(trace, rel=1e-7)
    assert reading.signal == pytest.approx(float(objective @ inverse @ objective) - trace / case.samples, rel=1e-6)


def test_drift_is_saasas_product():
    """⟨θ, g⟩ - (η/2)|g|², of the gradient with weight decay."""
    case = CASES["mlp"]()
    controller = Scripted(wants=frozenset({"drift"}))
    optimizer = fisheropt.AdaptiveBatchSGD(case.model, lr=0.1, controller=controller, weight_decay=0.3)
    case.loss().backward()
    wanted = 0.0
    for p in case.model.parameters():
        g = p.grad + 0.3 * p.detach()
        wanted += float((p.detach() * g).sum() - 0.05 * g.square().sum())
    optimizer.step()
    assert controller.heard[0][1].drift == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("metric", [None, "fisher"])
def test_sketches_have_the_gradients_products(metric):
    """|sketch|² is ‖g‖²_P within its own standard error √(2/m), tenfold; one sketch a step."""
    controller = Scripted(wants=frozenset({"sketches"}))
    train(controller=controller, metric=metric, epochs=1)
    for steps, (reading, moment) in enumerate(controller.heard, start=1):
        sketch = moment.sketches.mean(0, 1).double()
        squared = reading.signal + reading.noise / moment.batch_size
        assert moment.sketches.steps == steps
        assert float(sketch @ sketch) == pytest.approx(squared, rel=10 * (2 / len(sketch)) ** 0.5)


def test_what_a_controller_needs_is_asked_for():
    with pytest.raises(ValueError, match=r"budget=epochs \* len\(data\)"):
        fisheropt.AdaptiveBatchSGD(model(), lr=0.1, controller=Scripted(wants=frozenset({"budget"})))
    optimizer = fisheropt.AdaptiveBatchSGD(model(), lr=0.1, controller=Scripted(wants=frozenset({"loss"})))
    x, y = data().tensors
    loss = F.binary_cross_entropy_with_logits(optimizer._model(x).squeeze(1), y)
    loss.backward()
    with pytest.raises(RuntimeError, match="lambda: loss"):
        optimizer.step()


def test_the_loss_is_the_closures():
    controller = Scripted(wants=frozenset({"loss"}))
    net = model()
    optimizer = fisheropt.AdaptiveBatchSGD(net, lr=0.1, controller=controller)
    x, y = data().tensors
    loss = F.binary_cross_entropy_with_logits(net(x).squeeze(1), y)
    loss.backward()
    optimizer.step(lambda: loss)
    assert controller.heard[0][1].loss == pytest.approx(loss.item())


def test_noise_of_microbatches_is_counted_in_samples():
    """Given parameters and parts, V of one sample is estimated by m times that of the mean of m; the mean of many runs."""
    ratios = []
    for seed in range(60):
        net = nn.Linear(WIDTH, 1, bias=False).double()
        nn.init.zeros_(net.weight)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(64, WIDTH, generator=generator, dtype=torch.float64)
        samples = TensorDataset(x, torch.randn(64, generator=generator, dtype=torch.float64))
        sampler = fisheropt.AdaptiveBatchSampler(samples, 64, device_batch_size=4, seed=seed)
        controller = Scripted()
        optimizer = fisheropt.AdaptiveBatchSGD(net.parameters(), lr=0.0, sampler=sampler, controller=controller)
        for a, b in DataLoader(samples, batch_sampler=sampler):
            ((net(a).squeeze(1) - b).square().mean() / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
        (reading, moment) = controller.heard[0]
        assert reading.batch_size == moment.batch_size == 64
        ratios.append(reading.noise / WIDTH)  # tr Cov(x y) = d
    ratios = torch.tensor(ratios)
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / len(ratios) ** 0.5, ratios.mean()


def test_temperatures_of_the_report():
    _, optimizer, _ = train(controller="fixed", momentum=0.5)
    group = optimizer.report().as_dict()["groups"][0]
    assert group["temperature_momentum"] == pytest.approx(0.2 / 0.5 / 24)
    assert group["temperature_finite"] == pytest.approx(0.2 / 0.5 / 24 * (1 - 24 / SAMPLES))
    assert group["noise_floor"] == pytest.approx(group["temperature_momentum"] / 4 * group["noise_trace"])
    assert group["noise_floor_se"] == pytest.approx(group["temperature_momentum"] / 4 * group["noise_trace_se"])
    assert group["serial_steps"] == 8 and group["samples_used"] == 2 * SAMPLES


def test_a_reshuffled_floor_is_below_that_of_fresh_samples():
    _, optimizer, _ = train(controller="fixed", metric="fisher")
    group = optimizer.report().as_dict()["groups"][0]
    assert 0 < group["noise_floor_epoch_end"] < group["noise_floor"]
    relative = group["noise_floor_se"] / group["noise_floor"]
    assert group["noise_floor_epoch_end_se"] == pytest.approx(relative * group["noise_floor_epoch_end"])


def test_the_certificate_is_in_the_report():
    _, optimizer, _ = train(controller="certified", epochs=24)
    group = optimizer.report().as_dict()["groups"][0]
    assert isinstance(group["stationary"], bool) and group["decrease_steps"] >= 20
    assert group["predicted_decrease_se"] > 0


@pytest.mark.parametrize("structure", ["full", "kronecker", "diagonal", "lowrank"])
def test_godambe_sgd_is_steered_in_its_metric(structure):
    """A + V/b is the squared length of the gradient in the metric, and the batch follows the controller."""
    controller, net, samples = Scripted((12.0, 45.0)), model(), data()
    sampler = fisheropt.AdaptiveBatchSampler(samples, 24, seed=3)
    optimizer = fisheropt.GodambeSGD(
        net, lr=0.1, structure=structure, controller=controller, sampler=sampler, every=1, damping=0.5
    )
    sizes = []
    for x, y in DataLoader(samples, batch_sampler=sampler):
        sizes.append(len(x))
        F.binary_cross_entropy_with_logits(net(x).squeeze(1), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sizes[1] == 11 and len(set(sizes)) > 1 and sampler.samples_seen == SAMPLES
    assert all(reading.noise > 0 for reading, _ in controller.heard)
    group = optimizer.report().as_dict()["groups"][0]
    assert group["controller"] == "scripted" and group["temperature_momentum"] > 0
    assert "scripted proposes" in optimizer.report().verdict


def test_godambe_sgd_with_go_f_is_adaptive_batch_sgd_in_the_metric():
    """The same metric, the same rule, the same data: the same parameters."""
    found = []
    for cls, options in (
        (fisheropt.AdaptiveBatchSGD, {"metric": "curvature"}),
        (fisheropt.GodambeSGD, {"structure": "full", "controller": "go_f"}),
    ):
        net, samples = nn.Linear(WIDTH, 1).double(), data()
        nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)
        sampler = fisheropt.AdaptiveBatchSampler(samples, 8, seed=3)
        optimizer = cls(net, lr=0.5, sampler=sampler, likelihood="bernoulli", every=1, **options)
        for x, y in DataLoader(samples, batch_sampler=sampler):
            F.binary_cross_entropy_with_logits(net(x).squeeze(1), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_a_running_gain_is_not_steered_as_well():
    with pytest.raises(ValueError, match="gain='constant'"):
        fisheropt.GodambeSGD(model(), lr=1.0, gain="running", controller="go_f")


def test_the_loaders_size_is_told():
    controller = Scripted()
    train(controller=controller, epochs=1)
    assert all(moment.data_size == SAMPLES for _, moment in controller.heard)


def test_batches_that_a_loop_accumulates_are_counted():
    """Two batches a step, the second without a word to the sampler: size, samples and temperature are those of both."""
    net, samples, controller = model(), data(), Scripted()
    sampler = fisheropt.AdaptiveBatchSampler(samples, 12, seed=3)
    optimizer = fisheropt.AdaptiveBatchSGD(net, lr=0.2, sampler=sampler, controller=controller, every=2)
    for turn, (x, y) in enumerate(DataLoader(samples, batch_sampler=sampler)):
        (F.binary_cross_entropy_with_logits(net(x).squeeze(1), y) / 2).backward()
        if turn % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert [moment.batch_size for _, moment in controller.heard] == [24] * 4
    assert controller.heard[-1][1].samples == sampler.samples_seen == SAMPLES
    assert optimizer.report().as_dict()["groups"][0]["temperature_momentum"] == pytest.approx(0.2 / 24)


def test_a_sampler_that_nobody_draws_from_is_named():
    net, samples = model(), data()
    sampler = fisheropt.AdaptiveBatchSampler(samples, 24)
    optimizer = fisheropt.AdaptiveBatchSGD(net, lr=0.2, sampler=sampler, controller="fixed")
    with pytest.raises(RuntimeError, match="batch_sampler=sampler"):
        for _ in range(12):
            for x, y in DataLoader(samples, batch_size=24):
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(net(x).squeeze(1), y).backward()
                optimizer.step()


def test_a_short_batch_keeps_the_step_where_the_step_is_the_users():
    """100 samples in batches of 32: with a fixed size the last 4 take a whole step, as torch.optim.SGD's do."""
    found = []
    for ours in (True, False):
        net, (x, y) = model(), data().tensors
        samples = TensorDataset(torch.cat([x, x[:4]]), torch.cat([y, y[:4]]))
        sampler = fisheropt.AdaptiveBatchSampler(samples, 32, seed=3)
        given = {"sampler": sampler, "controller": "fixed"} if ours else {}
        make = fisheropt.AdaptiveBatchSGD if ours else torch.optim.SGD
        optimizer = make(net if ours else net.parameters(), lr=0.2, **given)
        for a, b in DataLoader(samples, batch_sampler=sampler):
            F.binary_cross_entropy_with_logits(net(a).squeeze(1), b).backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*found)


def test_without_a_sampler_steps_are_whole():
    whole, said = model(), model()
    x, y = data().tensors
    first = torch.optim.SGD(whole.parameters(), lr=0.2)
    second = fisheropt.AdaptiveBatchSGD(said, lr=0.2, controller=Scripted((48.0,)), every=1)
    for net, optimizer in ((whole, first), (said, second)):
        for batch, target in zip(x.split(24), y.split(24), strict=True):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(net(batch).squeeze(1), target).backward()
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), said.parameters(), strict=True))


@pytest.mark.parametrize("name", ["go_f", "norm_test", "inner_product"])
def test_rules_for_a_metric_are_refused_without_one(name):
    with pytest.raises(ValueError, match="metric="):
        fisheropt.AdaptiveBatchSGD(model(), lr=0.1, controller=name)


def test_a_state_of_another_controller_is_refused():
    saved = fisheropt.AdaptiveBatchSGD(model(), lr=0.1, controller="noise_scale").state_dict()
    with pytest.raises(ValueError, match="controller='noise_scale'"):
        fisheropt.AdaptiveBatchSGD(model(), lr=0.1, controller="certified").load_state_dict(saved)
    fisheropt.AdaptiveBatchSGD(model(), lr=0.1, controller="noise_scale").load_state_dict(saved)


def test_a_loss_scale_that_moves_between_parts_voids_the_reading_and_not_the_step():
    whole, _, _ = train(controller=Scripted())
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
    controller = Scripted()
    parts, optimizer, _ = train(8, controller=controller, scaler=scaler)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-8)
    assert all(reading is None for reading, _ in controller.heard) and optimizer.report().measurements == 0


def test_the_loss_of_parts_is_their_mean():
    controller, losses = Scripted(wants=frozenset({"loss"})), []
    net, samples = model(), data()
    sampler = fisheropt.AdaptiveBatchSampler(samples, 24, device_batch_size=8, seed=3)
    optimizer = fisheropt.AdaptiveBatchSGD(net, lr=0.0, sampler=sampler, controller=controller)
    for x, y in DataLoader(samples, batch_sampler=sampler):
        loss = F.binary_cross_entropy_with_logits(net(x).squeeze(1), y)
        loss.backward()
        losses.append(loss.item())
        optimizer.step(lambda held=loss: held)
        optimizer.zero_grad()
    assert [moment.loss for _, moment in controller.heard] == pytest.approx(
        [sum(losses[i : i + 3]) / 3 for i in range(0, 12, 3)]
    )


def test_dampening_is_in_the_temperature():
    _, optimizer, _ = train(controller="fixed", momentum=0.5, dampening=0.5)
    assert optimizer.report().as_dict()["groups"][0]["temperature_momentum"] == pytest.approx(0.2 / 24)


def test_the_step_of_godambe_sgd_is_not_known_before_it_is_made():
    with pytest.raises(ValueError, match="AdaptiveBatchSGD"):
        fisheropt.GodambeSGD(model(), lr=0.1, controller="sasa")
