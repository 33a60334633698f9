"""Networks, logits, videos and reports for tests, each made from a seed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from evaluation.scores import ScoredFrame, Scores
from frames.classes import CITYSCAPES, Classes
from frames.samples import Sample
from inference.cuda import GraphNetwork
from inference.engine import Engine
from inference.published import TRAMAC, Publisher
from model import MEAN, STD, FastSCNN
from viewing.video import Frame, VideoFile, open_capture, read_frames
from web.other_report import PREFIX
from web.report import Report
from web.report_data import About

SIZE = (64, 96)


def write_as(path: Path, codec: str, frames: int = 6, height: int = SIZE[0], width: int = SIZE[1]) -> Path:
    """Writes a video of moving bars of 32 pixels in a codec that VideoFile does not offer."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), 25, (width, height))
    for index in range(frames):
        writer.write(bar(index, height, width))
    writer.release()
    return path


def bar(index: int, height: int, width: int) -> np.ndarray:
    """BGR: dark, with a bright bar that moves by 8 pixels."""
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, 8 * index + 8 : 8 * index + 40] = 200
    return image


def places(path: Path) -> list[int]:
    """Where the bars of the frames of a video begin; all of them have to look like frames of write_as."""
    frames = list(read_frames(open_capture(path), path))
    for frame in frames:
        assert isinstance(frame, Frame), frame
        assert 20 < np.median(frame.image) < 60 and 170 < frame.image.max() < 230
    return [int(np.flatnonzero(frame.image[frame.image.shape[0] // 2, :, 1] > 120)[0]) for frame in frames]


def random_statistics(model: nn.Module) -> nn.Module:
    """Gives batch normalisations other values than those that leave everything as it is."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 1, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def make_video(path, count=5):
    """Writes a video of 64x96 frames of noise, each brighter than the last."""
    video = VideoFile(path, 10)
    for index in range(count):
        video.write(np.random.default_rng(0).integers(10 * index, 10 * index + 40, (64, 96, 3), np.uint8))
    video.close()
    return path


# From our names to theirs, written down independently of published.py.
TO_TRAMAC = {
    r"(learning_to_downsample\.(?:conv|dsconv\d))\.": r"\1.conv.",
    r"(bottleneck\d\.\d)\.conv\.([01])\.": r"\1.block.0.conv.\2.",
    r"(bottleneck\d\.\d)\.conv\.3\.": r"\1.block.1.conv.0.",
    r"(bottleneck\d\.\d)\.conv\.4\.": r"\1.block.1.conv.1.",
    r"(bottleneck\d\.\d)\.conv\.6\.": r"\1.block.2.",
    r"(bottleneck\d\.\d)\.conv\.7\.": r"\1.block.3.",
    r"pyramid_pooling\.conv\.": "ppm.out.conv.",
    **{rf"pyramid_pooling\.stages\.{i}\.": f"ppm.conv{i + 1}.conv." for i in range(4)},
    r"low_dwconv\.": "dwconv.conv.",
    r"low_conv\.": "conv_lower_res.",
    r"high_conv\.": "conv_higher_res.",
    r"classifier\.conv\.": "classifier.conv.1.",
    r"classifier\.(dsconv\d)\.": r"classifier.\1.conv.",
    r"aux_shallow\.conv\.": "auxlayer.",
    r"aux_shallow\.classes\.": "auxlayer.4.",
}


TO_MMSEG = {
    r"(learning_to_downsample\.dsconv\d)\.([01])\.": r"\1.depthwise_conv.\2.",
    r"(learning_to_downsample\.dsconv\d)\.2\.": r"\1.pointwise_conv.0.",
    r"(learning_to_downsample\.dsconv\d)\.3\.": r"\1.pointwise_conv.1.",
    r"(bottleneck\d\.\d\.conv)\.([01])\.": r"\1.0.\2.",
    r"(bottleneck\d\.\d\.conv)\.3\.": r"\1.1.0.",
    r"(bottleneck\d\.\d\.conv)\.4\.": r"\1.1.1.",
    r"(bottleneck\d\.\d\.conv)\.6\.": r"\1.2.0.",
    r"(bottleneck\d\.\d\.conv)\.7\.": r"\1.2.1.",
    r"pyramid_pooling\.conv\.": "out.",
    r"pyramid_pooling\.stages\.(\d)\.": r"ppm.\1.1.",
    r"low_dwconv\.": "dwconv.",
    r"low_conv\.": "conv_lower_res.",
    r"high_conv\.": "conv_higher_res.",
    r"classifier\.conv\.": "decode_head.conv_seg.",
    r"classifier\.dsconv1\.([01])\.": r"decode_head.convs.0.depthwise_conv.\1.",
    r"classifier\.dsconv1\.([23])\.": r"decode_head.convs.0.pointwise_conv.\1.",
    r"classifier\.dsconv2\.([01])\.": r"decode_head.convs.1.depthwise_conv.\1.",
    r"classifier\.dsconv2\.([23])\.": r"decode_head.convs.1.pointwise_conv.\1.",
    r"aux_context\.conv\.": "auxiliary_head.0.convs.0.",
    r"aux_shallow\.conv\.": "auxiliary_head.1.convs.0.",
    r"aux_context\.classes\.": "auxiliary_head.0.conv_seg.",
    r"aux_shallow\.classes\.": "auxiliary_head.1.conv_seg.",
    # A convolution and its batch normalisation by name, and the backbone before what is no head.
    r"\.[02]\.(weight|bias)$": r".conv.\1",
    r"\.[13]\.(weight|bias|running_mean|running_var|num_batches_tracked)$": r".bn.\1",
    r"^(learning|global|feature)": r"backbone.\1",
}


def as_published(model: FastSCNN, publisher: Publisher) -> dict[str, torch.Tensor]:
    """The weights of a network as its publisher writes them."""
    state = {}
    for name, tensor in model.state_dict().items():
        if publisher is TRAMAC and name.startswith("aux_context"):
            continue
        if name.endswith("pyramid_pooling.conv.0.weight"):
            tensor = torch.cat([tensor[:, 128:], tensor[:, :128]], 1)  # the map itself first
        for pattern, theirs in (TO_TRAMAC if publisher is TRAMAC else TO_MMSEG).items():
            name = re.sub(pattern, theirs, name)
        state[name] = tensor.clone()
    if publisher is TRAMAC:  # whose fusion has biases before its batch normalisations
        for branch in ("feature_fusion.conv_lower_res", "feature_fusion.conv_higher_res"):
            bias = torch.randn(128, generator=torch.Generator().manual_seed(0))
            state[f"{branch}.0.bias"] = bias
            state[f"{branch}.1.running_mean"] += bias
    return state


def published_network(publisher: Publisher, count: int = 19) -> FastSCNN:
    """A random network of a publisher, with auxiliary heads."""
    torch.manual_seed(1)
    model = FastSCNN(count, aux=True, align_corners=publisher.align_corners, variant=publisher.variant)
    return random_statistics(model)


def make_logits(seed: int, shape: tuple[int, ...], kind: str) -> torch.Tensor:
    """Logits of a kind: noise has all classes in every cell, blobs have few mixed cells, the others near-ties."""
    torch.manual_seed(seed)
    noise = torch.randn(shape)
    if kind == "blobs":
        coarse = torch.randn(*shape[:2], 1 + shape[2] // 6, 1 + shape[3] // 6)
        return 5 * F.interpolate(coarse, shape[2:], mode="nearest") + 0.3 * noise
    if kind == "ties":
        return (2 * noise).round() / 2
    if kind == "near ties":
        return 1000 + noise
    if kind == "equal classes":
        return noise[:, :1].expand(shape) + 1e-6 * torch.randn(shape)
    return noise


class OriginalNetwork(nn.Module):
    """The original network, written anew from its layer names: the reference for the converter of its weights."""

    def __init__(self) -> None:
        super().__init__()

        def block(a, b, k, stride=1, padding=0, dilation=1, groups=1):
            conv = nn.Conv2d(a, b, k, stride, padding, dilation, groups, bias=False)
            return nn.ModuleDict({"conv": conv, "bn": nn.BatchNorm2d(b)})

        def separable(a, b, stride):
            depthwise = [nn.Conv2d(a, a, 3, stride, 1, groups=a, bias=False), nn.BatchNorm2d(a)]
            return nn.Sequential(*depthwise, nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

        def bottleneck(a, b, stride):
            t = a * 6
            depthwise = nn.Conv2d(t, t, 3, stride, 1, groups=t, bias=False)
            layers = [nn.Conv2d(a, t, 1, bias=False), nn.BatchNorm2d(t), nn.ReLU(), depthwise, nn.BatchNorm2d(t),
                      nn.ReLU(), nn.Conv2d(t, b, 1, bias=False), nn.BatchNorm2d(b)]  # fmt: skip
            return nn.ModuleDict({"conv": nn.Sequential(*layers)})

        def row(a, b, stride):
            return nn.Sequential(bottleneck(a, b, stride), bottleneck(b, b, 1), bottleneck(b, b, 1))

        down = {"conv": block(3, 32, 3, 2, 1), "dsconv1": separable(32, 48, 2), "dsconv2": separable(48, 64, 2)}
        stages = nn.ModuleList(nn.ModuleList([nn.Identity(), block(128, 32, 1)]) for _ in range(4))
        self.learning_to_down_sample = nn.ModuleDict(down)
        self.global_feature_extractor = nn.ModuleDict({
            "first_block": row(64, 64, 2), "second_block": row(64, 96, 2), "third_block": row(96, 128, 1),
            "ppm": nn.ModuleDict({"stages": stages, "conv": block(256, 128, 1)}),
        })  # fmt: skip
        self.feature_fusion = nn.ModuleDict({
            "conv_high_res": nn.Conv2d(64, 128, 1), "dwconv": block(128, 128, 3, 1, 4, 4, 128),
            "conv_low_res": nn.Conv2d(128, 128, 1),
        })  # fmt: skip
        parts = {"dsconv1": separable(128, 128, 1), "dsconv2": separable(128, 128, 1), "conv": nn.Conv2d(128, 19, 1)}
        self.classifier = nn.ModuleDict(parts)

    def forward(self, x):
        def run(part, y):
            return F.relu(part["bn"](part["conv"](y)))

        def resize(y, size):
            return F.interpolate(y, size, mode="bilinear", align_corners=True)

        size, down, deep = x.shape[-2:], self.learning_to_down_sample, self.global_feature_extractor
        shallow = y = down["dsconv2"](down["dsconv1"](run(down["conv"], x)))
        for name in ("first_block", "second_block", "third_block"):
            for index, part in enumerate(deep[name]):
                y = part["conv"](y) + (y if index else 0)
        stages = zip((1, 2, 3, 6), deep["ppm"]["stages"], strict=True)
        pooled = [resize(run(stage[1], F.adaptive_avg_pool2d(y, bins)), y.shape[-2:]) for bins, stage in stages]
        y = run(deep["ppm"]["conv"], torch.cat([*pooled, y], 1))
        low = self.feature_fusion["conv_low_res"](run(self.feature_fusion["dwconv"], resize(y, shallow.shape[-2:])))
        y = F.relu(low + self.feature_fusion["conv_high_res"](shallow))
        return resize(self.classifier["conv"](self.classifier["dsconv2"](self.classifier["dsconv1"](y))), size)


def original_network() -> nn.Module:
    """The original network with weights and batch-norm statistics of a seed, in eval mode."""
    torch.manual_seed(1)
    original = OriginalNetwork()
    for module in original.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.2)
    return original.eval()


ABOUT = About("w.pth", "data", "val", "torch fp32", "evaluate.py", 3)


def read_data(report: Path) -> dict:
    """What the page of a report shows."""
    return json.loads((report / "data.js").read_bytes()[len(PREFIX) : -2])


def read_picture(report: Path, number: int, kind: str) -> np.ndarray:
    """A picture of a report, RGB or RGBA."""
    picture = cv2.imread(str(report / "pictures" / f"{number:04d}_{kind}.webp"), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA if picture.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def tiny_report(
    folder: Path, truths: list[np.ndarray], predictions: list[np.ndarray], classes: Classes = CITYSCAPES
) -> Path:
    """Writes a report of given labels, under grey pictures."""
    samples = [Sample(f"frame{index}", Path("x"), None) for index in range(len(truths))]
    total = 0
    with Report(folder, classes, samples) as report:
        for index, (truth, prediction) in enumerate(zip(truths, predictions, strict=True)):
            counts = np.zeros((len(classes), len(classes)), np.int64)
            valid = truth != 255
            np.add.at(counts, (truth[valid], prediction[valid]), 1)
            total = total + counts
            image = np.full((*truth.shape, 3), 128, np.uint8)
            frame = ScoredFrame(index, samples[index], image, truth, prediction, counts)
            report.write(*report.encode(frame))
        report.finish(Scores(classes, total), ABOUT)
    return folder


def normalise(images: torch.Tensor) -> torch.Tensor:
    """The usual formula: (N, H, W, 3) uint8 RGB to (N, 3, H, W) float32."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images.permute(0, 3, 1, 2) / 255 - mean) / std


def graph_engine(model: FastSCNN, device: torch.device, precision: str) -> Engine:
    """The engine of --backend torch-graph, on a CPU too, where nothing is recorded."""
    graphs = GraphNetwork(model, device, precision)
    return Engine(graphs.logits, model.align_corners, f"torch-graph {precision}", graphs.labels)
