"""Time of `ClusteredLayerAblation` against Captum's own classes, in paired rounds.

Run with `python -m benchmarks.core`. ResNet-50 with random weights, 224x224, `layer4`, 64 groups.
The methods take turns (A B C A B C ...), so that each round sees the same machine; a ratio is the
median of the rounds' ratios. Before any time counts, the drops of both engines are compared.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable

import captum
import torch
import torchvision
from captum.attr import LayerFeatureAblation, LayerGradCam

from captum_clustered import ClusteredLayerAblation

CLASSES = 3
GROUPS = 64


def rounds(methods: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each method, all methods in turn, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for repeat in range(repeats + 1):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(seconds: dict[str, list[float]], base: str) -> None:
    """Prints each method's median time, and its ratio to `base` with the quartiles."""
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds[base], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        print(
            f"  {name:<44} {statistics.median(times) * 1e3:9.1f} ms"
            f"   x {middle:7.3f}   [{low:.3f}, {high:.3f}]"
        )


def main() -> None:
    """Checks the answers, then times the methods at batch 1 and 8."""
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, captum "
        f"{captum.__version__}, {torch.get_num_threads()} threads, {platform.processor()}"
    )
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    layer = model.layer4
    grad_cam = LayerGradCam(model, layer)
    clustered = ClusteredLayerAblation(model, layer, n_clusters=GROUPS)
    single = ClusteredLayerAblation(model, layer, clusterer="every-map")
    reference = LayerFeatureAblation(model, layer)

    for batch, repeats in ((1, 15), (8, 7)):
        x = torch.rand(batch, 3, 224, 224)
        result = clustered.explain(x, target=CLASSES)
        given = ClusteredLayerAblation(model, layer, clusterer=result.labels)
        methods: dict[str, Callable[[], object]] = {
            "captum LayerGradCam": lambda x=x: grad_cam.attribute(
                x, target=CLASSES, relu_attributions=True
            ),
            "ClusteredLayerAblation K=64, k-means": lambda x=x: clustered.attribute(
                x, target=CLASSES
            ),
            "ClusteredLayerAblation K=64, labels given": lambda x=x, c=given: c.attribute(
                x, target=CLASSES
            ),
            "ClusteredLayerAblation, every map": lambda x=x: single.attribute(x, target=CLASSES),
        }
        print(f"batch {batch}, median of {repeats} rounds, ratio to LayerGradCam")
        report(rounds(methods, repeats), "captum LayerGradCam")

    x = torch.rand(1, 3, 224, 224)
    result = clustered.explain(x, target=CLASSES)
    mask = result.labels.view(1, -1, 1, 1)
    methods = {
        "ClusteredLayerAblation K=64, k-means": lambda: clustered.attribute(x, target=CLASSES),
        "captum LayerFeatureAblation, same groups": lambda: reference.attribute(
            x, target=CLASSES, layer_mask=mask
        ),
    }
    theirs = methods["captum LayerFeatureAblation, same groups"]()[0, :, 0, 0]
    ours = (result.scores[:, None] - result.ablated_scores)[0, result.labels[0].clamp(min=0)]
    error = ((ours - theirs).abs() * (result.labels[0] >= 0)).max() / theirs.abs().max()
    print(f"largest difference of the drops, relative to the largest drop: {error:.1e}")
    if error > 1e-4:
        sys.exit("The two engines disagree; their times mean nothing.")
    report(rounds(methods, 3), "ClusteredLayerAblation K=64, k-means")


if __name__ == "__main__":
    main()
