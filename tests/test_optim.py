"""The learning rate as a function of the step, decay, and the average of the weights."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import FastSCNN
from training.optim import Muon, learning_rate, make_average, make_optimizer, orthogonal, parameter_groups, scaled_rate


@given(st.integers(1, 5000), st.floats(0, 2), st.integers(0, 300))
def test_rate_stays_in_its_limits(steps: int, power: float, warmup: int) -> None:
    """A complex number past the last step, a jump after the warm-up."""
    rates = [learning_rate(step, steps, 0.01, power, warmup) for step in range(steps)]
    assert all(0 < rate <= 0.01 + 1e-12 for rate in rates)
    after = rates[warmup:]
    assert all(a >= b - 1e-15 for a, b in pairwise(after))


def test_rate_at_known_steps() -> None:
    """The published formula: base * (1 - step / steps) ** 0.9."""
    assert learning_rate(0, 100, 0.045, 0.9) == pytest.approx(0.045)
    assert learning_rate(50, 100, 0.045, 0.9) == pytest.approx(0.045 * 0.5**0.9)
    assert learning_rate(99, 100, 1e-3) == pytest.approx(1e-3)
    assert learning_rate(1, 100, 1.0, 0.0, 3) == pytest.approx(0.5)


def test_rate_scales_with_the_total_batch() -> None:
    """Batch 32 at the rate of batch 12 lost nine points for several people."""
    assert scaled_rate(0.045, 32, 12) == pytest.approx(0.12)
    assert scaled_rate(1e-3, 4, 0) == 1e-3


def test_decay_spares_what_it_should() -> None:
    """Decay on depthwise convolutions, biases or batch norm where the recipe spares them, or a parameter left out."""
    model = FastSCNN(aux=True)
    decayed, spared = parameter_groups(model, 0.1, decay_all=False)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
    assert all(p.ndim == 4 and (p.shape[1] > 1 or p.shape[0] < 2) for p in decayed["params"])
    assert any(p.ndim == 4 and p.shape[1] == 1 for p in spared["params"])
    (everything,) = parameter_groups(model, 0.1, decay_all=True)
    assert len(everything["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["adam", "adamw", "muon", "sgd"])
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    """A name that gives another optimizer, or one without its momentum."""
    model = torch.nn.Linear(3, 1)
    optimizer = make_optimizer(name, parameter_groups(model, 0.0, True), 0.05)
    x, y = torch.ones(4, 3), torch.full((4, 1), 2.0)
    losses = []
    for _ in range(20):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] and type(optimizer).__name__.lower() == name


def test_sgd_gathers_momentum() -> None:
    """The paper's SGD without its momentum of 0.9: a tenth of its steps."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer("sgd", [{"params": [weight]}], 0.1)
    places = []
    for _ in range(3):
        weight.grad = torch.ones(1)
        optimizer.step()
        places.append(weight.item())
    assert places == pytest.approx([-0.1, -0.29, -0.561])


def test_average_follows_weights_and_statistics() -> None:
    """An average without batch-norm statistics scores a network that never existed."""
    model = FastSCNN(3)
    average = make_average(model, 0.9)
    name, statistic = "classifier.conv.weight", "learning_to_downsample.conv.1.running_mean"
    start = model.state_dict()[name].clone()
    average.update_parameters(model)  # the first update copies
    with torch.no_grad():
        model.state_dict()[name].add_(1)
        model.state_dict()[statistic].add_(1)
        model.state_dict()["learning_to_downsample.conv.1.num_batches_tracked"].add_(5)
    average.update_parameters(model)
    got = average.module.state_dict()
    rate = 1 - min(0.9, 2 / 11)
    torch.testing.assert_close(got[name], start + rate)
    assert got[statistic].mean() == pytest.approx(rate, abs=1e-5)
    assert got["learning_to_downsample.conv.1.num_batches_tracked"] == 5


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (64, 64), (1, 7)])
def test_orthogonal_keeps_the_singular_vectors(shape: tuple[int, int]) -> None:
    """An iteration that diverges, or that turns the step somewhere else."""
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = left.mT @ orthogonal(matrix) @ right.mT
    assert values.diagonal().median() > 0.6 and values.diagonal().max() < 1.3
    assert (values - values.diagonal().diag()).abs().max() < 0.02
    assert torch.isfinite(orthogonal(torch.zeros(shape))).all()


def test_muon_steps_dense_convolutions_and_leaves_the_rest_to_adamw() -> None:
    """Depthwise weights and biases that are orthogonalised, or that no optimizer moves at all."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(6, 8, 1), torch.nn.Conv2d(8, 8, 3, groups=8))
    twin = copy.deepcopy(model)
    dense = model[0].weight.detach().clone()
    for net, kind in ((model, Muon), (twin, torch.optim.AdamW)):
        optimizer = kind(net.parameters(), lr=0.01, weight_decay=0.1, fused=True)
        net(torch.ones(2, 6, 5, 5)).square().sum().backward()
        optimizer.step()
    assert all(
        torch.equal(getattr(model[i], n), getattr(twin[i], n)) for i, n in ((0, "bias"), (1, "weight"), (1, "bias"))
    )
    step = (model[0].weight - dense * (1 - 0.01 * 0.1)).flatten(1) / (0.01 * 0.2 * 8**0.5)
    assert torch.linalg.svdvals(step).max() < 1.3


def test_muon_goes_on_from_its_state() -> None:
    """A momentum that is not saved: a resumed run takes other steps."""
    torch.manual_seed(0)
    model = torch.nn.Conv2d(5, 4, 1)
    x = torch.randn(3, 5, 2, 2)

    def train(net, optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (net(x) - 1).square().mean().backward()
            optimizer.step()

    optimizer = Muon(model.parameters(), lr=0.01)
    train(model, optimizer, 3)
    again = copy.deepcopy(model)
    resumed = Muon(again.parameters(), lr=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 3)
    train(again, resumed, 3)
    assert torch.equal(model.weight, again.weight) and torch.equal(model.bias, again.bias)
