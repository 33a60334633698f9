"""How many threads a prediction takes beside other busy processes."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from inference.backends import torch_network
from inference.folding import prepare_for_cpu

from inference import label_head
from inference.threads import LEAST, SIZES_KEPT, Threads, half_of_the_threads
from model import FastSCNN


@pytest.fixture
def four_threads():
    """Four threads, whatever the machine has; afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


USUAL = [0.003] * 10  # seconds that the parts of a picture take


def counts(threads: Threads, seconds: list[float]) -> list[int]:
    """Returns the number of threads of each part of a picture whose parts take these seconds."""
    found = []
    with threads.picture((1,)):
        for part, taken in enumerate(seconds):
            found.append(torch.get_num_threads())
            threads.took(part, taken)
    return found


def test_idle_pictures_keep_all_threads(four_threads):
    """An idle machine is as fast as without a watch, and so is one whose parts vary by half, or with one hiccup."""
    threads = Threads()
    assert counts(threads, USUAL) == [4] * 10
    assert counts(threads, [0.0045] * 10) == [4] * 10
    assert counts(threads, [*USUAL[:4], 0.003 + 0.9 * LEAST, *USUAL[5:]]) == [4] * 10


def test_a_picture_that_waits_goes_on_with_fewer_threads(four_threads):
    """Beside a busy process a picture takes one thread less as soon as it has waited, then half of them, then one."""
    threads = Threads()
    counts(threads, USUAL)
    assert counts(threads, [0.02] * 10) == [4, 3, 1, 1, 1, 1, 1, 1, 1, 1]


def test_fewer_threads_take_longer_without_waiting(four_threads):
    """What a part takes with one thread less is expected to be longer: that alone takes no more threads away."""
    threads = Threads()
    counts(threads, USUAL)
    assert counts(threads, [0.02, *[0.0045] * 9]) == [4, *[3] * 9]


def test_the_next_picture_begins_with_all_threads(four_threads):
    """A load that has ended is not remembered, and slow pictures do not become the usual ones."""
    threads = Threads()
    counts(threads, USUAL)
    for _ in range(30):
        counts(threads, [0.02] * 10)
    assert counts(threads, USUAL) == [4] * 10
    assert counts(threads, [0.02] * 10)[1] == 3


def test_a_processor_that_became_slower_is_not_taken_for_a_load(four_threads):
    """A laptop that has warmed up takes three times as long for good: after a while all threads work again."""
    threads = Threads()
    counts(threads, USUAL)
    slow = [0.009] * 10
    assert min(counts(threads, slow)) < 4
    for _ in range(200):
        counts(threads, slow)
    assert counts(threads, slow) == [4] * 10


def test_short_parts_are_looked_at_together(four_threads):
    """At small sizes a part takes a tenth of a slice of the scheduler: several late ones together are a load."""
    threads = Threads()
    counts(threads, [0.0005] * 40)
    assert counts(threads, [0.0015] * 40)[-1] < 4


@pytest.mark.parametrize("error", [None, RuntimeError("no memory")])
def test_the_callers_number_of_threads_is_back_after_a_picture(error, four_threads):
    """A program that embeds the predictor keeps its number of threads, after errors too."""
    for block in (Threads().picture((1,)), half_of_the_threads()):
        with pytest.raises(RuntimeError) if error else contextlib.nullcontext(), block:
            torch.set_num_threads(1)
            if error:
                raise error
        assert torch.get_num_threads() == 4


def test_the_label_head_leaves_cores_to_others(four_threads, monkeypatch):
    """With all threads, the label head of a small picture takes twenty times as long beside a busy process."""
    network = torch_network(FastSCNN().eval(), torch.device("cpu"), "fp32", False)
    seen = []
    whole = label_head._labels_of_image
    monkeypatch.setattr(
        label_head, "_labels_of_image", lambda *image: seen.append(torch.get_num_threads()) or whole(*image)
    )
    network.labels(torch.zeros(1, 64, 96, 3, dtype=torch.uint8))
    assert seen == [2]
    assert torch.get_num_threads() == 4


def test_a_thread_that_begins_meanwhile_has_all_threads(four_threads):
    """A server's thread that is born within a picture of another would compute with one thread for ever."""
    threads = Threads()
    counts(threads, USUAL)
    with threads.picture((1,)), ThreadPoolExecutor(1) as other:
        for part in range(3):
            threads.took(part, 0.02)
        assert torch.get_num_threads() == 1
        assert other.submit(torch.get_num_threads).result() == 4
        assert other.submit(counts, threads, USUAL).result() == [4] * 10
        assert torch.get_num_threads() == 1


def test_pictures_of_ever_new_sizes_take_no_more_memory(four_threads):
    """A folder of a million sizes: what is known of each would fill the memory."""
    threads = Threads()
    for size in range(2 * SIZES_KEPT):
        with threads.picture((1, size)):
            threads.took("layer", 0.01)
    assert list(threads.usual) == [(1, size) for size in range(SIZES_KEPT, 2 * SIZES_KEPT)]


def test_outside_of_a_picture_nothing_is_watched(four_threads):
    """Layers that are called by themselves never change the caller's threads."""
    threads = Threads()
    threads.tick("layer")
    assert threads.usual == {}
    assert torch.get_num_threads() == 4


def test_labels_do_not_depend_on_the_number_of_threads():
    """The same picture has the same logits to the last bit, idle and under load."""
    torch.manual_seed(0)
    network = torch_network(FastSCNN().eval(), torch.device("cpu"), "fp32", False)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 160, 224, 3), np.uint8))
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(network.run(images))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("compiled", [False, True])
def test_the_network_is_watched_in_all_its_parts(compiled, four_threads):
    """A load that begins in the middle of a picture is found: all of it is timed, in parts."""
    model = FastSCNN().eval()
    threads = prepare_for_cpu(model, strips=not compiled)
    logits = torch.compile(model.logits, backend="eager", fullgraph=True) if compiled else model.logits
    with threads.picture((1, 64, 96, 3)), torch.inference_mode():
        logits(torch.zeros(1, 3, 64, 96))
    assert [len(parts) for parts in threads.usual.values()] == [9 if compiled else 8]
    assert torch.get_num_threads() == 4
