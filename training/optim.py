"""Optimizers, learning-rate schedule and moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import swa_utils


def learning_rate(step: int, steps: int, peak: float, power: float = 0.0, warmup_steps: int = 0) -> float:
    """Returns the learning rate of a step: linear warm-up times peak * (1 - step / steps) ** power.

    Args:
        step: the first step of the run is 0.
        steps: steps of the whole run.
        peak: the highest rate.
        power: 0 leaves the rate constant. Paper: 0.9.
        warmup_steps: length of the warm-up.
    """
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    return warmup * (peak * (1 - step / steps) ** power)


def scaled_rate(lr: float, batch: int, base_batch: int) -> float:
    """Returns the rate for a total batch, where `lr` is meant for base_batch; with base_batch 0 it is `lr`."""
    return lr * batch / base_batch if base_batch else lr


def parameter_groups(model: nn.Module, weight_decay: float, decay_all: bool) -> list[dict]:
    """Splits the parameters into a group that decays and one that does not.

    Without `decay_all`, depthwise convolutions, biases and batch normalisation do not decay. Paper: the depthwise
    convolutions do not. Source: for the other two, common practice (arXiv 1812.01187).
    """
    depthwise = {m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1}
    decayed, spared = [], []
    for parameter in model.parameters():
        spare = not decay_all and (parameter.ndim < 2 or parameter in depthwise)
        (spared if spare else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(name: str, groups: list[dict], lr: float) -> torch.optim.Optimizer:
    """Returns Adam, AdamW, Muon or SGD with momentum 0.9 (Paper: 0.9)."""
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=True)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "muon": Muon}[name](groups, lr=lr, fused=True)


class Muon(torch.optim.AdamW):
    """Steps of equal size in every direction for the weights of dense convolutions, AdamW for all other parameters.

    The gradient of a matrix mostly has low rank: a step along it moves few of the layer's directions. Muon steps along
    the nearest orthogonal matrix of the momentum instead. torch.optim.Muon only takes matrices, not the (K, C, 1, 1)
    weights that make up nearly all of Fast-SCNN.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the size of the step, which
    lets it share AdamW's learning rate: arXiv 2502.16982, section 2.2.
    """

    momentum = 0.95

    def __init__(self, params, **options):
        super().__init__(params, **options)
        # A fused AdamW checks scaled gradients for overflow itself; here the scaler has to.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self) -> None:
        """Takes one step and clears the gradients of the dense convolutions."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None or weight.ndim != 4 or weight.shape[1] == 1:
                    continue
                state = self.state[weight]
                if not state:
                    state.update(
                        step=torch.zeros(()), average=torch.zeros_like(weight)
                    )  # AdamW expects a step count everywhere
                state["step"] += 1
                average = state["average"].mul_(self.momentum).add_(weight.grad)
                ahead = weight.grad.add(average, alpha=self.momentum)  # Nesterov's
                update = orthogonal(ahead.flatten(1)).view_as(weight)
                size = 0.2 * max(len(weight), weight[0].numel()) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] * size)
                weight.grad = None  # so that AdamW skips it
        super().step()


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Approximates the nearest (semi-)orthogonal matrix: the same singular vectors, singular values of 0.7 to 1.2.

    Five steps of a Newton-Schulz iteration. Source: for the coefficients, Jordan et al., as above.
    """
    x = matrix / (matrix.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.mT
    for _ in range(5):
        gram = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.mT


def make_average(model: nn.Module, decay: float) -> swa_utils.AveragedModel:
    """Returns an exponential moving average of weights and of batch-normalisation statistics.

    In the first steps the decay is lower, (1 + n) / (10 + n) after n updates, so that the random initial weights fade
    quickly.
    """

    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        # With tensors, so that a GPU does not wait for the count.
        step = 1 - torch.clamp((1 + count) / (10 + count), max=decay)
        for average, tensor in zip(averaged, current, strict=True):
            if average.is_floating_point():
                average.lerp_(tensor, step.to(average.dtype))
            else:
                average.copy_(tensor)

    return swa_utils.AveragedModel(model, multi_avg_fn=update, use_buffers=True)
