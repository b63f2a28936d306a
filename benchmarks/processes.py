"""One of several processes, which explains its share of the images.

:mod:`benchmarks.scaling` starts them through torchrun. Process 0 prints the seconds of each round,
from the moment when all processes are ready until all are done.
"""

from __future__ import annotations

import json
import time
import warnings
from functools import partial
from typing import Annotated

import torch
import torch.distributed as distributed
import typer

from benchmarks.cases import build


def main(
    network: Annotated[str, typer.Option()],
    layer: Annotated[str, typer.Option()],
    clusters: Annotated[int, typer.Option()],
    images: Annotated[int, typer.Option()],
    rounds: Annotated[int, typer.Option()],
) -> None:
    """Joins the other processes, explains, and measures the time."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    case = build(network, layer, 1)
    cam = case.explainer(n_clusters=clusters)
    explain = partial(cam.attribute, case.inputs, target=case.target)
    explain()  # the first call warms up and is not measured
    seconds = []
    for _ in range(rounds):
        distributed.barrier()
        begin = time.perf_counter()
        for _ in range(rank, images, size):
            explain()
        distributed.barrier()
        seconds.append(time.perf_counter() - begin)
    if rank == 0:
        print(json.dumps(seconds), flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
