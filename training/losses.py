"""Losses over pixels. Each returns a sum and what to divide it by, so that processes can add both up first.

Pixels of IGNORE_INDEX count nowhere; where all pixels are ignored the sum is zero, with zero gradients, never NaN.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset import IGNORE_INDEX

LOSSES = ("cross_entropy", "bce", "ohem")
OHEM_PROBABILITY = 0.7  # Source: arXiv 1604.03540's idea with the threshold that mmsegmentation's OHEM sampler has
EVERY_FOURTH = slice(2, None, 4)  # in both directions: the pixel nearest to the middle of each 4x4 block
OHEM_LEAST_SHARE = 1 / 16  # of the pixels are kept, however easy they are
PIXELS_AT_ONCE = 32768  # whose class scores stay in the processor's cache


def pixel_loss(name: str, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Returns the summed loss and the number of pixels that it sums over.

    Args:
        name: one of LOSSES. cross_entropy: softmax over the classes. bce: a sigmoid for each class against all others,
            summed over the classes. ohem: cross-entropy of the hard pixels alone, of 1/16 of all pixels at least.
        logits: (N, K, H, W).
        targets: (N, H, W) int64 train ids.
        label_smoothing: probability that is spread over all classes.
    """
    valid = targets != IGNORE_INDEX
    if name == "bce":
        return _binary_cross_entropy(logits, targets, valid, label_smoothing), valid.sum()
    smoothing = {"ignore_index": IGNORE_INDEX, "label_smoothing": label_smoothing}
    if name == "cross_entropy":
        return F.cross_entropy(logits, targets, reduction="sum", **smoothing), valid.sum()
    losses = F.cross_entropy(logits, targets, reduction="none", **smoothing)
    # Without asking how many pixels are hard, for which a GPU would have to wait.
    least = losses.detach().flatten().topk(math.ceil(OHEM_LEAST_SHARE * losses.numel())).values[-1]
    kept = valid & (losses >= least.clamp(max=-math.log(OHEM_PROBABILITY)))
    return (losses * kept).sum(), kept.sum()


def upsampled_loss(
    name: str, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, align_corners: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns pixel_loss of logits that are enlarged to the targets' size, one picture at a time.

    The enlarged logits of 12 crops of 1024x2048 take 1.9 GB, and their gradients as much again. Here those of one
    picture exist at once; the gradient is computed on the way, so that backward() has nothing left to do. The
    cross-entropy on a CPU takes a few rows of them at a time, see enlarged_cross_entropy.

    Args:
        name: as for pixel_loss.
        logits: (N, K, h, w).
        targets: (N, H, W) int64 train ids.
        label_smoothing: as for pixel_loss.
        align_corners: as for interpolate.
    """
    return _ByPicture.apply(logits, targets, name, label_smoothing, align_corners)


class _ByPicture(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, name: str, label_smoothing: float, align_corners: bool):
        sums, counts, gradients = [], [], []
        for small, target in zip(logits.detach().split(1), targets.split(1), strict=True):
            if name == "cross_entropy" and small.is_cpu:
                summed, gradient = enlarged_cross_entropy(small[0], target[0], label_smoothing, align_corners)
                sums.append(summed)
                counts.append((target != IGNORE_INDEX).sum())
                gradients.append(gradient[None])
                continue
            with torch.enable_grad():
                small = small.float().requires_grad_()
                full = F.interpolate(small, target.shape[-2:], mode="bilinear", align_corners=align_corners)
                summed, pixels = pixel_loss(name, full, target, label_smoothing)
                gradients += torch.autograd.grad(summed, small)
            sums.append(summed.detach())
            counts.append(pixels)
        ctx.save_for_backward(torch.cat(gradients))
        total = torch.stack(counts).sum()
        ctx.mark_non_differentiable(total)
        return torch.stack(sums).sum(), total

    @staticmethod
    def backward(ctx, gradient: Tensor, _: Tensor):
        (gradients,) = ctx.saved_tensors
        return gradients * gradient, None, None, None, None


def enlarged_cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, align_corners: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns the summed cross-entropy of one picture's enlarged logits, and its gradient with respect to the logits.

    Bilinear enlargement is two matrix products, and so is its transpose; between them a few rows of pixels at a time go
    through softmax while they are in the processor's cache. PyTorch's own operators go through memory ten times.

    Args:
        logits: (K, h, w).
        targets: (H, W) int64 train ids.
        label_smoothing: as for pixel_loss.
        align_corners: as for interpolate.

    Returns:
        A number, and (K, h, w) float32.
    """
    (classes, height, width), size = logits.shape, targets.shape
    rows, columns = (_enlarging(*axis, align_corners) for axis in zip((height, width), size, strict=True))
    wide = (logits.float().reshape(-1, width) @ columns.T).view(classes, height, -1)
    gradient, total = torch.zeros_like(wide), wide.new_zeros(())
    step = max(1, PIXELS_AT_ONCE // size[1])
    for weights, target in zip(rows.split(step), targets.split(step), strict=True):
        used = weights.any(0).nonzero()
        part = slice(int(used[0]), int(used[-1]) + 1)
        weights = weights[:, part]
        scores = weights @ wide[:, part]  # (K, step, W)
        valid = target != IGNORE_INDEX
        own = target.where(valid, 0)[None]
        highest = scores.amax(0)
        loss = highest - (1 - label_smoothing) * scores.gather(0, own)[0]
        if label_smoothing:
            loss -= label_smoothing * scores.mean(0)
        scores.sub_(highest).exp_()
        summed = scores.sum(0)
        total += ((loss + summed.log()) * valid).sum()
        scores.mul_(valid / summed)  # softmax; less the probabilities that it should have, it is the gradient
        if label_smoothing:
            scores.sub_(label_smoothing / classes * valid)
        scores.scatter_add_(0, own, (label_smoothing - 1) * valid[None])
        gradient[:, part] += weights.T @ scores
    return total, (gradient.view(-1, size[1]) @ columns).view(logits.shape)


@functools.lru_cache(32)
def _enlarging(length: int, size: int, align_corners: bool) -> Tensor:
    """Returns the (size, length) matrix of linear interpolation along one axis."""
    return F.interpolate(torch.eye(length)[None], size, mode="linear", align_corners=align_corners)[0].T.contiguous()


def _sparse(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Every fourth pixel of every fourth row of the targets, and logits interpolated to as many."""
    sparse = targets[:, EVERY_FOURTH, EVERY_FOURTH]
    return F.interpolate(logits.float(), sparse.shape[-2:], mode="bilinear", align_corners=False), sparse


def auxiliary_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the summed cross-entropy of an inner head against every fourth pixel of every fourth row, and how many.

    At full size the two heads would cost as much as the rest of the step's loss twice over, for maps of 1/8 and 1/32.

    Args:
        logits: (N, K, h, w), smaller than the targets.
        targets: (N, H, W) int64 train ids.
    """
    return pixel_loss("cross_entropy", *_sparse(logits, targets))


def lovasz_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the Lovász extension of one minus the IoU, mean over the classes that the targets hold.

    It falls where a class's IoU in the batch rises, however few its pixels are. Every fourth pixel of every fourth row
    is taken: the sort over all of them would take longer than the network. Source: arXiv 1705.08790, sections 2 and 3.

    Args:
        logits: (N, K, h, w), smaller than the targets.
        targets: (N, H, W) int64 train ids.
    """
    logits, targets = _sparse(logits, targets)
    labels = targets.flatten()
    valid = labels != IGNORE_INDEX
    probabilities = logits.softmax(1).transpose(0, 1).flatten(1)  # (K, P)
    classes = torch.arange(len(probabilities), device=labels.device)
    if labels.is_cpu:  # elsewhere asking for the present ones would make the device wait
        classes = torch.bincount(labels[valid], minlength=len(classes)).nonzero().squeeze(1)
    hot = (labels == classes.unsqueeze(1)).float()  # (classes, P)
    # An ignored pixel has no error: it comes last, where it changes nothing.
    errors, order = ((hot - probabilities[classes]).abs() * valid).sort(1, descending=True)
    hot = hot.gather(1, order)
    # The Jaccard loss of the first i pixels being wrong, for every i; its steps are the weights of the errors.
    total = hot.sum(1, keepdim=True)
    jaccard = 1 - (total - hot.cumsum(1)) / (total + (1 - hot).cumsum(1))
    steps = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], 1)
    present = total.squeeze(1) > 0
    return ((errors * steps).sum(1) * present).sum() / present.sum().clamp(min=1)


def _binary_cross_entropy(logits: Tensor, targets: Tensor, valid: Tensor, label_smoothing: float) -> Tensor:
    """The sum over pixels and classes, without a one-hot target of the size of the logits.

    For class k of a pixel of class c the loss is softplus(z_k) - y_k z_k; summed over k that is the sum of all softplus
    less the logit of the pixel's own class.
    """
    own = logits.gather(1, targets.where(valid, 0).unsqueeze(1)).squeeze(1)
    spread = label_smoothing * logits.mean(1) if label_smoothing else 0.0
    losses = F.softplus(logits).sum(1) - (1 - label_smoothing) * own - spread
    return (losses * valid).sum()
