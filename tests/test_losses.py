"""Losses against their definitions, and where nothing counts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from training import losses
from training.losses import (
    LOSSES,
    OHEM_LEAST_SHARE,
    OHEM_PROBABILITY,
    auxiliary_loss,
    lovasz_loss,
    pixel_loss,
    upsampled_loss,
)


def example(seed: int = 0, ignored: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that ask for a gradient, and targets of which a share is ignored."""
    torch.manual_seed(seed)
    targets = torch.randint(0, 19, (2, 6, 7))
    targets[torch.rand(targets.shape) < ignored] = 255
    return (3 * torch.randn(2, 19, 6, 7)).requires_grad_(), targets


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_count_nowhere(name: str) -> None:
    """A loss that changes with the logits of ignored pixels trains on labels that do not exist."""
    logits, targets = example()
    loss, count = pixel_loss(name, logits, targets)
    loss.backward()
    ignored = (targets == 255).unsqueeze(1).expand_as(logits)
    assert logits.grad[ignored].abs().sum() == 0 and logits.grad[~ignored].abs().sum() > 0
    if name != "ohem":
        assert count == (targets != 255).sum()


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_labelled_gives_zero_and_no_nan(name: str) -> None:
    """A batch of ignored pixels alone divides by zero, and one NaN ends a run."""
    logits, targets = example(ignored=1.1)
    loss, count = pixel_loss(name, logits, targets)
    (loss / count.clamp(min=1)).backward()
    assert loss == 0 and count == 0 and logits.grad.abs().sum() == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_binary_cross_entropy_is_the_one_hot_form(seed: int) -> None:
    """The form without a one-hot target must equal the definition."""
    logits, targets = example(seed)
    valid = targets != 255
    hot = F.one_hot(targets.where(valid, 0), 19).permute(0, 3, 1, 2).float()
    expected = (F.binary_cross_entropy_with_logits(logits, hot, reduction="none").sum(1) * valid).sum()
    torch.testing.assert_close(pixel_loss("bce", logits, targets)[0], expected)


def test_ohem_keeps_the_hard_pixels_and_at_least_a_share() -> None:
    """Hard example mining that keeps the easy ones, or none once all are easy."""
    logits, targets = example()
    losses = F.cross_entropy(logits, targets, reduction="none", ignore_index=255)[targets != 255]
    hard = losses[losses > -math.log(OHEM_PROBABILITY)]
    loss, count = pixel_loss("ohem", logits, targets)
    torch.testing.assert_close(loss, hard.sum())
    assert count == len(hard)
    easy = (5 + torch.rand(2, 1, 6, 7)) * F.one_hot(targets.clamp(max=18), 19).permute(0, 3, 1, 2)
    loss, few = pixel_loss("ohem", easy, targets)
    assert few == math.ceil(OHEM_LEAST_SHARE * targets.numel())
    all_losses = F.cross_entropy(easy, targets, reduction="none", ignore_index=255).flatten()
    torch.testing.assert_close(loss, all_losses.topk(int(few)).values.sum())


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["cross_entropy", "bce"]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_picture_at_a_time_is_the_loss_of_all(seed, name, align_corners, dtype) -> None:
    """A gradient computed on the way that is not the gradient, or that forgets what it is multiplied by."""
    torch.manual_seed(seed)
    targets = torch.randint(0, 19, (3, 20, 28))
    targets[torch.rand(targets.shape) < 0.3] = 255
    logits = (3 * torch.randn(3, 19, 3, 4)).to(dtype).requires_grad_()
    summed, pixels = upsampled_loss(name, logits, targets, align_corners)
    (0.3 * summed / pixels).backward()
    twin = logits.detach().clone().requires_grad_()
    full = F.interpolate(twin.float(), (20, 28), mode="bilinear", align_corners=align_corners)
    expected, count = pixel_loss(name, full, targets)
    (0.3 * expected / count).backward()
    assert pixels == count and not pixels.requires_grad
    torch.testing.assert_close(summed, expected)
    torch.testing.assert_close(logits.grad, twin.grad)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 39])
def test_a_few_rows_at_a_time_are_the_whole(rows: int, align_corners: bool, monkeypatch) -> None:
    """A row of logits between two strips of pixels that takes the gradient of one of them only."""
    monkeypatch.setattr(losses, "PIXELS_AT_ONCE", rows * 28)
    torch.manual_seed(0)
    targets = torch.randint(0, 19, (2, 40, 28))
    targets[:, 5:9, 3:] = 255
    logits = torch.randn(2, 19, 5, 4, requires_grad=True)
    summed, _ = upsampled_loss("cross_entropy", logits, targets, align_corners)
    full = F.interpolate(logits, (40, 28), mode="bilinear", align_corners=align_corners)
    expected, _ = pixel_loss("cross_entropy", full, targets)
    torch.testing.assert_close(summed, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (summed, expected)))


@pytest.mark.parametrize("name", LOSSES)
def test_a_picture_without_labels_has_no_gradient(name: str) -> None:
    """One unlabelled picture of a batch that turns the gradients of all into NaN."""
    targets = torch.randint(0, 19, (2, 16, 16))
    targets[0] = 255
    logits = torch.randn(2, 19, 2, 2, requires_grad=True)
    summed, pixels = upsampled_loss(name, logits, targets)
    (summed / pixels).backward()
    assert logits.grad[0].abs().sum() == 0 and logits.grad[1].abs().sum() > 0


def test_lovasz_loss_of_certain_predictions_is_one_minus_the_iou() -> None:
    """On zeros and ones the Lovász extension is the function that it extends."""
    torch.manual_seed(0)
    targets, p = torch.randint(0, 5, (2, 40, 44)), torch.randint(0, 7, (2, 10, 11))
    targets[:, :10] = 255
    logits = 1000.0 * F.one_hot(p, 7).permute(0, 3, 1, 2)
    t = targets[:, 2::4, 2::4]
    p, t = p[t != 255], t[t != 255]
    iou = [((p == k) & (t == k)).sum() / ((p == k) | (t == k)).sum() for k in range(5)]
    torch.testing.assert_close(lovasz_loss(logits, targets), 1 - torch.stack(iou).mean())


def test_lovasz_loss_is_the_definition() -> None:
    """Equation 9 of the paper, written out for one class at a time."""
    torch.manual_seed(1)
    targets = torch.randint(0, 4, (1, 16, 24))
    targets[:, 4:7] = 255
    logits = torch.randn(1, 6, 4, 6)
    labels = targets[:, 2::4, 2::4].flatten().tolist()
    probabilities = logits.softmax(1)[0].flatten(1)
    probabilities = probabilities[:, [label != 255 for label in labels]]
    labels = [label for label in labels if label != 255]
    losses = []
    for k in sorted(set(labels)):
        errors = [abs(float(label == k) - float(p)) for label, p in zip(labels, probabilities[k], strict=True)]
        order = sorted(range(len(errors)), key=lambda i: -errors[i])
        total, before = 0.0, 0.0
        for count in range(1, len(order) + 1):
            wrong = set(order[:count])
            truth = {i for i, label in enumerate(labels) if label == k}
            now = 1 - len(truth - wrong) / len(truth | wrong)
            total += errors[order[count - 1]] * (now - before)
            before = now
        losses.append(total)
    assert lovasz_loss(logits, targets).item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@pytest.mark.parametrize("loss", [lovasz_loss, auxiliary_loss])
def test_other_losses_without_labels_are_zero(loss) -> None:
    """A batch of ignored pixels alone must not end a run with NaN."""
    logits = torch.randn(2, 19, 3, 3, requires_grad=True)
    value = loss(logits, torch.full((2, 12, 12), 255))
    value = value[0] if isinstance(value, tuple) else value
    value.backward()
    assert value == 0 and logits.grad.abs().sum() == 0


def test_auxiliary_loss_looks_at_the_place_of_each_label() -> None:
    """An inner head that is compared with labels half a cell away."""
    targets = torch.zeros(1, 64, 96, dtype=torch.long)
    targets[:, :, 48:] = 1
    good = torch.zeros(1, 2, 8, 12)
    good[:, 0, :, :6], good[:, 1, :, 6:] = 20.0, 20.0
    shifted = good.roll(1, dims=3)
    shifted[..., 0] = good[..., 0]
    assert auxiliary_loss(good, targets)[0] < 0.2 * auxiliary_loss(shifted, targets)[0]
