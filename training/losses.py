"""Losses over pixels: a sum and the count to divide it by, so that processes can first sum up both.

Pixels of IGNORE_INDEX count nowhere; if all pixels are ignored the sum is zero, with zero gradients, never NaN.

With `unions`, a target of K + u, for K classes, means any class of unions[u]; see frames/unions.py. Such a pixel
is learnt by the sum of their probabilities.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from frames.classes import IGNORE_INDEX
from frames.unions import Members

LOSSES = ("cross_entropy", "bce", "ohem")
OHEM_PROBABILITY = 0.7  # Source: arXiv 1604.03540's idea with the threshold that mmsegmentation's OHEM sampler has
EVERY_FOURTH = slice(2, None, 4)  # along both axes: the pixel nearest to the middle of each 4x4 block
OHEM_LEAST_SHARE = 1 / 16  # of the pixels, which are kept however easy they are
PIXELS_AT_ONCE = 32768  # their class scores fit into the processor's cache


def pixel_loss(name: str, logits: Tensor, targets: Tensor, unions: Members = ()) -> tuple[Tensor, Tensor]:
    """Returns the summed loss and the number of pixels in the sum.

    Args:
        name: one of LOSSES. cross_entropy: softmax over the classes. bce: a sigmoid for each class against all others,
            summed over the classes. ohem: cross-entropy of the hard pixels only, at least 1/16 of all pixels.
        logits: (N, K, H, W).
        targets: (N, H, W) int64 train ids.
        unions: not with bce, whose classes are not learnt against each other.
    """
    valid = targets != IGNORE_INDEX
    if name == "bce":
        return _binary_cross_entropy(logits, targets, valid), valid.sum()
    if unions:
        losses = _union_cross_entropy(logits, targets, valid, unions)
        if name == "cross_entropy":
            return losses.sum(), valid.sum()
    elif name == "cross_entropy":
        return F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORE_INDEX), valid.sum()
    else:
        losses = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX)
    # No look at how many pixels are hard: it would make a GPU wait.
    least = losses.detach().flatten().topk(math.ceil(OHEM_LEAST_SHARE * losses.numel())).values[-1]
    kept = valid & (losses >= least.clamp(max=-math.log(OHEM_PROBABILITY)))
    return (losses * kept).sum(), kept.sum()


def _union_cross_entropy(logits: Tensor, targets: Tensor, valid: Tensor, unions: Members) -> Tensor:
    """Returns the (N, H, W) losses; zero for ignored pixels. The score of a union is the logsumexp of its classes'."""
    scores = [torch.stack([logits[:, k] for k in members], 1).logsumexp(1, keepdim=True) for members in unions]
    own = torch.cat([logits, *scores], 1).gather(1, targets.where(valid, 0).unsqueeze(1)).squeeze(1)
    return (logits.logsumexp(1) - own) * valid


def upsampled_loss(
    name: str, logits: Tensor, targets: Tensor, align_corners: bool = False, unions: Members = ()
) -> tuple[Tensor, Tensor]:
    """Returns pixel_loss of logits that are upsampled to the targets' size, one image at a time.

    The upsampled logits of 12 crops of 1024x2048 take 1.9 GB, and their gradients as much again. Here only one image's
    exist at a time; the gradient is computed on the way, so backward() has nothing left to do. On a CPU, cross-entropy
    takes a few rows at a time: see cpu_upsampled_cross_entropy.

    Args:
        name: as for pixel_loss.
        logits: (N, K, h, w).
        targets: (N, H, W) int64 train ids.
        align_corners: as for interpolate.
        unions: as for pixel_loss.
    """
    return _ByImage.apply(logits, targets, name, align_corners, unions)


class _ByImage(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, name: str, align_corners: bool, unions: Members):
        sums, counts, gradients = [], [], []
        for small, target in zip(logits.detach().split(1), targets.split(1), strict=True):
            if name == "cross_entropy" and small.is_cpu:
                summed, gradient = cpu_upsampled_cross_entropy(small[0], target[0], align_corners, unions)
                sums.append(summed)
                counts.append((target != IGNORE_INDEX).sum())
                gradients.append(gradient[None])
                continue
            with torch.enable_grad():
                small = small.float().requires_grad_()
                full = F.interpolate(small, target.shape[-2:], mode="bilinear", align_corners=align_corners)
                summed, pixels = pixel_loss(name, full, target, unions)
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


def _sparse(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns every fourth pixel of every fourth row of the targets, and logits interpolated to that size."""
    sparse = targets[:, EVERY_FOURTH, EVERY_FOURTH]
    return F.interpolate(logits.float(), sparse.shape[-2:], mode="bilinear", align_corners=False), sparse


def auxiliary_loss(logits: Tensor, targets: Tensor, unions: Members = ()) -> tuple[Tensor, Tensor]:
    """Returns the summed cross-entropy of an auxiliary head on every fourth pixel of every fourth row, and the count.

    At full size, each of the two heads would cost as much as the main loss, for maps of 1/8 and 1/32.

    Args:
        logits: (N, K, h, w), smaller than the targets.
        targets: (N, H, W) int64 train ids.
        unions: as for pixel_loss.
    """
    return pixel_loss("cross_entropy", *_sparse(logits, targets), unions=unions)


def lovasz_loss(logits: Tensor, targets: Tensor, unions: Members = ()) -> Tensor:
    """Returns the Lovász extension of one minus the IoU, averaged over the classes present in the targets.

    It falls as a class's IoU in the batch rises, however few its pixels are. Only every fourth pixel of every fourth
    row is used: sorting all of them would take longer than the network. Source: arXiv 1705.08790, sections 2 and 3.

    A union in the targets is one more class, to which the pixels of its members belong too. Whether its own pixels
    belong to one of its members is unknown: there they are ignored.

    Args:
        logits: (N, K, h, w), smaller than the targets.
        targets: (N, H, W) int64 train ids.
        unions: as for pixel_loss.
    """
    logits, targets = _sparse(logits, targets)
    labels = targets.flatten()
    valid = labels != IGNORE_INDEX
    probabilities = logits.softmax(1).transpose(0, 1).flatten(1)  # (K, P)
    for members in unions:
        joint = torch.stack([probabilities[k] for k in members]).sum(0, keepdim=True)
        probabilities = torch.cat([probabilities, joint])
    classes = torch.arange(len(probabilities), device=labels.device)
    if labels.is_cpu:  # elsewhere, asking which are present would make the device wait
        classes = torch.bincount(labels[valid], minlength=len(classes)).nonzero().squeeze(1)
    own = labels == classes.unsqueeze(1)  # (classes, P)
    hot = own.float()
    if unions:
        belongs, known = _memberships(logits.shape[1], unions, labels.device)
        hot, valid = belongs[classes][:, labels].float(), known[classes][:, labels]
    # An ignored pixel has no error: it sorts last, where it changes nothing.
    errors, order = ((hot - probabilities[classes]).abs() * valid).sort(1, descending=True)
    hot = hot.gather(1, order)
    # The Jaccard loss with the first i pixels wrong, for every i; its increments weigh the errors.
    total = hot.sum(1, keepdim=True)
    jaccard = 1 - (total - hot.cumsum(1)) / (total + (1 - hot).cumsum(1))
    steps = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], 1)
    present = own.any(1)
    return ((errors * steps).sum(1) * present).sum() / present.sum().clamp(min=1)


@functools.lru_cache(4)
def _memberships(count: int, unions: Members, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns (K + U, 256) bool: whether the pixels of a target belong to a class or union; and whether that is known.

    Args:
        count: K.
        unions: U of them.
        device: where to keep the tables.
    """
    sets = [{k} for k in range(count)] + [set(members) for members in unions]
    belongs, known = torch.zeros(2, len(sets), 256, dtype=torch.bool)
    for target, meant in enumerate(sets):
        for row, members in enumerate(sets):
            belongs[row, target] = meant <= members
            known[row, target] = meant <= members or meant.isdisjoint(members)
    return belongs.to(device), known.to(device)


def _binary_cross_entropy(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Returns the sum over pixels and classes, without a one-hot target as large as the logits.

    For class k of a pixel of class c the loss is softplus(z_k) - y_k z_k; summed over k that is the sum of all softplus
    less the logit of the pixel's own class.
    """
    own = logits.gather(1, targets.where(valid, 0).unsqueeze(1)).squeeze(1)
    losses = F.softplus(logits).sum(1) - own
    return (losses * valid).sum()


def cpu_upsampled_cross_entropy(
    logits: Tensor, targets: Tensor, align_corners: bool = False, unions: Members = ()
) -> tuple[Tensor, Tensor]:
    """Returns the summed cross-entropy of one image's upsampled logits, and its gradient. For CPUs only.

    Bilinear upsampling is two matrix products, and so is its transpose; between them, a few rows of pixels at a time go
    through softmax while they are in the processor's cache. PyTorch's own operators go through memory ten times.

    Args:
        logits: (K, h, w).
        targets: (H, W) int64 train ids.
        align_corners: as for interpolate.
        unions: as for pixel_loss.

    Returns:
        The sum, and its gradient with respect to the logits, (K, h, w) float32.
    """
    (classes, height, width), size = logits.shape, targets.shape
    rows, columns = (_upsampling(*axis, align_corners) for axis in zip((height, width), size, strict=True))
    wide = (logits.float().reshape(-1, width) @ columns.T).view(classes, height, -1)
    gradient, total = torch.zeros_like(wide), wide.new_zeros(())
    step = max(1, PIXELS_AT_ONCE // size[1])
    for weights, target in zip(rows.split(step), targets.split(step), strict=True):
        used = weights.any(0).nonzero()
        part = slice(int(used[0]), int(used[-1]) + 1)
        weights = weights[:, part]
        scores = weights @ wide[:, part]  # (K, step, W)
        valid = target != IGNORE_INDEX
        single = target < classes if unions else valid
        own = target.where(single, 0)[None]
        own_scores = scores.gather(0, own)[0]
        joint = _union_pixels(scores, target, unions)
        for pixels, _, inside in joint:
            own_scores.view(-1)[pixels] = inside.logsumexp(0)
        highest = scores.amax(0)
        loss = highest - own_scores
        scores.sub_(highest).exp_()
        summed = scores.sum(0)
        total += ((loss + summed.log()) * valid).sum()
        scores.mul_(valid / summed)  # softmax; minus the target distribution, it is the gradient
        scores.scatter_add_(0, own, -single[None].to(scores.dtype))
        for pixels, members, inside in joint:
            for k, share in zip(members, inside.softmax(0), strict=True):
                scores[k].view(-1).scatter_add_(0, pixels, -share)
        gradient[:, part] += weights.T @ scores
    return total, (gradient.view(-1, size[1]) @ columns).view(logits.shape)


def _union_pixels(scores: Tensor, target: Tensor, unions: Members) -> list[tuple[Tensor, tuple[int, ...], Tensor]]:
    """Returns the n pixels of each union that occurs, its members, and their (members, n) scores.

    Args:
        scores: (K, H, W).
        target: (H, W) int64 train ids.
        unions: as for pixel_loss.
    """
    found = []
    for union, members in enumerate(unions, len(scores)):
        pixels = (target == union).view(-1).nonzero().squeeze(1)
        if len(pixels):
            found.append((pixels, members, torch.stack([scores[k].view(-1)[pixels] for k in members])))
    return found


@functools.lru_cache(32)
def _upsampling(length: int, size: int, align_corners: bool) -> Tensor:
    """Returns the (size, length) matrix of linear interpolation along one axis."""
    return F.interpolate(torch.eye(length)[None], size, mode="linear", align_corners=align_corners)[0].T.contiguous()


def summed_cross_entropy(logits: Tensor, targets: Tensor, align_corners: bool, unions: Members = ()) -> float:
    """Returns the cross-entropy of upsampled (N, K, h, w) logits, summed over the labelled pixels of the targets."""
    targets = targets.to(logits.device).long()
    full = F.interpolate(logits, targets.shape[1:], mode="bilinear", align_corners=align_corners)
    return float(pixel_loss("cross_entropy", full, targets, unions=unions)[0])
