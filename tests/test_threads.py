"""How many threads a prediction takes when something else keeps a core busy."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest
import torch

from inference.backends import torch_network
from inference.threads import ThreadChoice, Threads
from model import FastSCNN


def use(choice: ThreadChoice, seconds: dict[int, float], calls: int) -> list[int]:
    """Makes calls that take these seconds by number of threads; returns the numbers that were chosen."""
    counts = []
    for _ in range(calls):
        counts.append(choice.choose())
        choice.record(counts[-1], seconds[counts[-1]])
    return counts


IDLE, LOADED = {2: 0.1, 1: 0.16}, {2: 0.4, 1: 0.17}


def test_idle_all_threads_work_after_one_trial():
    """An idle machine is as fast as without a choice: one trial of two calls, then never again."""
    counts = use(ThreadChoice(2), IDLE, 200)
    assert counts.count(1) == 2
    assert set(counts[6:]) == {2}


def test_under_load_fewer_threads_work_from_the_third_prediction_on():
    """With a busy process, two slow predictions are enough to change over; trying again costs at most a tenth."""
    choice = ThreadChoice(2)
    use(choice, IDLE, 10)
    counts = use(choice, LOADED, 200)
    assert counts[:3] == [2, 2, 1]
    assert sum(LOADED[count] for count in counts) < 1.15 * 200 * LOADED[1]


def test_when_the_load_ends_all_threads_work_again():
    """A machine that is idle again is found out, within the time that trying costs ten times."""
    choice = ThreadChoice(2)
    use(choice, IDLE, 10)
    use(choice, LOADED, 50)
    counts = use(choice, IDLE, 60)
    assert set(counts[-30:]) == {2}


def test_a_load_from_the_start_is_found():
    """A predictor that opens on a busy machine has no idle time to compare with."""
    counts = use(ThreadChoice(2), LOADED, 40)
    assert counts[6:].count(1) > 30


def test_a_single_slow_picture_changes_nothing():
    """A hiccup of the machine is no load."""
    choice = ThreadChoice(2)
    use(choice, IDLE, 10)
    choice.record(choice.choose(), 0.3)
    assert set(use(choice, IDLE, 20)) == {2}


def test_many_threads_are_never_reduced_to_one():
    """On 16 cores a trial may not take sixteen times as long."""
    seconds = {16: 0.1, 15: 0.11, 8: 0.17}
    assert set(use(ThreadChoice(16), seconds, 50)) == {16, 15, 8}


@pytest.mark.parametrize("error", [None, RuntimeError("no memory")])
def test_the_callers_number_of_threads_is_back_after_a_prediction(error):
    """A program that embeds the predictor keeps its number of threads, after errors too."""
    threads, before = Threads(), torch.get_num_threads()
    torch.set_num_threads(2)
    seen = []
    try:
        with pytest.raises(RuntimeError) if error else contextlib.nullcontext(), threads.prediction():
            for _ in range(6):
                with threads.part((1, 64, 96, 3)):
                    seen.append(torch.get_num_threads())
                    if error and len(seen) == 5:
                        raise error
        assert torch.get_num_threads() == 2
        assert seen == [2, 2, 2, 2, 1, 1][: len(seen)]
        with threads.part((1, 64, 96, 3)):  # outside of a prediction nothing is chosen
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_follows_the_strips_takes_the_number_that_was_fastest():
    """The label head and the small maps do not go back to threads that the strips found slow."""
    threads, before = Threads(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(2):
            with threads.prediction(), threads.prediction():
                for _ in range(8):
                    with threads.part((1, 64, 96, 3)):
                        time.sleep(0.02 * torch.get_num_threads())
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


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
