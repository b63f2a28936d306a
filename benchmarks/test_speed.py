"""The cases of `python -m benchmarks runtime` under pytest-benchmark: `pytest benchmarks`.

`--benchmark-compare`, `--benchmark-json` and the like work as always; ``BENCHMARK_CASES`` names the
cases, as ``resnet50/layer4/1``, separated by commas.
"""

from __future__ import annotations

import os
import warnings

import pytest

from benchmarks.cases import Case, build
from benchmarks.methods import TOLERANCE, methods_of
from benchmarks.timing import FEWEST, counted, synchronize

_CASES = os.environ.get("BENCHMARK_CASES", "resnet50/layer4/1,resnet50/layer4/8").split(",")
_METHODS = (
    "forward pass",
    "kmeans K=16",
    "kmeans K=64",
    "kmeans K=256",
    "labels given",
    "LayerAblationCam",
    "captum LayerGradCam",
    "torchcam GradCAM",
    "pytorch-grad-cam GradCAM",
)

pytest.importorskip("pytest_benchmark")


@pytest.fixture(scope="module", params=_CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """A network with inputs and a layer."""
    network, layer, batch = request.param.split("/")
    return build(network, layer, int(batch))


@pytest.mark.filterwarnings("ignore")  # other libraries warn of what they do not need
@pytest.mark.parametrize("name", _METHODS)
def test_speed(benchmark, case: Case, name: str) -> None:
    """Times a method after a check of its result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [method for method in methods_of(case, slow=False) if name in method.name]
    if not found:
        pytest.skip("the layer has fewer maps")
    method = found[0]
    with counted(case.model, case.inputs) as counts:
        result = method.run()  # warms up, too
    if method.error is not None and method.error(result) > TOLERANCE:
        pytest.skip(f"not the same as {method.same_as}")

    def run() -> None:
        method.run()
        synchronize()

    benchmark.extra_info.update(
        first=counts.first, last=counts.last, library=method.library, part=str(method.part)
    )
    benchmark.pedantic(run, rounds=FEWEST, warmup_rounds=0)
