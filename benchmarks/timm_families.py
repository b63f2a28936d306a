"""One network of each timm family: is the fast path taken at the last maps, and is it right?

Run with `python -m benchmarks.timm_families [--out FILE] [FAMILY ...]`. Weights are random, in
float64; the reference is the full path, which runs the whole model for each group.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import _registry

from captum_clustered import ClusteredLayerAblation
from captum_clustered.layers import find_target_layer

SMALL = (
    "atto",
    "femto",
    "pico",
    "nano",
    "tiny",
    "_xxs",
    "_xs",
    "micro",
    "mini",
    "small",
    "_s0",
    "b0",
    "18",
)
TOLERANCE = 1e-6


def families() -> dict[str, str]:
    """For each module of timm, the name of a small network in it."""
    chosen = {}
    for module in sorted(_registry._module_to_models):
        names = timm.list_models(module=module)
        ranked = sorted(
            names, key=lambda name: (not any(s in name for s in SMALL), len(name), name)
        )
        if ranked:
            chosen[module] = ranked[0]
    return chosen


def _is_small(name: str) -> bool:
    return any(part in name for part in SMALL)


def try_family(name: str) -> dict[str, Any]:
    """Explains a random image by both paths and compares the drops."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=7).double().eval()
    model.requires_grad_(False)
    for parameter_name, parameter in model.named_parameters():
        # heads and scales that start at zero would hide every difference
        if not parameter.any() or "layer_scale" in parameter_name or "gamma" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.5)
    size = model.default_cfg.get("input_size", (3, 224, 224))
    x = torch.rand(2, *size, dtype=torch.float64)
    found = find_target_layer(model, x)
    drops = {}
    row: dict[str, Any] = {"network": name, "layer": found.name}
    for replay in ("auto", "full"):
        cam = ClusteredLayerAblation(
            model,
            found.layer,
            n_clusters=3,
            channel_dim=found.channel_dim,
            reshape_transform=found.reshape_transform,
            replay=replay,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = cam.explain(x, target=[1, 2], attribute_to_layer_input=found.at_input)
        drops[replay] = result.scores[:, None] - result.ablated_scores
        if replay == "auto":
            row |= {"maps": list(result.activations.shape[1:]), "replay": result.replay}
            row["reason"] = result.replay_reason
    largest = drops["full"].abs().max()
    row["error"] = float((drops["auto"] - drops["full"]).abs().max() / largest)
    row["equal"] = bool(row["error"] <= TOLERANCE)
    return row


def main() -> None:
    """Goes through the families, prints a line for each, and writes all rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="modules of timm (default: all)")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    arguments = parser.parse_args()
    rows = []
    for module, name in families().items():
        if arguments.families and module not in arguments.families:
            continue
        start = time.perf_counter()
        try:
            row = try_family(name)
        except Exception as error:  # a family that fails is a result, too
            row = {"network": name, "failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        row = {"family": module, **row, "seconds": round(time.perf_counter() - start, 1)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    fast = [row for row in rows if row.get("replay") == "suffix" and row["equal"]]
    right = [row for row in rows if row.get("equal")]
    print(f"{len(rows)} families: {len(fast)} fast and equal, {len(right)} equal")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
