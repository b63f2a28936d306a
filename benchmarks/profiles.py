"""Where the time of a method goes: its operations, and on a GPU its launches and its waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import synchronize

__all__ = ["profiled"]

_LINES = 12


def profiled(run: Callable[[], object]) -> list[dict[str, Any]]:
    """The operations that take the most time themselves, on the device where there is one.

    Args:
        run (callable): The method. It must have run before.

    Returns:
        *list*: The dearest operations, then what stands for launches and waits, each with `name`,
        `calls`, and the milliseconds `cpu` and `device`.

    Example::

        >>> found = profiled(lambda: torch.ones(3).add(1))
        >>> "aten::add" in [line["name"] for line in found], found[0]["device"]
        (True, 0.0)
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as found:
        run()
        synchronize()
    lines = [
        {
            "name": event.key[:80],
            "calls": event.count,
            "cpu": event.self_cpu_time_total / 1e3,
            "device": event.self_device_time_total / 1e3,
        }
        for event in found.key_averages()
    ]
    lines.sort(key=lambda line: (line["device"], line["cpu"]), reverse=True)
    runtime = [line for line in lines if line["name"].startswith("cuda")]
    others = [line for line in lines if line not in runtime]
    return others[:_LINES] + runtime[:_LINES]
