"""Distributed training under torchrun: rank, number of processes and the collectives in use.

The environment variables of torchrun are read only here. In a single process, every function does nothing or returns
its argument.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils import UserError, choose_device

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How long a process waits for the others: far longer than a checkpoint takes on a slow disk.
TIMEOUT = datetime.timedelta(minutes=10)


@contextlib.contextmanager
def process_group(
    device_name: str, timeout: datetime.timedelta = TIMEOUT, advice: str = "resume the run with --resume"
) -> Iterator[torch.device]:
    """Joins the processes that torchrun started and yields this one's device; with CUDA, one GPU per process.

    Only the first process prints.

    Args:
        device_name: auto, cpu, cuda, cuda:N or mps.
        timeout: how long a process waits for the others.
        advice: what to do if another process has ended.

    Raises:
        UserError: the device does not exist, or not once for each process; or another process has ended.
    """
    if "WORLD_SIZE" not in os.environ:
        yield choose_device(device_name)
        return
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is set but {', '.join(missing)} not: start several processes with torchrun")
    device = _own_device(choose_device(device_name), int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the {os.environ['WORLD_SIZE']} processes did not find each other ({reason})") from None
    output = sys.stdout
    try:
        with open(os.devnull, "w", errors="replace") as nowhere:
            sys.stdout = output if is_first() else nowhere
            yield device
    except RuntimeError as error:
        # Not every lost peer has an exception type of its own: gloo raises plain RuntimeErrors.
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in ("gloo", "NCCL")):
            raise
        raise UserError(
            f"process {rank()} of {count()} cannot reach another one, which has ended or hangs: see its error above; "
            f"{advice}"
        ) from None
    finally:
        sys.stdout = output
        dist.destroy_process_group()


def _own_device(device: torch.device, local_rank: int) -> torch.device:
    if device.type != "cuda":
        return device
    if device.index is not None or local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine has no GPU of its own: found {torch.cuda.device_count()} and "
            f"--device {device}; start at most one process per GPU, with --device cuda"
        )
    own = torch.device("cuda", local_rank)
    torch.cuda.set_device(own)
    return own


def count() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def hide_bars() -> bool | None:
    """The value for tqdm's `disable`: bars only in the first process, and only on a terminal."""
    return None if is_first() else True


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Returns the sum of a tensor over the processes."""
    if count() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gather_to_first(own: object) -> list:
    """Returns, in the first process, the objects of all in the order of their ranks; elsewhere an empty list."""
    if count() == 1:
        return [own]
    gathered = [None] * count() if is_first() else None
    dist.gather_object(own, gathered)
    return gathered or []


def broadcast_from_first(module: nn.Module) -> None:
    """Copies the first process's weights and statistics to all others."""
    if count() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)
