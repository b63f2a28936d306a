"""What one of several processes does: it explains its share of the images.

Started by :mod:`benchmarks.scaling` through torchrun; process 0 prints the seconds of each round,
from the moment in which all processes were ready until all were done.
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
from captum_clustered import ClusteredLayerAblation


def main(
    network: Annotated[str, typer.Option()],
    layer: Annotated[str, typer.Option()],
    clusters: Annotated[int, typer.Option()],
    images: Annotated[int, typer.Option()],
    rounds: Annotated[int, typer.Option()],
) -> None:
    """Joins the others and works."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    case = build(network, layer, 1)
    cam = ClusteredLayerAblation(
        case.model,
        case.layer,
        n_clusters=clusters,
        channel_dim=case.found.channel_dim,
        reshape_transform=case.found.reshape_transform,
    )
    explain = partial(cam.attribute, case.inputs, target=case.target)
    explain()  # what is tuned in a first call is not measured
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
