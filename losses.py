"""Losses over pixels. Each returns a sum and what to divide it by, so that processes can add both up first.

Pixels of IGNORE_INDEX count nowhere; where all pixels are ignored the sum is zero, with zero gradients, never NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset import IGNORE_INDEX

LOSSES = ("cross_entropy", "bce", "ohem")
OHEM_PROBABILITY = 0.7  # Source: arXiv 1604.03540's idea with the threshold that mmsegmentation's OHEM sampler has
OHEM_LEAST_SHARE = 1 / 16  # of the pixels are kept, however easy they are


def pixel_loss(name: str, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Returns the summed loss and the number of pixels that it sums over.

    Args:
        name: one of LOSSES. cross_entropy: softmax over the classes. bce: a sigmoid for each class against all others,
            summed over the classes. ohem: cross-entropy of the hard pixels alone.
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
    losses = F.cross_entropy(logits, targets, reduction="none", **smoothing)[valid]
    hard = losses.detach() > -math.log(OHEM_PROBABILITY)
    least = math.ceil(OHEM_LEAST_SHARE * losses.numel())
    kept = losses[hard] if int(hard.sum()) >= least else losses.topk(least).values
    return kept.sum() + 0 * logits.sum(), torch.tensor(kept.numel(), device=logits.device)


def auxiliary_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross-entropy of an inner head against every fourth pixel of every fourth row.

    At full size the two heads would cost as much as the rest of the step's loss twice over, for maps of 1/8 and 1/32.

    Args:
        logits: (N, K, h, w), smaller than the targets.
        targets: (N, H, W) int64 train ids.
    """
    sparse = targets[:, 2::4, 2::4]  # the pixel nearest to the middle of each 4x4 block
    resized = F.interpolate(logits, sparse.shape[-2:], mode="bilinear", align_corners=False)
    summed, pixels = pixel_loss("cross_entropy", resized, sparse)
    return summed / pixels.clamp(min=1)


def lovasz_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the Lovász extension of one minus the IoU, mean over the classes that the targets hold.

    It falls where a class's IoU in the batch rises, however few its pixels are. Every fourth pixel of every fourth row
    is taken: the sort over all of them would take longer than the network. Source: arXiv 1705.08790, sections 2 and 3.

    Args:
        logits: (N, K, H, W).
        targets: (N, H, W) int64 train ids.
    """
    logits, targets = logits[..., 2::4, 2::4], targets[..., 2::4, 2::4]
    valid = targets != IGNORE_INDEX
    probabilities = logits.permute(0, 2, 3, 1)[valid].softmax(1).T  # (K, P)
    labels = targets[valid]
    present = torch.bincount(labels, minlength=len(probabilities)).nonzero().squeeze(1)
    if not len(present):
        return 0 * logits.sum()
    hot = (labels == present.unsqueeze(1)).float()  # (present classes, P)
    errors, order = (hot - probabilities[present]).abs().sort(1, descending=True)
    hot = hot.gather(1, order)
    # The Jaccard loss of the first i pixels being wrong, for every i; its steps are the weights of the errors.
    total = hot.sum(1, keepdim=True)
    jaccard = 1 - (total - hot.cumsum(1)) / (total + (1 - hot).cumsum(1))
    steps = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], 1)
    return (errors * steps).sum(1).mean()


def _binary_cross_entropy(logits: Tensor, targets: Tensor, valid: Tensor, label_smoothing: float) -> Tensor:
    """The sum over pixels and classes, without a one-hot target of the size of the logits.

    For class k of a pixel of class c the loss is softplus(z_k) - y_k z_k; summed over k that is the sum of all softplus
    less the logit of the pixel's own class.
    """
    own = logits.gather(1, targets.where(valid, 0).unsqueeze(1)).squeeze(1)
    spread = label_smoothing * logits.mean(1) if label_smoothing else 0.0
    losses = F.softplus(logits).sum(1) - (1 - label_smoothing) * own - spread
    return (losses * valid).sum()
