"""Crops, colors and the order of the frames."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from conftest import random_frame, refused, write_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F

from frames.cityscapes import find_samples
from frames.classes import IGNORE_INDEX
from frames.samples import Scales
from training.augment import EpochSampler, TrainSet, _nth_true, distort_colors, draw_colors, paste_classes
from training.crop import MEAN_COLOR, crop_image, crop_label, place_crop

LISTED = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
ONE = Scales((1.0,), False)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(32, 120), st.integers(32, 120),
    st.one_of(st.sampled_from(LISTED), st.floats(0.5, 2.0)),
    st.tuples(st.integers(32, 130), st.integers(32, 130)),
    st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)), st.booleans(),
)  # fmt: skip
def test_crop_equals_resizing_the_whole(seed, height, width, scale, size, part, flip) -> None:
    """Resizing only the crop's pixels must not shift or blur them, and image and label must stay aligned."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    label = rng.integers(0, 19, (height, width), np.uint8)
    crop = place_crop((height, width), scale, size, part, flip)
    got_image, got_label = crop_image(image, crop), crop_label(label, crop)

    scaled = (round(width * scale), round(height * scale))
    whole = cv2.resize(image, scaled, interpolation=cv2.INTER_LINEAR)
    whole_label = cv2.resize(label, scaled, interpolation=cv2.INTER_NEAREST_EXACT)
    pad = [max(0, c - s) for c, s in zip(size, scaled[::-1], strict=True)]
    whole = np.pad(whole, ((0, pad[0]), (0, pad[1]), (0, 0)))
    whole[scaled[1] :] = whole[:, scaled[0] :] = MEAN_COLOR
    whole_label = np.pad(whole_label, ((0, pad[0]), (0, pad[1])), constant_values=255)
    y, x = (int(p * (s - c + 1)) for p, s, c in zip(part, whole_label.shape, size, strict=True))
    window = slice(y, y + size[0]), slice(x, x + size[1])
    step = -1 if flip else 1
    assert np.abs(whole[window][:, ::step].astype(int) - got_image).max() <= 1
    # Where a centre falls on the edge between two source pixels, either is nearest.
    ties = [
        ((2 * np.arange(start, start + c) + 1) * length) % (2 * s) == 0
        for start, c, length, s in zip((y, x), size, label.shape, scaled[::-1], strict=True)
    ]
    clear = ~(ties[0][:, None] | ties[1])[:, ::step]
    np.testing.assert_array_equal(whole_label[window][:, ::step][clear], got_label[clear])
    assert got_image.shape == (*size, 3) and got_label.shape == size


def test_every_crop_position_can_occur() -> None:
    """An off-by-one in the offset never shows the last row or column of a picture."""
    image, _ = random_frame(np.random.default_rng(2), 40, 50)
    last = crop_image(image, place_crop((40, 50), 1.0, (32, 32), (0.999999, 0.999999), False))
    np.testing.assert_array_equal(last, image[8:, 18:])


def test_scales_are_a_list_or_a_range() -> None:
    """A range read as a list of two trains at the two ends only."""
    rng = np.random.default_rng(0)
    listed = {Scales.parse("0.5,0.75,2").draw(rng) for _ in range(50)}
    assert listed == {0.5, 0.75, 2.0}
    drawn = [Scales.parse("0.5-2").draw(rng) for _ in range(500)]
    assert 0.5 <= min(drawn) < 0.6 and 1.9 < max(drawn) <= 2 and len(set(drawn)) > 490
    for text in ("2-0.5", "0.5-1-2", "a", "0,1", "2,1", "1e9", ""):
        with pytest.raises(ValueError):
            Scales.parse(text)


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_do_not_depend_on_workers(frames, workers: int) -> None:
    """Augmentation that draws from a worker's own random state changes with the number of workers."""

    def batches(count: int) -> list[torch.Tensor]:
        samples = find_samples(frames, "train")
        sampler = EpochSampler(len(samples), 2, seed=3)
        how = {"class_uniform": 0.5, "color_strength": 1.0, "class_mix": 0.5}
        train_set = TrainSet(samples, (48, 64), 3, Scales.parse("0.5-2"), **how)
        loader = DataLoader(train_set, batch_sampler=sampler, num_workers=count, persistent_workers=count > 0)
        collected = []
        for sampler.epoch in (1, 2):
            collected += [torch.cat([part.flatten() for part in batch]) for batch in loader]
        return collected

    alone, shared = batches(0), batches(workers)
    assert len(alone) == 2 and all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert not torch.equal(alone[0], alone[1])  # another epoch, other crops


@pytest.fixture
def lopsided(tmp_path):
    """A frame that is road but for a person of 4x4 pixels and a few cars on the right."""
    label = np.full((128, 256), 7, np.uint8)
    label[100:104, 10:14] = 24
    label[:, 200:] = 26
    write_frame(tmp_path, "train", "a_000000_000000", np.zeros((128, 256, 3), np.uint8), label)
    return find_samples(tmp_path, "train")


def test_class_uniform_crops_show_the_rare_class(lopsided) -> None:
    """A centred crop that misses the pixel that it was centred on."""

    def seen(part: float) -> int:
        crops = (TrainSet(lopsided, (64, 64), seed, ONE, class_uniform=part)[1, 0][1] for seed in range(60))
        return sum(bool((crop == 11).any()) for crop in crops)

    assert seen(1.0) >= 12 > seen(0.0) + 3  # a third of the crops are centred on the person


def test_pasted_classes_bring_their_pixels_and_their_labels() -> None:
    """A label pasted without its picture, a class pasted in part, or ignored pixels pasted over labelled ones."""
    rng = np.random.default_rng(0)
    image, target = np.zeros((20, 30, 3), np.uint8), np.full((20, 30), 10, np.uint8)
    other = rng.choice(np.array([0, 1, 5, 11, 13, IGNORE_INDEX], np.uint8), (20, 30))
    paste_classes(image, target, np.full((20, 30, 3), 200, np.uint8), other, rng)
    pasted = image[..., 0] == 200
    classes = set(np.unique(other[pasted]).tolist())
    assert len(classes) == 3 and IGNORE_INDEX not in classes  # half of five, rounded up
    np.testing.assert_array_equal(pasted, np.isin(other, list(classes)))
    np.testing.assert_array_equal(image, np.where(pasted, 200, 0)[..., None].repeat(3, 2))
    np.testing.assert_array_equal(target, np.where(pasted, other, 10))
    paste_classes(image, target, 1 - image, np.full_like(other, IGNORE_INDEX), rng)  # nothing there to paste
    np.testing.assert_array_equal(target, np.where(pasted, other, 10))


def test_mixed_crops_show_classes_that_their_frame_lacks(frames) -> None:
    """A share that mixes nothing or everything; or one whose draws change the crops of a run without it."""
    samples = find_samples(frames, "train")

    def crops(mix: float) -> list[torch.Tensor]:
        return [TrainSet(samples, (48, 64), seed, ONE, class_mix=mix)[1, 0][0] for seed in range(40)]

    plain, half, all_of_them = crops(0.0), crops(0.5), crops(1.0)
    changed = [[not torch.equal(a, b) for a, b in zip(plain, mixed, strict=True)] for mixed in (half, all_of_them)]
    assert 10 <= sum(changed[0]) <= 30 and sum(changed[1]) >= 35


@given(st.integers(0, 10**6), st.integers(1, 30_000), st.floats(0.001, 1), st.floats(0, 1, exclude_max=True))
def test_bisection_finds_the_same_pixel_as_a_list_of_all(seed, length, share, part) -> None:
    """A pixel of another class, or one that is never drawn, because of an off-by-one between the halves."""
    mask = np.random.default_rng(seed).random(length) < share
    mask[length // 2] = True
    places = np.flatnonzero(mask)
    n = int(part * len(places))
    assert _nth_true(mask, n) == places[n]


def test_last_batch_of_one_is_left_out() -> None:
    """2975 frames in batches of two leave one over, on which batch normalisation cannot train."""
    sampler = EpochSampler(5, 2, seed=0)
    assert len(sampler) == 2 and [len(batch) for batch in sampler] == [2, 2]
    assert [len(batch) for batch in EpochSampler(6, 4, seed=0)] == [4, 2]
    seen = {index for batch in EpochSampler(6, 4, seed=0) for _, index in batch}
    assert seen == set(range(6))
    with refused("2"):
        EpochSampler(1, 2, seed=0)


def test_every_epoch_has_an_order_of_its_own() -> None:
    """Frames that meet in the same batches in every epoch, or in every run whatever its seed."""

    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(20, 4, seed)
        sampler.epoch = epoch
        return [index for batch in sampler for _, index in batch]

    orders = [order(0, 1), order(0, 2), order(1, 1)]
    assert all(sorted(one) == list(range(20)) for one in orders) and order(0, 1) == orders[0]
    assert len({tuple(one) for one in orders}) == 3


def test_colors_change_by_strength_and_by_picture() -> None:
    """Distortion that is the same for a whole batch, or runs although it was switched off."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (12, 8, 9, 3), np.uint8))

    def drawn(strength: float) -> torch.Tensor:
        return torch.stack([draw_colors(rng, strength) for _ in images])

    assert distort_colors(images, drawn(0.0)) is images
    changed = distort_colors(images[:1].expand(12, -1, -1, -1), drawn(1.0))
    assert changed.shape == images.shape and changed.dtype == torch.uint8
    assert len({tuple(picture.flatten().tolist()) for picture in changed}) > 6
    weak, strong = ((distort_colors(images, drawn(s)).float() - images.float()).abs().mean() for s in (0.05, 1.0))
    assert 0 < weak < strong


def test_each_color_change_is_torchvisions() -> None:
    """Factors that end up in the wrong operation: a picture that was to become brighter becomes grey."""
    images = torch.randint(0, 256, (4, 8, 9, 3), dtype=torch.uint8)
    rows = torch.tensor([[1.2, 1, 1, 0], [1, 0.6, 1, 0], [1, 1, 1.4, 0], [1, 1, 1, -0.03]])
    first = images.permute(0, 3, 1, 2)
    expected = [
        F.adjust_brightness(first[0], rows[0, 0].item()),
        F.adjust_contrast(first[1], rows[1, 1].item()),
        F.adjust_saturation(first[2], rows[2, 2].item()),
        F.adjust_hue(first[3], rows[3, 3].item()),
    ]
    assert torch.equal(distort_colors(images, rows), torch.stack(expected).permute(0, 2, 3, 1))
