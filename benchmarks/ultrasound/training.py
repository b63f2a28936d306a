"""Cross-validation of a network on regions: resumable, with a hold-out nobody saw.

What a network's lower part makes of each picture is computed once and kept; only what lies behind
it is trained. A fold's own part tests it; of the others, some cases say when to stop.

Masked pictures are foreign to a network that saw none, and metrics that mask suffer from it. So a
network can be trained with random masks among its pictures, filled with black as the metrics fill
(the idea of Zheng et al., "F-Fidelity", ICLR 2025).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.files import differing, write_json
from benchmarks.ultrasound.networks import NETWORKS, Network, TNet
from benchmarks.ultrasound.splits import HOLDOUT, Region, split, stopping
from captum_clustered._checks import check_int
from captum_clustered._files import whole
from captum_clustered.statistics import Interval, rate_interval

__all__ = ["Training", "auc_interval", "checkpoint", "record_of", "scores_of", "train"]

_BATCH = 16  # pictures that pass the lower part together
_RESAMPLES = 2000  # draws of the interval of the area under the ROC curve


@dataclass(frozen=True)
class Training:
    """What can be chosen.

    Attributes:
        network (str): A key of :data:`benchmarks.ultrasound.networks.NETWORKS`.
        folds (int): Number of folds.
        holdout (float): Share of the regions that no fold sees. Neither counts where the data have
            folds of their own.
        pictures (int): Variants of each region, the first as it is; the others are flipped, turned,
            cut and lit at random.
        masks (bool): Whether half of the others are hidden in part.
        epochs (int): The most passes over the training part.
        patience (int): Passes without a lower loss on the stopping part.
        batch_size (int): Regions to a step.
        learning_rate (float): Of AdamW.
        weight_decay (float): Of AdamW.
        pretrained (bool): Whether the lower part has ImageNet's weights.
        seed (int): Of everything drawn.
    """

    network: str = "lite0"
    folds: int = 10
    holdout: float = 1 / 6
    pictures: int = 8
    masks: bool = False
    epochs: int = 15
    patience: int = 4
    batch_size: int = 32
    learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    pretrained: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(
                f"`network` must be one of {', '.join(NETWORKS)}; got {self.network!r}."
            )
        check_int("folds", self.folds, 2)
        for name in ("pictures", "epochs", "patience", "batch_size"):
            check_int(name, getattr(self, name), 1)


def train(
    regions: Sequence[Region],
    out: Path,
    settings: Training,
    say: Callable[[str], object] = print,
    tests: Mapping[str, Sequence[Region]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Trains all folds, or those that an earlier call did not finish.

    Args:
        regions (sequence of Region): All regions; those without a label are not used.
        out (Path): Folder for ``fold0.safetensors``…, ``fold0.json``… and ``training.json``. What
            the lower part gives is kept beside it, for all networks that have the same one.
        settings (Training): The choices.
        say (callable, optional): Told in a line what goes on. Default: print
        tests (mapping, optional): Regions of other data sets by name, on which every fold's network
            is tested. Default: none

    Returns:
        *dict*: What ``training.json`` says: settings, the folds with what they scored, their rates
        with intervals, and which is best.

    Raises:
        ValueError: If `out` has folds of other settings or regions, or there are too few cases.
    """
    parts = split(regions, settings.folds, settings.holdout, settings.seed)
    known = [region for region in regions if region.name in parts]
    folds = 1 + max(parts.values())
    out.mkdir(parents=True, exist_ok=True)
    _same_settings(out, settings, known, parts)
    network = NETWORKS[settings.network]
    missing = [k for k in range(folds) if not (out / f"fold{k}.json").exists()]
    if missing:
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            model = network.build(settings.pretrained)
        say(f"{out.name}: {len(known)} regions, folds {', '.join(map(str, missing))}")
        pictures = _kept(model, network, known, settings, out, "")
        for fold in missing:
            trained = copy.deepcopy(model)
            row = _fold(trained, pictures, known, parts, fold, settings)
            _save(trained.state_dict(), checkpoint(out, fold))
            write_json(out / f"fold{fold}.json", row)  # last: it says that the fold is done
            say(f"fold {fold}: {row['epochs']} epochs, {row['seconds']:.0f} s")
    rows = [json.loads((out / f"fold{k}.json").read_text()) for k in range(folds)]
    tested = {name: _tested(name, own, out, settings, folds) for name, own in tests.items()}
    found = _summary(known, parts, rows, settings, tests, tested)
    write_json(out / "training.json", found)
    return found


def checkpoint(out: Path, fold: int) -> Path:
    """The file of a fold's network, the whole of it."""
    return out / f"fold{fold}.safetensors"


def record_of(out: Path) -> dict[str, Any]:
    """What ``training.json`` says.

    Raises:
        ValueError: If there was no training, or it did not finish.
    """
    if not (out / "training.json").is_file():
        raise ValueError(
            f"`out` must have a finished training; {out} has none. Run "
            "python -m benchmarks.ultrasound train first."
        )
    found: dict[str, Any] = json.loads((out / "training.json").read_text(encoding="utf-8"))
    return found


# --- one fold -------------------------------------------------------------------------------------


def _fold(
    model: TNet,
    pictures: Tensor,
    regions: Sequence[Region],
    parts: dict[str, int],
    fold: int,
    settings: Training,
) -> dict[str, Any]:
    begin = time.perf_counter()
    generator = torch.Generator().manual_seed(1000 * settings.seed + fold)
    labels = torch.tensor([region.label for region in regions])
    part = torch.tensor([parts[region.name] for region in regions])
    others = ((part != HOLDOUT) & (part != fold)).nonzero().flatten()
    teaching, telling = stopping([regions[i] for i in others.tolist()], seed=settings.seed)
    learns, stops = others[teaching], others[telling]
    weights = len(learns) / (2 * torch.bincount(labels[learns], minlength=2)).float()
    trained = [*model.features.parameters(), *model.head.parameters()]
    optimizer = torch.optim.AdamW(
        trained, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    best, kept, since, losses = math.inf, {}, 0, []
    for _ in range(settings.epochs):
        model.train()
        with torch.random.fork_rng():  # dropout draws from the global generator
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            for batch in learns[torch.randperm(len(learns), generator=generator)].split(
                settings.batch_size
            ):
                variant = torch.randint(pictures.shape[1], (len(batch),), generator=generator)
                scores = model.head(model.features(pictures[batch, variant].float()))
                loss = F.cross_entropy(scores, labels[batch], weights)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        scores = _scores(model, pictures[stops, 0])
        losses.append(float(F.cross_entropy(scores, labels[stops], weights)))
        since += 1
        if losses[-1] < best:
            best, since = losses[-1], 0
            kept = {name: value.clone() for name, value in _learnt(model).items()}
        if since >= settings.patience:
            break
    model.load_state_dict({**_fixed(model), **kept})
    judged = ((part == fold) | (part == HOLDOUT)).nonzero().flatten()
    return {
        "fold": fold,
        "epochs": len(losses),
        "losses": losses,
        "loss": best,
        "seconds": time.perf_counter() - begin,
        "malignant": _malignant(model, pictures[judged], [regions[i] for i in judged.tolist()]),
    }


def _tested(
    name: str, regions: Sequence[Region], out: Path, settings: Training, folds: int
) -> list[dict[str, float]]:
    """What each fold's network says of another data set; kept until that set changes."""
    from safetensors.torch import load_file

    path, digest = out / f"test-{name}.json", _digest(regions)
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["data"] == digest and len(kept["folds"]) == folds:
            return list(kept["folds"])
    network = NETWORKS[settings.network]
    with torch.random.fork_rng():
        model = network.build(False)
    model.load_state_dict(load_file(checkpoint(out, 0)))
    plain = replace(settings, pictures=1, masks=False)
    pictures = _kept(model, network, regions, plain, out, name)
    found = []
    for fold in range(folds):
        model.load_state_dict(load_file(checkpoint(out, fold)))
        found.append(_malignant(model, pictures, regions))
    write_json(path, {"data": digest, "folds": found})
    return found


def _malignant(model: TNet, pictures: Tensor, regions: Sequence[Region]) -> dict[str, float]:
    """The probability of a malignant lesion for each region by its name, as it is."""
    found = _scores(model, pictures[:, 0]).softmax(1)[:, 1].tolist()
    return {region.name: p for region, p in zip(regions, found, strict=True)}


@torch.no_grad()
def _scores(model: TNet, pictures: Tensor) -> Tensor:
    model.eval()
    return torch.cat([model.head(model.features(part.float())) for part in pictures.split(_BATCH)])


def _learnt(model: TNet) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if not k.startswith("lower.")}


def _fixed(model: TNet) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if k.startswith("lower.")}


# --- pictures -------------------------------------------------------------------------------------


def _kept(
    model: TNet,
    network: Network,
    regions: Sequence[Region],
    settings: Training,
    out: Path,
    name: str,
) -> Tensor:
    """What the lower part makes of each picture, `(regions, variants, …)` in half precision."""
    from safetensors.torch import load_file

    kind = [network.lower or network.name, name or "own", *(["masked"] if settings.masks else [])]
    digest = _digest(regions, str(settings.pictures), str(settings.pretrained), str(settings.seed))
    file = out.parent / "lower" / f"{'-'.join(kind)}-{digest}.safetensors"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        with torch.no_grad():
            made = [
                model.eval().lower(torch.stack(batch)).half()
                for batch in _batches(_pictures(network, regions, settings), len(regions), settings)
            ]
        kept = torch.cat(made)
        _save({"lower": kept.view(len(regions), settings.pictures, *kept.shape[1:])}, file)
    return load_file(file)["lower"]


def _batches(
    pictures: Iterator[Tensor], regions: int, settings: Training
) -> Iterator[list[Tensor]]:
    from tqdm import tqdm

    batch: list[Tensor] = []
    for picture in tqdm(
        pictures, total=regions * settings.pictures, desc="lower part", mininterval=5
    ):
        batch.append(picture)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _pictures(network: Network, regions: Sequence[Region], settings: Training) -> Iterator[Tensor]:
    from PIL import Image

    transform = network.transform()
    for number, region in enumerate(regions):
        with Image.open(region.path) as file:
            image = file.convert("RGB")
        generator = torch.Generator().manual_seed(settings.seed * 100_003 + number)
        for variant in range(settings.pictures):
            picture = _varied(image, generator) if variant else image
            if settings.masks and variant % 2:
                picture = _hidden(picture, generator)
            yield transform(picture)


def _varied(image: Any, generator: torch.Generator) -> Any:
    """Another picture of the same: flipped, turned, cut and lit a little differently."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as vision

    def drawn(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    if drawn(0, 1) < 0.5:
        image = vision.hflip(image)
    image = vision.rotate(image, drawn(-10, 10), InterpolationMode.BILINEAR)
    width, height = image.size
    share = drawn(0.85, 1)
    size = [round(share * height), round(share * width)]
    top, left = round(drawn(0, height - size[0])), round(drawn(0, width - size[1]))
    image = vision.resized_crop(image, top, left, *size, [height, width])
    image = vision.adjust_brightness(image, drawn(0.8, 1.2))
    return vision.adjust_contrast(image, drawn(0.8, 1.2))


def _hidden(image: Any, generator: torch.Generator) -> Any:
    """An image through a random mask: blocks, or smooth blobs as a heat map has them; black."""
    from PIL import Image

    kind, cells, share = torch.rand(3, generator=generator).tolist()
    side = 3 + int(6 * cells)
    field = torch.rand(1, 1, side, side, generator=generator)
    height, width = image.height, image.width
    if kind < 0.5:
        mask = F.interpolate((field < 0.2 + 0.6 * share).float(), (height, width))
    else:
        smooth = F.interpolate(field, (height, width), mode="bicubic", align_corners=False)
        mask = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    pixels = np.asarray(image, dtype=np.float32) * mask[0, 0, :, :, None].numpy()
    return Image.fromarray(pixels.round().astype(np.uint8))


# --- what it came to ------------------------------------------------------------------------------


def _summary(
    regions: Sequence[Region],
    parts: dict[str, int],
    folds: Sequence[dict[str, Any]],
    settings: Training,
    tests: Mapping[str, Sequence[Region]],
    tested: Mapping[str, Sequence[Mapping[str, float]]],
) -> dict[str, Any]:
    def rates(malignant: Mapping[str, float], known: Sequence[Region]) -> dict[str, Any]:
        own = [region for region in known if region.name in malignant and region.label is not None]
        labels = np.array([region.label for region in own])
        probabilities = np.array([malignant[region.name] for region in own])
        return scores_of(labels, probabilities, [region.case for region in own])

    own = [
        {name: p for name, p in row["malignant"].items() if parts[name] == row["fold"]}
        for row in folds
    ]
    by_fold = [rates(part, regions) for part in own]
    # high and balanced: the paper's words for how it chose
    best = max(
        range(len(folds)),
        key=lambda k: (
            math.sqrt(by_fold[k]["tpr"]["estimate"] * by_fold[k]["tnr"]["estimate"]),
            -folds[k]["loss"],
        ),
    )
    held = {n: p for n, p in folds[best]["malignant"].items() if parts[n] == HOLDOUT}
    pooled = {name: p for part in own for name, p in part.items()}
    return {
        "settings": asdict(settings),
        "regions": {"train": len(regions) - len(held), "holdout": len(held)},
        "parts": parts,
        "folds": [
            {"fold": row["fold"], "epochs": row["epochs"], "seconds": row["seconds"], **found}
            for row, found in zip(folds, by_fold, strict=True)
        ],
        "pooled": rates(pooled, regions),
        "best": best,
        "malignant": {**pooled, **held},
        "holdout": rates(held, regions) if held else None,
        "tests": {
            name: {
                "malignant": tested[name][best],
                "rates": rates(tested[name][best], known),
                "mean_of_folds": rates(
                    {r.name: float(np.mean([p[r.name] for p in tested[name]])) for r in known},
                    known,
                ),
            }
            for name, known in tests.items()
        },
        "seconds": sum(row["seconds"] for row in folds),
    }


def scores_of(labels: np.ndarray, malignant: np.ndarray, cases: Sequence[str]) -> dict[str, Any]:
    """Accuracy, rate of true positives and of true negatives, and area under the curve.

    Args:
        labels (array): 0 or 1 for each region.
        malignant (array): The probability of 1.
        cases (sequence of str): Which regions are of one patient.

    Returns:
        *dict*: Percent, each with ``estimate``, ``low``, ``high`` and ``n``; intervals are 95 %,
        drawn over cases.
    """
    right = (malignant >= 0.5) == (labels == 1)
    names = np.array(cases)

    def rate(where: np.ndarray) -> Interval:
        return rate_interval(100.0 * right[where], cases=list(names[where]))

    found = {
        "accuracy": rate(np.ones_like(right)),
        "tpr": rate(labels == 1),
        "tnr": rate(labels == 0),
        "auc": auc_interval(labels, malignant, cases),
    }
    return {
        name: {"estimate": i.estimate, "low": i.low, "high": i.high, "n": i.n}
        for name, i in found.items()
    }


def auc_interval(labels: np.ndarray, scores: np.ndarray, cases: Sequence[str]) -> Interval:
    """Area under the ROC curve in percent, with a bootstrap interval over cases.

    A draw with regions of one class only has no area and is left out.

    Args:
        labels (array): 0 or 1 for each region.
        scores (array): The higher, the likelier is 1.
        cases (sequence of str): Which regions are of one patient.

    Returns:
        *Interval*: NaN at both ends if there are fewer than two cases, or only one class.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    _, case = np.unique(cases, return_inverse=True)
    members = [np.flatnonzero(case == number) for number in range(case.max() + 1)]

    def drawn_area(drawn: np.ndarray) -> float:
        regions = np.concatenate([members[number] for number in drawn])
        return _area(labels[regions], scores[regions])

    area, low, high = _area(labels, scores), math.nan, math.nan
    if len(members) > 1 and not math.isnan(area):
        with warnings.catch_warnings():
            # SciPy's own ends are NaN if one draw is; they are not used
            warnings.simplefilter("ignore", DegenerateDataWarning)
            numbers = (np.arange(len(members)),)
            found = bootstrap(
                numbers, drawn_area, vectorized=False, n_resamples=_RESAMPLES,
                method="percentile", rng=np.random.default_rng(0),
            )  # fmt: skip
        low, high = np.nanquantile(found.bootstrap_distribution, [0.025, 0.975]).tolist()
    return Interval(area, low, high, 0.95, len(labels), len(members), "percentile")


def _area(labels: np.ndarray, scores: np.ndarray) -> float:
    """The area under the ROC curve in percent; NaN if all labels are equal."""
    from sklearn.metrics import roc_auc_score

    return 100 * float(roc_auc_score(labels, scores)) if np.ptp(labels) else math.nan


# --- files ----------------------------------------------------------------------------------------


def _digest(regions: Sequence[Region], *more: str) -> str:
    digest = hashlib.sha256(" ".join(more).encode())
    for region in regions:
        digest.update(f"{region.name} {region.label} {region.case}".encode())
        digest.update(region.path.read_bytes())
    return digest.hexdigest()[:12]


def _same_settings(
    out: Path, settings: Training, regions: Sequence[Region], parts: dict[str, int]
) -> None:
    dealt = (str(parts[region.name]) for region in regions)
    chosen = {**asdict(settings), "data": _digest(regions, *dealt)}
    if all(region.fold is not None for region in regions):  # then neither is used
        del chosen["folds"], chosen["holdout"]
    path = out / "settings.json"
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        other = differing(there, chosen)
        if other:
            raise ValueError(
                f"`out` must not have a training of other settings; {out} differs in "
                f"{', '.join(other)}. Name another folder, or remove that one."
            )
    write_json(path, chosen)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    with whole(path) as part:
        save_file({name: value.contiguous() for name, value in tensors.items()}, part)
