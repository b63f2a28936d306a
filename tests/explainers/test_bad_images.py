"""One bad image in a batch does not fail the others, with any clusterer and any method."""

import numpy as np
import pytest
import torch
from sklearn import cluster as sk
from torch import nn

from captum_clustered import ClusteredLayerAblation, LayerAblationCam, LayerEGradCam, LayerGroupCam
from captum_clustered.adaptive import Adaptive
from captum_clustered.clustering import CLUSTERERS, Agglomerative, RandomGroups
from captum_clustered.explainers.grad_cam import GradCam, LayerHiResCam
from captum_clustered.explainers.opti_cam import ClusteredLayerOptimization
from captum_clustered.explainers.score_cam import ClusteredLayerScore, LayerScoreCam
from captum_clustered.shapley import Shapley


def _own(features):
    def fit(rows):
        return sk.AgglomerativeClustering(3).fit_predict(np.asarray(rows))

    return torch.stack([torch.from_numpy(fit(rows)) for rows in features])


WAYS = {
    **{name: (ClusteredLayerAblation, {"clusterer": name, "n_clusters": 3}) for name in CLUSTERERS},
    "auto": (ClusteredLayerAblation, {"clusterer": Agglomerative("auto")}),
    "like": (ClusteredLayerAblation, {"clusterer": RandomGroups(like=Agglomerative(3))}),
    "labels": (ClusteredLayerAblation, {"clusterer": torch.tensor([0, 0, 1, 1, 2, 2, -1, 3])}),
    "scikit-learn": (ClusteredLayerAblation, {"clusterer": sk.KMeans(3, n_init=1)}),
    "dbscan": (ClusteredLayerAblation, {"clusterer": sk.DBSCAN()}),
    "callable": (ClusteredLayerAblation, {"clusterer": _own}),
    "adaptive": (ClusteredLayerAblation, {"clusterer": Adaptive(8)}),
    "shapley": (ClusteredLayerAblation, {"n_clusters": 3, "weighting": Shapley(4)}),
    "ablation-cam": (LayerAblationCam, {}),
    "score-cam": (LayerScoreCam, {}),
    "clustered score-cam": (ClusteredLayerScore, {"n_clusters": 3}),
    "opti-cam": (ClusteredLayerOptimization, {"n_clusters": 3}),
    "group-cam": (LayerGroupCam, {"n_clusters": 3}),
    "egrad-cam": (LayerEGradCam, {}),
    "grad-cam": (GradCam, {}),
    "hirescam": (LayerHiResCam, {}),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_the_others_are_explained_as_if_they_were_alone(way, rectified, value):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU() if rectified else nn.Identity(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    method, settings = WAYS[way]
    cam = method(model, model[1], **settings)
    x = torch.rand(3, 3, 10, 10)
    x[1, :, 4, 4] = value
    signed = {"relu_attributions": False} if isinstance(cam, ClusteredLayerAblation) else {}
    with pytest.warns(UserWarning, match=r"heat maps of examples \[1\] are not finite"):
        heat = cam.attribute(x, target=1, **signed)
    good = cam.attribute(x[[0, 2]], target=1, **signed)
    torch.testing.assert_close(heat[[0, 2]], good)
    assert heat[[0, 2]].count_nonzero()
    assert not heat[1].isfinite().all()


@pytest.mark.parametrize("clusterer", ["kmeans", "agglomerative", Adaptive(8)])
def test_a_layer_whose_maps_are_all_dead_gives_zeros(clusterer):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    model[0].bias.data.fill_(-100)
    cam = ClusteredLayerAblation(model, model[1], clusterer=clusterer, n_clusters=3)
    assert cam.attribute(torch.rand(2, 3, 8, 8), target=1).count_nonzero() == 0
