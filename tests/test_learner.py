"""The training step: precision, what it reports, and what it must not wait for."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from makers import normalise
from torch.nn import functional as F

from model import FastSCNN
from training.augment import UNCHANGED
from training.learner import Learner, half_precision, on_device
from training.losses import auxiliary_loss, lovasz_loss, pixel_loss
from training.recipes import parse_args
from utils import cpu_has_bf16

CPU = torch.device("cpu")


def learner(*flags: str, half: torch.dtype | None = None, device: torch.device = CPU) -> Learner:
    """A learner of ten steps from the same weights each time."""
    torch.manual_seed(0)
    args = parse_args(["--batch_size", "2", *flags])
    made = Learner(args, FastSCNN(aux=args.aux_weight > 0), device, 10, half)
    made.model.train()
    return made


def batch(seed: int = 0) -> list[torch.Tensor]:
    """Two crops."""
    torch.manual_seed(seed)
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    return [images, torch.randint(0, 19, (2, 64, 96), dtype=torch.uint8), torch.tensor([[1.1, 1, 1, 0]] * 2)]


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
def test_every_precision_learns(half: torch.dtype | None) -> None:
    """A scaler that skips every step, or rounds the loss away."""
    made = learner("--optimizer", "adamw", half=half)
    losses = [float(made.step(number, *batch())[0]) for number in range(8)]
    assert losses[-1] < losses[0] - 0.05
    assert made.scaler.is_enabled() == (half == torch.float16)


def test_a_step_that_overflows_is_left_out() -> None:
    """fp16 gradients of infinity that end up in the weights."""
    made = learner("--optimizer", "muon", half=torch.float16)
    made.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = copy.deepcopy(made.model.state_dict())
    made.step(0, *batch())
    after = made.model.state_dict()
    assert all(
        torch.equal(before[name], after[name]) for name in before if "running" not in name and "num_" not in name
    )
    assert made.scaler.get_scale() < 2.0**127


def test_a_learner_resumes_from_its_state() -> None:
    """A scale, an average or a momentum that a resumed run forgets."""
    flags = ("--recipe", "strong", "--aux_weight", "0.4", "--batch_size", "2")
    straight, cut, resumed = (learner(*flags, half=torch.float16) for _ in range(3))

    def steps(made: Learner, numbers: range) -> None:
        for number in numbers:
            torch.manual_seed(number)  # of dropout
            made.step(number, *batch(number))

    steps(straight, range(4))
    steps(cut, range(2))
    resumed.load_state_dict(copy.deepcopy(cut.state_dict()))
    steps(resumed, range(2, 4))
    a, b = straight.state_dict(), resumed.state_dict()
    assert a["scaler"] == b["scaler"] and a["scaler"]["_growth_tracker"] == 4
    for part in ("model", "average"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])


def test_depthwise_convolutions_train_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's bf16 gradient of a depthwise convolution makes a step with autocast slower than one without."""
    seen = set()
    convolve = torch.nn.Conv2d._conv_forward

    def note(self, x, weight, bias):
        seen.add((self.groups > 1, x.dtype, torch.is_autocast_enabled("cpu")))
        return convolve(self, x, weight, bias)

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", note)
    learner(half=torch.bfloat16).step(0, *batch())
    assert {entry for entry in seen if entry[0]} == {(True, torch.float32, False)}
    assert (False, torch.bfloat16, True) in seen


def test_the_rate_of_a_step_depends_on_its_number_alone() -> None:
    """A schedule that starts anew after a resume."""
    made = learner("--power", "0.9", "--lr", "0.01")
    made.step(5, *batch())
    assert made.lr == pytest.approx(0.01 * 0.5**0.9)


@pytest.mark.parametrize("unions", [(), ((2, 3), (12, 17, 18))], ids=["classes", "unions"])
def test_the_loss_is_what_the_flags_say(unions: tuple[tuple[int, ...], ...]) -> None:
    """A weight, a union or a way to interpolate that is read and then forgotten."""
    made = learner("--aux_weight", "0.4", "--lovasz_weight", "0.3")
    made.model.align_corners, made.unions = True, unions
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    images, targets, _ = batch()
    targets[0, :20] = 255
    for index, _ in enumerate(unions):
        targets[1, 20 * index : 20 * index + 20] = 19 + index
    loss, pixels = made.loss(images, targets, UNCHANGED.expand(2, 4))
    targets = targets.long()
    logits, *inner = made.model.logits(made.model.resize(normalise(images)))
    full = F.interpolate(logits, targets.shape[1:], mode="bilinear", align_corners=True)
    expected, count = pixel_loss("cross_entropy", full, targets, unions)
    expected = expected / count
    for head in inner:
        summed, count = auxiliary_loss(head, targets, unions)
        expected = expected + 0.4 * summed / count
    expected = expected + 0.3 * lovasz_loss(logits, targets, unions)
    torch.testing.assert_close(loss, expected)
    assert len(inner) == 2 and pixels == (targets != 255).sum()


@pytest.mark.parametrize("loss", ["bce", "ohem"])
def test_the_flag_chooses_the_loss(loss: str) -> None:
    """A --loss that is read and then forgotten."""
    made, (images, targets, _) = learner("--loss", loss), batch()
    with torch.no_grad():
        made.model.classifier.conv.weight.mul_(50)  # easy pixels too
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found, _ = made.loss(images, targets, UNCHANGED.expand(2, 4))
    (logits,) = made.model.logits(normalise(images))
    full = F.interpolate(logits, targets.shape[1:], mode="bilinear")
    expected, count = pixel_loss(loss, full, targets.long())
    torch.testing.assert_close(found, expected / count)
    plain, pixels = pixel_loss("cross_entropy", full, targets.long())
    assert abs(float(found - plain / pixels)) > 0.01


def test_batches_arrive_as_they_were() -> None:
    """A batch that is left behind, or comes twice, where they are copied ahead."""
    batches = [batch(seed) for seed in range(3)]
    arrived = list(on_device(batches, CPU))
    assert len(arrived) == 3 and all(a is b for a, b in zip(arrived, batches, strict=True))
    assert half_precision(CPU) == (torch.bfloat16 if cpu_has_bf16() else None)


def test_compiled_step_is_the_plain_one(monkeypatch) -> None:
    """A compiled network whose weights are not those that are saved, or under other names.

    Traced and run without generating code, which takes minutes on two cores.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = learner("--lr", "1e-3"), learner("--lr", "1e-3", "--compile")
    for made in (plain, compiled):
        made.model.classifier.dropout.p = 0.0
    losses = [float(made.step(0, *batch())[0]) for made in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    a, b = plain.state_dict()["model"], compiled.state_dict()["model"]
    assert list(a) == list(b)
    name = "learning_to_downsample.conv.1.running_mean"
    torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("flags", [(), ("--recipe", "strong"), ("--loss", "ohem", "--aux_weight", "0.4")])
@pytest.mark.parametrize("unions", [(), ((2, 3), (12, 17, 18))], ids=["classes", "unions"])
def test_no_step_waits_for_the_gpu(flags: tuple[str, ...], unions: tuple[tuple[int, ...], ...]) -> None:
    """One .item() in a step halves the speed of a GPU."""
    device = torch.device("cuda")
    made = learner(*flags, "--batch_size", "2", half=torch.bfloat16, device=device)
    made.unions = unions
    for number, arrived in enumerate(on_device([batch(), batch(), batch()], device)):
        if number == 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            made.step(number, *arrived)
        finally:
            torch.cuda.set_sync_debug_mode("default")
