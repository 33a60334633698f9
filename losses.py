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


def _binary_cross_entropy(logits: Tensor, targets: Tensor, valid: Tensor, label_smoothing: float) -> Tensor:
    """The sum over pixels and classes, without a one-hot target of the size of the logits.

    For class k of a pixel of class c the loss is softplus(z_k) - y_k z_k; summed over k that is the sum of all softplus
    less the logit of the pixel's own class.
    """
    own = logits.gather(1, targets.where(valid, 0).unsqueeze(1)).squeeze(1)
    spread = label_smoothing * logits.mean(1) if label_smoothing else 0.0
    losses = F.softplus(logits).sum(1) - (1 - label_smoothing) * own - spread
    return (losses * valid).sum()
