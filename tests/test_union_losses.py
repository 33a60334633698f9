"""Losses of pixels whose label means any of several classes, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from training import losses
from training.losses import OHEM_PROBABILITY, auxiliary_loss, lovasz_loss, pixel_loss, upsampled_loss

K = 7
UNIONS = ((1, 4), (2, 3, 6))
MEANT = [*({k} for k in range(K)), *map(set, UNIONS)]


def example(seed: int, size: tuple[int, int] = (6, 7)) -> tuple[Tensor, Tensor]:
    """Logits that ask for a gradient, a third of the targets' size, and targets of classes, unions and ignored."""
    torch.manual_seed(seed)
    targets = torch.randint(0, K + len(UNIONS), (2, *size))
    targets[torch.rand(targets.shape) < 0.2] = 255
    return (3 * torch.randn(2, K, size[0] // 3, size[1] // 3)).requires_grad_(), targets


def enlarged(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Logits at the targets' size."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)


def defined(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each labelled pixel: minus the logarithm of the sum of the probabilities of what it may be."""
    values = []
    for scores, target in zip(logits.permute(0, 2, 3, 1).flatten(0, 2), targets.flatten().tolist(), strict=True):
        if target != 255:
            probabilities = scores.softmax(0)
            right = -torch.stack([probabilities[k] for k in MEANT[target]]).sum().log()
            values.append(right)
    return torch.stack(values)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_a_union_is_learnt_by_the_sum_of_its_probabilities(seed: int, align_corners: bool) -> None:
    """A label "car" that teaches a truck to be no truck; a gradient that is not that of the loss."""
    logits, targets = example(seed, (18, 24))
    expected = defined(enlarged(logits, (18, 24), align_corners), targets).sum()
    gradient = torch.autograd.grad(expected, logits)[0]
    summed, count = upsampled_loss("cross_entropy", logits, targets, align_corners, UNIONS)
    plain, same = pixel_loss("cross_entropy", enlarged(logits, (18, 24), align_corners), targets, UNIONS)
    assert count == same == (targets != 255).sum()
    for loss in (summed, plain):
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7])
def test_a_few_rows_at_a_time_are_the_whole(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A union that occurs in one strip of pixels only, and whose gradient ends up in another."""
    logits, targets = example(0, (18, 24))
    targets[:, 6:] = targets[:, 6:].where(targets[:, 6:] != K, 255)
    whole = upsampled_loss("cross_entropy", logits, targets, unions=UNIONS)[0]
    gradient = torch.autograd.grad(whole, logits)[0]
    monkeypatch.setattr(losses, "PIXELS_AT_ONCE", rows * 24)
    strips = upsampled_loss("cross_entropy", logits, targets, unions=UNIONS)[0]
    torch.testing.assert_close(strips, whole)
    torch.testing.assert_close(torch.autograd.grad(strips, logits)[0], gradient)


def test_hard_pixels_and_auxiliary_heads_know_unions() -> None:
    """A loss that takes the id of a union for a class that does not exist, or leaves its pixels out."""
    logits, targets = example(1, (24, 24))
    each = defined(enlarged(logits, (24, 24)), targets)
    summed, count = upsampled_loss("ohem", logits, targets, unions=UNIONS)
    hard = each > -math.log(OHEM_PROBABILITY)
    assert count == hard.sum() > 100
    torch.testing.assert_close(summed, each[hard].sum())
    sparse = targets[:, 2::4, 2::4]
    summed, count = auxiliary_loss(logits, targets, UNIONS)
    torch.testing.assert_close(summed, defined(enlarged(logits, (6, 6)), sparse).sum())
    assert count == (sparse != 255).sum()


def test_scores_far_below_all_others_still_have_a_gradient() -> None:
    """Exponentials that vanish: a loss of infinity, or one that no longer pulls the union's classes up."""
    logits = torch.zeros(1, K, 2, 2)
    logits[:, 0] = 500.0
    logits.requires_grad_()
    targets = torch.full((1, 6, 6), K)
    for loss in (
        upsampled_loss("cross_entropy", logits, targets, unions=UNIONS)[0],
        pixel_loss("cross_entropy", enlarged(logits, (6, 6)), targets, unions=UNIONS)[0],
    ):
        torch.testing.assert_close(loss, torch.tensor(36 * (500 - math.log(2))))
        gradient = torch.autograd.grad(loss, logits)[0].sum((0, 2, 3))
        torch.testing.assert_close(gradient, torch.tensor([36.0, -18, 0, 0, -18, 0, 0]))


def lovasz_defined(logits: Tensor, targets: Tensor) -> float:
    """Equation 9 of the paper for each class and union that the targets have, over the pixels that can tell."""
    labels = targets[:, 2::4, 2::4].flatten().tolist()
    probabilities = logits.softmax(1).transpose(0, 1).flatten(1)
    values = []
    for row in sorted(set(labels) - {255}):
        wanted = MEANT[row]
        known = [i for i, t in enumerate(labels) if t != 255 and (MEANT[t] <= wanted or not MEANT[t] & wanted)]
        truth = {i for i in known if MEANT[labels[i]] <= wanted}
        p = {i: sum(float(probabilities[k, i]) for k in wanted) for i in known}
        errors = {i: abs((i in truth) - p[i]) for i in known}
        wrong, before, total = set(), 0.0, 0.0
        for i in sorted(known, key=lambda i: -errors[i]):
            wrong.add(i)
            now = 1 - len(truth - wrong) / len(truth | wrong)
            total, before = total + errors[i] * (now - before), now
        values.append(total)
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(3))
def test_lovasz_loss_has_a_union_as_one_more_class(seed: int) -> None:
    """A pixel labelled car that counts as a wrong truck, or as nothing at all."""
    _, targets = example(seed, (20, 28))
    logits = torch.randn(2, K, 5, 7)
    assert lovasz_loss(logits, targets, UNIONS).item() == pytest.approx(lovasz_defined(logits, targets), abs=1e-5)


def test_lovasz_loss_of_a_right_union_is_zero() -> None:
    """A network that is sure of a truck where the label says car, a truck or a bus, has made no error."""
    targets = torch.full((1, 16, 16), K + 1)
    targets[:, :8] = 0
    logits = torch.zeros(1, K, 4, 4)
    logits[:, 0, :2], logits[:, 3, 2:] = 1000.0, 1000.0
    assert lovasz_loss(logits, targets, UNIONS) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_computes_the_same() -> None:
    """On a GPU other code runs, which must not look at the values."""
    logits, targets = example(7, (36, 48))
    targets = targets.where((targets != 3) & (targets != K), 255)  # a class and a union that are absent
    there = logits.detach().cuda().requires_grad_()
    for loss in (
        lambda *batch: upsampled_loss("cross_entropy", *batch, 0.1, unions=UNIONS)[0],
        lambda *batch: upsampled_loss("ohem", *batch, unions=UNIONS)[0],
        lambda *batch: auxiliary_loss(*batch, UNIONS)[0],
        lambda *batch: lovasz_loss(*batch, UNIONS),
    ):
        expected, got = loss(logits, targets), loss(there, targets.cuda())
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-4, atol=1e-4)
        gradients = torch.autograd.grad(got, there)[0].cpu(), torch.autograd.grad(expected, logits)[0]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["cross_entropy", "ohem"])
def test_without_a_union_in_the_targets_nothing_changes(name: str) -> None:
    """Data sets with and without unions in one run: the second must be learnt as ever."""
    logits, targets = example(5, (18, 24))
    targets = targets.where(targets < K, 255)
    with_unions, without = (upsampled_loss(name, logits, targets, unions=some)[0] for some in (UNIONS, ()))
    torch.testing.assert_close(with_unions, without)
    torch.testing.assert_close(lovasz_loss(logits, targets, UNIONS), lovasz_loss(logits, targets))
    assert auxiliary_loss(logits, torch.full_like(targets, 255), UNIONS) == (0, 0)
