"""Several processes that torchrun started: which one this is, waiting for all, telling all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["World", "joined"]

# the others wait while the slowest process finishes its last images
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class World:
    """The processes that share the work.

    Attributes:
        rank (int): Number of this process, from 0.
        size (int): Number of processes.
        local_rank (int): Number of this process on its machine, which chooses the GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process does the work that is done only once."""
        return self.rank == 0

    def wait(self) -> None:
        """Waits until all processes have called this."""
        if self.size > 1:
            dist.barrier()

    def from_leader(self, value: Any) -> Any:
        """Returns, in all processes, what process 0 passed."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def device(self, name: str) -> str:
        """The device of this process: with several processes each takes a GPU of its own."""
        if name == "cuda" and self.size > 1:
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return name


@contextmanager
def joined() -> Iterator[World]:
    """Joins the processes if torchrun started several.

    Only words are exchanged, never tensors. So the backend is gloo even if the models run on GPUs.

    Yields:
        The processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield World(dist.get_rank(), size, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
