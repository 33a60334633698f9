"""Several processes that train together: who this one is, and what they tell each other.

torchrun starts them and describes them in the environment, which is read here and nowhere else. Without it, every
function does what a single process needs: nothing.
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
# How long a process waits for the others. It is far more than a checkpoint on a slow disk takes.
PATIENCE = datetime.timedelta(minutes=10)


@contextlib.contextmanager
def process_group(device_name: str) -> Iterator[torch.device]:
    """Joins the processes that torchrun started, and gives the device that is this one's to use.

    The first process alone prints. CUDA processes get one GPU each.

    Args:
        device_name: auto, cpu, cuda, cuda:N or mps.

    Raises:
        UserError: there is no such device, or not one for each process; or another process has ended.
    """
    if "WORLD_SIZE" not in os.environ:
        yield choose_device(device_name)
        return
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is set, {', '.join(missing)} not; start several processes with torchrun")
    device = _own_device(choose_device(device_name), int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the {os.environ['WORLD_SIZE']} processes did not find each other ({reason})") from None
    output = sys.stdout
    try:
        with open(os.devnull, "w") as nowhere:
            sys.stdout = output if is_first() else nowhere
            yield device
    except RuntimeError as error:
        # Not every loss of a peer has a type of its own: gloo raises plain RuntimeErrors.
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in ("gloo", "NCCL")):
            raise
        raise UserError(
            f"process {rank()} of {count()} cannot reach another one, which has ended or hangs: it says why above; "
            "start the run again with --resume"
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
            f"--device {device}; start at most one process for each GPU, with --device cuda"
        )
    own = torch.device("cuda", local_rank)
    torch.cuda.set_device(own)
    return own


def count() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def hide_bars() -> bool | None:
    """What tqdm's `disable` has to be: no bars but the first process's, and those on a terminal only."""
    return None if is_first() else True


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Returns the sum of the processes' tensors, which stay as they are."""
    if count() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gather_to_first(own: object) -> list:
    """Returns what every process gave, in the order of the processes; for all but the first, nothing.

    Args:
        own: anything that can be pickled.
    """
    if count() == 1:
        return [own]
    gathered = [None] * count() if is_first() else None
    dist.gather_object(own, gathered)
    return gathered or []


def broadcast_from_first(module: nn.Module) -> None:
    """Gives every process the first one's weights and statistics."""
    if count() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def wait_for_all() -> None:
    """Returns once every process has come here."""
    if count() > 1:
        dist.barrier()
