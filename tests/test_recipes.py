"""Recipes as defaults, and what is refused before anything is trained."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from conftest import assert_user_error, run_script

from training.recipes import RECIPES, compare_settings, parse_args
from utils import UserError


def test_every_recipe_sets_every_flag() -> None:
    """A flag that one recipe forgets takes whatever argparse leaves there: None."""
    assert len({frozenset(recipe) for recipe in RECIPES.values()}) == 1
    for name, recipe in RECIPES.items():
        args = dataclasses.asdict(parse_args(["--recipe", name]))
        assert {flag: args[flag] for flag in recipe} == recipe
        assert None not in [args[flag] for flag in recipe]


def test_single_flags_override_the_recipe() -> None:
    """A recipe that wins over what was asked for."""
    args = parse_args(["--recipe", "paper", "--lr", "0.1", "--epochs", "7", "--decay_all"])
    assert (args.lr, args.epochs, args.decay_all, args.optimizer, args.power) == (0.1, 7, True, "sgd", 0.9)


def test_the_original_is_the_default() -> None:
    """The original's command line must go on to train the original's way."""
    args = parse_args([])
    assert (args.recipe, args.optimizer, args.lr, args.power, args.aux_weight) == ("original", "adam", 1e-3, 0, 0)


@pytest.mark.parametrize(
    "flags",
    [
        "--lr 0", "--lr nan", "--lr 100", "--weight_decay -1", "--epochs 0", "--scales 2-0.5", "--scales x",
        "--scales 0.01,1", "--aux_weight -0.4", "--ema 1", "--color_strength 2",
        "--class_uniform 1.5", "--input_scale 0", "--input_side -1", "--power -1",
        "--warmup_steps -1", "--input_scale 0.5 --crop_h 40", "--resume none.pth", "--init_weights none.pth",
    ],
)  # fmt: skip
def test_values_that_make_no_sense_name_the_flag(flags: str) -> None:
    """A learning rate of zero trains for a day and learns nothing."""
    with pytest.raises(UserError) as error:
        parse_args(flags.split())
    assert str(error.value).startswith(flags.split()[0]) and "\n" not in str(error.value)


def test_only_what_leaves_the_result_alone_may_change_in_a_resumed_run() -> None:
    """A new flag that decides about the result, and that a resumed run takes with another value in silence."""
    before = {**dataclasses.asdict(parse_args(["--recipe", "strong"])), "train_frames": 3, "processes": 1}
    before |= {"classes": ["a", "b"], "label_values": ["(0, 0)"]}
    free = set()
    for name in before:
        with contextlib.suppress(UserError):
            compare_settings("last.pth", before, {**before, name: "another"})
            free.add(name)
    first_only = {"recipe", "resume", "init_weights", "reset_head", "overwrite", "check"}
    places = {
        "data_path",
        "data_root",
        "output_dir",
        "cache",
        "device",
        "workers",
        "processes",
        "report",
        "save_step",
        "tensorboard",
    }
    assert free == first_only | places


def test_a_flag_that_a_run_did_not_know_yet_is_no_other_setting(capsys: pytest.CaptureFixture) -> None:
    """A resumed run that says "was None" of a flag that it does not use either."""
    before = {**dataclasses.asdict(parse_args([])), "train_frames": 3, "processes": 1}
    compare_settings("last.pth", {name: value for name, value in before.items() if name != "report"}, before)
    assert capsys.readouterr().out == ""


def test_unknown_names_list_the_choices(tmp_path) -> None:
    """A misspelt recipe must not train as another one."""
    for flags in (["--recipe", "best"], ["--loss", "dice"], ["--optimizer", "lion"]):
        result = run_script("train.py", *flags, cwd=tmp_path)
        assert result.returncode == 2 and "invalid choice" in result.stderr and "choose from" in result.stderr
    assert_user_error(run_script("train.py", "--lr", "0", cwd=tmp_path), "--lr", "0", "expected")
