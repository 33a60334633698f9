"""Data sets by description."""

from __future__ import annotations

import argparse

from dataset import DataSet, cityscapes_folder, default_data_path
from utils import UserError


def open_data(path: str, root: str | None = None) -> DataSet:
    """Opens the data set that --data_path and --data_root name."""
    if root is not None:
        raise UserError("--data_root was given without a .yaml file")
    return cityscapes_folder(path)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name a data set."""
    default = default_data_path()
    parser.add_argument(
        "--data_path", default=default, help="folder in Cityscapes layout, or a .yaml file that describes a data set"
    )
    parser.add_argument(
        "--data_root", metavar="DIR", help="with a .yaml file: the folder that its paths are relative to"
    )
