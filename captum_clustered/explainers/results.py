"""What the explainers return: frozen values that can show themselves and save what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from captum_clustered._files import (
    make_folder,
    to_json,
    write_array,
    write_figure,
    write_text,
)
from captum_clustered._notebook import GroupRow, Panel, fragment, words
from captum_clustered._pictures import (
    AGAINST,
    ALPHA,
    CMAP,
    FOR,
    busiest,
    by_drop,
    check_image,
    coloured,
    counted,
    describe,
    show_one,
    summary,
)
from captum_clustered.heatmap import scaled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Attribution",
    "ClusteredAttribution",
    "EntropyAttribution",
    "Group",
    "MaskingAttribution",
    "OptimizationAttribution",
    "Tensors",
]

Tensors = Tensor | tuple[Tensor, ...]
"""One tensor for a layer that gives one, else a tuple."""

_SHOWN = 8  # groups in a notebook
_LARGE, _SMALL = 288, 44  # pixels of the longer side of a map there, and of a group's
_Self = TypeVar("_Self", bound="Attribution")


@dataclass(frozen=True, eq=False)
class Attribution:
    """A heat map, and what can be done with it.

    A notebook shows the map of the first example by itself.

    Attributes:
        attributions (Tensor or tuple[Tensor, ...]): `(N, 1, *spatial)`, in the layer's own
            resolution; a tuple if the layer gives several tensors.

    Example::

        >>> found = Attribution(torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]]))
        >>> image = np.full((8, 8, 3), 0.5)
        >>> [axes.get_title() for axes in found.show(image).axes[:2]]
        ['image', 'heat map']
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = found.save(folder, image)
        >>> [path.name for path in paths.values()]  # doctest: +NORMALIZE_WHITESPACE
        ['explanation.overlay.png', 'explanation.heatmap.npy', 'explanation.map.npy',
         'explanation.json']
    """

    attributions: Tensors

    def select(self: _Self, index: int) -> _Self:
        """The result of one of several tensors, where the layer gives several.

        Args:
            index (int): Which tensor, from 0.

        Returns:
            *Attribution*: The same with one tensor in each field.

        Raises:
            ValueError: If there is no such tensor.

        Example::

            >>> both = Attribution((torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 4, 4)))
            >>> both.select(1).attributions.shape
            torch.Size([1, 1, 4, 4])
        """
        several = isinstance(self.attributions, tuple)
        count = len(self.attributions) if several else 1
        if not isinstance(index, Integral) or not 0 <= index < count:
            raise ValueError(
                f"`index` must be one of the layer's {counted(count, 'tensor')}, from 0; got "
                f"{index!r}."
            )
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen = {name: value[index] for name, value in values.items() if isinstance(value, tuple)}
        return replace(self, **chosen)

    def map_of(self, example: int = 0) -> Tensor:
        """The map of one example, as it can be drawn.

        Args:
            example (int, optional): Which example of the batch. Default: 0

        Returns:
            *Tensor*: `(H, W)` or `(D, H, W)` in the layer's own resolution, unscaled, float32 on
            the CPU, without gradient.

        Raises:
            ValueError: If the layer gives several tensors or maps that cannot be drawn, or if there
                is no such example.
        """
        heat = _single("attributions", self.attributions)
        if not _can_be_drawn(heat):
            raise ValueError(
                "`attributions` must have shape (N, 1, H, W) or (N, 1, D, H, W) to be drawn; got "
                f"{tuple(heat.shape)}. Choose a layer whose maps have the image's axes, and leave "
                "`attr_dim_summation` True."
            )
        return _row("attributions", heat, example, len(heat))[0].float()

    def show(
        self,
        image: Any = None,
        example: int = 0,
        *,
        title: str | None = None,
        cmap: str = CMAP,
        alpha: float = ALPHA,
    ) -> Figure:
        """Draws an image and the heat map over it; without an image the map alone.

        The map is enlarged to the image and scaled from its minimum to its maximum. Of a volume the
        slice with the most heat is shown.

        Args:
            image (array or Tensor, optional): `(H, W, 3)`, for a volume `(D, H, W, 3)`, float in
                [0, 1]. Default: None (the map alone, in the layer's resolution)
            example (int, optional): Which example of the batch. Default: 0
            title (str, optional): A line above. Default: None
            cmap (str, optional): A matplotlib colour map. Default: ``"inferno"``
            alpha (float, optional): Share of the colour over the image, in [0, 1]. Default: 0.55

        Returns:
            *Figure*: Save it with ``figure.savefig(path)``. A flat map, or one with NaN, has a line
            beneath that says so.

        Raises:
            TypeError: If the image is not floating point.
            ValueError: If the layer gives several tensors or maps that cannot be drawn, if there is
                no such example, or if the image's shape or range does not fit.
        """
        picture, heatmap, _ = _look(self, image, example)
        return show_one(picture, heatmap, title, cmap, alpha)

    def save(
        self,
        folder: str | Path,
        image: Any = None,
        example: int = 0,
        *,
        name: str = "explanation",
        title: str | None = None,
        record: Mapping[str, Any] | None = None,
        cmap: str = CMAP,
        alpha: float = ALPHA,
    ) -> dict[str, Path]:
        """Writes picture, arrays and a record into a folder, each whole or not at all.

        The files are ``NAME.overlay.png`` (what :meth:`show` draws; with an image only),
        ``NAME.heatmap.npy`` (float32 in [0, 1], as large as the image), ``NAME.map.npy`` (float32,
        unscaled, in the layer's resolution) and, last, ``NAME.json``.

        Args:
            folder (str or Path): Where to write; made if it is not there.
            image (array or Tensor, optional): As for :meth:`show`. Default: None (the heat map
                keeps the layer's resolution)
            example (int, optional): Which example of the batch. Default: 0
            name (str, optional): How the files' names begin. Default: ``"explanation"``
            title (str, optional): A line above the picture. Default: None
            record (mapping, optional): More for the JSON file. Its entries take the place of the
                result's own; those of ``"files"`` are added. Default: None
            cmap (str, optional): A matplotlib colour map. Default: ``"inferno"``
            alpha (float, optional): As for :meth:`show`. Default: 0.55

        Returns:
            *dict*: The files by kind: ``"overlay"``, ``"heatmap"``, ``"map"``, ``"record"``.

        Raises:
            TypeError: If the image is not floating point, or `record` holds what JSON cannot.
            ValueError: As for :meth:`show`, or if `name` is no file name or `folder` is a file.
        """
        if not name or Path(name).name != name:
            raise ValueError(
                f"`name` must be a file name without a folder; got {name!r}. Pass the folder as "
                "`folder`."
            )
        picture, heatmap, grid = _look(self, image, example)
        figure = None if picture is None else show_one(picture, heatmap, title, cmap, alpha)
        kinds = {"overlay": "overlay.png", "heatmap": "heatmap.npy", "map": "map.npy"}
        if figure is None:
            del kinds["overlay"]
        names = {kind: f"{name}.{ending}" for kind, ending in kinds.items()}
        own = _map_record(grid, heatmap, picture is not None) | self._record(example)
        own |= record or {}
        text = to_json({**own, "files": names | own.get("files", {})})  # fails before files exist
        make_folder(Path(folder))
        files = {kind: Path(folder) / file for kind, file in names.items()}
        if figure is not None:
            write_figure(files["overlay"], figure)
        write_array(files["heatmap"], heatmap)
        write_array(files["map"], grid)
        files["record"] = Path(folder) / f"{name}.json"
        write_text(files["record"], text)
        return files

    def _record(self, example: int) -> dict[str, Any]:  # noqa: ARG002
        """What the record says beside the map."""
        return {}

    def _repr_html_(self) -> str:
        """What a notebook shows: the map of the first example."""
        if isinstance(self.attributions, tuple):
            count = len(self.attributions)
            return "".join(self.select(index)._html(index, count) for index in range(count))
        return self._html()

    def _html(self, index: int | None = None, count: int = 1) -> str:
        """What is shown of one tensor."""
        attributions = _single("attributions", self.attributions)
        which = [f"tensor {index} of {count}"] if index is not None else []
        which += [f"example 0 of {len(attributions)}"] if len(attributions) > 1 else []
        head = ", ".join([type(self).__name__, *which])
        if not _can_be_drawn(attributions):
            return words(head, f"attributions {tuple(attributions.shape)}")
        grid = self.map_of()
        at, notes = None, []
        if grid.ndim == 3:
            at = busiest(grid)
            notes = [f"Slice {at + 1} of {len(grid)}, the one with the most heat."]
        more = self._for_notebook(at)
        more["notes"] = [*notes, *more.get("notes", [])]
        scale = coloured(np.linspace(0, 1, 128))
        return fragment(head, _panel(grid if at is None else grid[at], _LARGE), scale, **more)

    def _for_notebook(self, at: int | None) -> dict[str, Any]:  # noqa: ARG002
        """What is shown beside the map, as arguments of the page; `at` is the slice of a volume."""
        return {}


@dataclass(frozen=True, eq=False)
class Group:
    """One group of maps, or of parts of maps, of one example.

    Attributes:
        number (int): Its label.
        members (tuple[int, ...]): The maps of which it has what they say above their baseline,
            rising: all its maps, where none of them has values below.
        below (tuple[int, ...]): The maps of which it has what they say below, rising.
        size (int): How many parts it has; of whole maps, how many maps.
        drop (float): How far the score falls when the group is switched off; negative if it rises.
        ablated_score (float): The score without it.
        weight (float): The weight that each of its parts carries, or that they share.
        mean_map (Tensor): The mean of its parts, `(*spatial)`, nowhere negative, unscaled, on the
            CPU.
    """

    number: int
    members: tuple[int, ...]
    below: tuple[int, ...]
    size: int
    drop: float
    ablated_score: float
    weight: float
    mean_map: Tensor

    @property
    def words(self) -> str:
        """How large the group is, in words.

        Example::

            >>> Group(0, (1, 4), (2,), 3, 0.1, 0.9, 1.0, torch.ones(2, 2)).words
            '3 parts, 1 below'
        """
        if self.size == len(self.members):  # whole maps, or only what lies above the baseline
            return counted(self.size, "map")
        return f"{counted(self.size, 'part')}, {len(self.below)} below"


@dataclass(frozen=True, eq=False)
class ClusteredAttribution(Attribution):
    """Everything that one call of :meth:`ClusteredLayerAblation.explain` found out.

    A notebook shows the map of the first example by itself, and the groups with the largest drops.

    `N` is the number of examples, `C` of feature maps, `K` of groups. Where the layer gives several
    tensors, every field marked * is a tuple with one entry for each.

    Attributes:
        attributions (Tensor or tuple[Tensor, ...]): * The heat map, `(N, 1, *spatial)`, or
            `(N, C, *spatial)` with ``attr_dim_summation=False``.
        activations (Tensor or tuple[Tensor, ...]): * The maps, `(N, C, *spatial)`.
        parts (Tensor or tuple[Tensor, ...]): * What is painted, `(N, P, *spatial)`, nowhere
            negative: what each map says above its baseline, and behind that in the same order, if
            any map has values below, what each says below. `P` is then `2 C`, else `C`; of whole
            maps it is `C`, and the parts are the magnitudes.
        labels (Tensor or tuple[Tensor, ...]): * int64 `(N, C)`: the group of what each map says
            above its baseline; -1 if that is nothing, or if the clusterer put it into no group.
        labels_below (Tensor or tuple[Tensor, ...]): * int64 `(N, C)`: the group of what each map
            says below; -1 everywhere for a layer behind a ReLU.
        scores (Tensor): The target scores, `(N,)`; `(1,)` where the model gives one score for the
            whole batch.
        ablated_scores (Tensor or tuple[Tensor, ...]): * The scores without each group, `(N, K)`;
            `(1, K)` where the model gives one score for the whole batch.
        group_weights (Tensor or tuple[Tensor, ...]): * The weight that each part of a group
            carries, or that they share, as the weighting says, `(N, K)`; 0 for a group that an
            example does not have.
        valid (Tensor or tuple[Tensor, ...]): * bool `(N, K)`: which groups an example has.
        channel_weights (Tensor or tuple[Tensor, ...]): * The weight of what each map says above its
            baseline, `(N, C)`.
        channel_weights_below (Tensor or tuple[Tensor, ...]): * The weight of what each says below,
            `(N, C)`.
        replay (str): ``"suffix"`` if only the part after the layer ran again, else ``"full"``.
        replay_reason (str or None): Why the whole model ran again.
        standard_errors (Tensor or tuple[Tensor, ...] or None): * Of `ablated_scores`, where these
            are estimates, as with :class:`captum_clustered.shapley.Shapley`; else None.
    """

    activations: Tensors
    parts: Tensors
    labels: Tensors
    labels_below: Tensors
    scores: Tensor
    ablated_scores: Tensors
    group_weights: Tensors
    valid: Tensors
    channel_weights: Tensors
    channel_weights_below: Tensors
    replay: Literal["suffix", "full"]
    replay_reason: str | None = None
    standard_errors: Tensors | None = None

    @property
    def drops(self) -> Tensors:
        """How far the score falls without each group.

        Returns:
            *Tensor* or *tuple[Tensor, ...]*: `scores - ablated_scores`, `(N, K)`; 0 for a group
            that an example does not have. A tuple if the layer gives several tensors.

        Example::

            >>> from torch import nn
            >>> from captum_clustered import ClusteredLayerAblation
            >>> model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(3, 1, bias=False))
            >>> nn.init.ones_(model[2].weight).shape
            torch.Size([1, 3])
            >>> labels = torch.tensor([0, 0, 1])
            >>> cam = ClusteredLayerAblation(model.eval(), model[0], clusterer=labels)
            >>> found = cam.explain(torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1), target=0)
            >>> found.drops
            tensor([[3., 4.]])
            >>> [(group.members, group.drop) for group in found.groups()]
            [((0, 1), 3.0), ((2,), 4.0)]
            >>> found.counts()
            {'maps': 3, 'dead_maps': 0, 'maps_in_no_group': 0}
        """
        if isinstance(self.ablated_scores, tuple):
            count = len(self.ablated_scores)
            return tuple(_drops(self.select(index)) for index in range(count))
        return _drops(self)

    def groups(self, example: int = 0) -> list[Group]:
        """The groups of an example, those with the largest number of parts first.

        Args:
            example (int, optional): Which example of the batch. Default: 0

        Returns:
            *list[Group]*: Only the groups that this example has.

        Raises:
            ValueError: If the layer gives several tensors, or there is no such example.
        """
        parts = self._of("parts", example)  # (P, *spatial)
        above, below = self._of("labels", example), self._of("labels_below", example)  # (C,)
        labels = torch.cat([above, below])[: len(parts)]  # (P,)
        valid = self._of("valid", example)  # (K,)
        drops, ablated, weights = (
            self._of(name, example).tolist()
            for name in ("drops", "ablated_scores", "group_weights")
        )
        found = []
        for number in valid.nonzero().flatten().tolist():
            members = labels == number
            found.append(
                Group(
                    number=number,
                    members=_places(above == number),
                    below=_places(below == number),
                    size=int(members.sum()),
                    drop=drops[number],
                    ablated_score=ablated[number],
                    weight=weights[number],
                    mean_map=parts[members].mean(0),
                )
            )
        return sorted(found, key=lambda group: -group.size)

    def counts(self, example: int = 0) -> dict[str, int]:
        """How many maps an example has, and how many of them are in no group.

        Args:
            example (int, optional): Which example of the batch. Default: 0

        Returns:
            *dict*: ``"maps"``; ``"dead_maps"``, which equal their baseline everywhere;
            ``"maps_in_no_group"``, which the clusterer left out though they are not dead.

        Raises:
            ValueError: If the layer gives several tensors, or there is no such example.
        """
        above, below = self._of("labels", example), self._of("labels_below", example)  # (C,)
        parts = self._of("parts", example).flatten(1)  # (P, D)
        dead = (parts == 0).all(1).reshape(-1, len(above)).all(0)  # (C,)
        left_out = (above < 0) & (below < 0) & ~dead
        return {
            "maps": len(above),
            "dead_maps": int(dead.sum()),
            "maps_in_no_group": int(left_out.sum()),
        }

    def _of(self, name: str, example: int) -> Tensor:
        """An example's part of a field, on the CPU."""
        n = len(_single("activations", self.activations))
        return _row(name, getattr(self, name), example, n)

    def _record(self, example: int) -> dict[str, Any]:
        groups = [
            {
                "group": group.number,
                "maps": len(group.members),
                "maps_below": len(group.below),
                "drop": group.drop,
                "score_without": group.ablated_score,
                "weight": group.weight,
            }
            for group in self.groups(example)
        ]
        replay = {"path": self.replay, "reason": self.replay_reason}
        return {"groups": groups, **self.counts(example), "replay": replay}

    def _for_notebook(self, at: int | None) -> dict[str, Any]:
        found = by_drop(self.groups())
        rows = [
            GroupRow(
                _panel(group.mean_map if at is None else group.mean_map[at], _SMALL),
                group.size,
                group.drop,
                group.weight,
                AGAINST if group.drop < 0 else FOR,
            )
            for group in found[:_SHOWN]
        ]
        reason = self.replay_reason
        line = summary(self.counts(), len(found), len(rows))
        return {
            "rows": rows,
            "summary": f"score {float(self.scores[0]):.3g}; {line}",
            "notes": [] if reason is None else [f"The whole model ran again: {reason}"],
        }


def _places(chosen: Tensor) -> tuple[int, ...]:
    return tuple(chosen.nonzero().flatten().tolist())


@dataclass(frozen=True, eq=False)
class MaskingAttribution(Attribution):
    """Everything that one call of `explain` found out.

    `N` is the number of examples, `C` of feature maps, `K` of groups. Where the layer gives several
    tensors, every field marked * is a tuple with one entry for each.

    Attributes:
        attributions (Tensor or tuple[Tensor, ...]): * The heat map, `(N, 1, *spatial)`, or
            `(N, C, *spatial)` with ``attr_dim_summation=False``.
        activations (Tensor or tuple[Tensor, ...]): * The maps, `(N, C, *spatial)`.
        labels (Tensor or tuple[Tensor, ...]): * int64 `(N, C)`: the group of what each map says
            above zero; -1 is none.
        labels_below (Tensor or tuple[Tensor, ...]): * int64 `(N, C)`: the group of what each map
            says below zero; of methods that keep maps whole, the same group.
        group_maps (Tensor or tuple[Tensor, ...]): * The joint map of each group, from which its
            mask is made, in the layer's own resolution, `(N, K, *spatial)`.
        masked_scores (Tensor or tuple[Tensor, ...]): * The target score of the image under each
            group's mask, `(N, K)`.
        hidden_scores (Tensor or None): The target score when the whole image is hidden, `(N,)`;
            None for a method that does not need it, such as Score-CAM.
        group_weights (Tensor or tuple[Tensor, ...]): * The weight of each group, `(N, K)`, which
            its joint map (Group-CAM) or each of its maps (Score-CAM) gets; 0 for a group that is
            not valid.
        valid (Tensor or tuple[Tensor, ...]): * bool `(N, K)`: which groups an example has. A group
            whose joint map is flat is not valid, because a flat map is no mask.
    """

    activations: Tensors
    labels: Tensors
    labels_below: Tensors
    group_maps: Tensors
    masked_scores: Tensors
    hidden_scores: Tensor | None
    group_weights: Tensors
    valid: Tensors


@dataclass(frozen=True, eq=False)
class OptimizationAttribution(Attribution):
    """Everything that one call of :meth:`ClusteredLayerOptimization.explain` found out.

    `N` is the number of examples, `C` of feature maps, `K` of groups, `T` of steps.

    Attributes:
        attributions (Tensor): The heat map, `(N, 1, *spatial)`, or `(N, C, *spatial)` with
            ``attr_dim_summation=False``.
        activations (Tensor): The maps, `(N, C, *spatial)`.
        labels (Tensor): int64 `(N, C)`: the group of what each map says above zero; -1 is none.
        labels_below (Tensor): int64 `(N, C)`: the group of what each map says below zero.
        group_weights (Tensor): The weight of each group, `(N, K)`; those of an example sum to 1.
        valid (Tensor): bool `(N, K)`: which groups an example has.
        objectives (Tensor): The objective before each step, `(N, T)`.
    """

    activations: Tensor
    labels: Tensor
    labels_below: Tensor
    group_weights: Tensor
    valid: Tensor
    objectives: Tensor


@dataclass(frozen=True, eq=False)
class EntropyAttribution(Attribution):
    """Everything that one call of :meth:`LayerEGradCam.explain` found out.

    `N` is the number of examples, `C` of feature maps. Where the layer gives several tensors, every
    field marked * is a tuple with one entry for each.

    Attributes:
        attributions (Tensor or tuple[Tensor, ...]): * The heat map, `(N, 1, *spatial)`, or
            `(N, C, *spatial)` with ``attr_dim_summation=False``.
        activations (Tensor or tuple[Tensor, ...]): * The maps, `(N, C, *spatial)`.
        scores (Tensor): The target scores, `(N,)`.
        entropies (Tensor or tuple[Tensor, ...]): * The entropy of each map in bits, `(N, C)`.
        kept (Tensor or tuple[Tensor, ...]): * bool `(N, C)`: which maps are not frozen out.
        channel_weights (Tensor or tuple[Tensor, ...]): * The weight of each map, `(N, C)`: the mean
            of its gradient, 0 for a map that is frozen out.
    """

    activations: Tensors
    scores: Tensor
    entropies: Tensors
    kept: Tensors
    channel_weights: Tensors


# --- one example ----------------------------------------------------------------------------------


def _look(result: Attribution, image: Any, example: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Checks an image and an example; gives the image, the heat map of its size, and the map."""
    grid = result.map_of(example)  # (*spatial)
    picture = None if image is None else check_image(image, grid.ndim)
    size = grid.shape if picture is None else picture.shape[:-1]
    return picture, scaled(grid, size).numpy(), grid.numpy()


def _map_record(grid: np.ndarray, heatmap: np.ndarray, enlarged: bool) -> dict[str, Any]:
    """What the record says of the two arrays."""
    how = "enlarged linearly to the model's input and " if enlarged else ""
    frame = "image in the overlay" if enlarged else "layer's maps"
    return {
        "heatmap": {
            "shape": list(heatmap.shape),
            "dtype": "float32",
            "range": [0.0, 1.0],
            "note": describe(heatmap),
            "meaning": f"the map {how}scaled from its minimum to its maximum; rows and columns "
            f"are those of the {frame}",
        },
        "map": {
            "shape": list(grid.shape),
            "dtype": "float32",
            "range": [float(grid.min()), float(grid.max())],
            "meaning": "the attribution in the layer's own resolution, not scaled",
        },
    }


def _panel(grid: Tensor, longer: int) -> Panel:
    """A map `(H, W)` in colours, resized until its longer side has so many pixels."""
    factor = longer / max(grid.shape)
    size = [max(1, round(side * factor)) for side in grid.shape]
    heatmap = scaled(grid, size).numpy()
    return Panel(coloured(heatmap), float(grid.min()), float(grid.max()), describe(grid))


def _can_be_drawn(heat: Tensor) -> bool:
    return heat.ndim in (4, 5) and heat.shape[1] == 1


def _single(name: str, field: Tensors) -> Tensor:
    """The one tensor of a field."""
    if isinstance(field, tuple):
        raise ValueError(
            f"`{name}` must be one tensor, but the layer gives {len(field)}. Take the result of "
            "one with `result.select(0)`, or choose another layer."
        )
    return field


def _row(name: str, field: Tensors, example: int, n: int) -> Tensor:
    """An example's part of a field, on the CPU, in single precision at least."""
    tensor = _single(name, field)
    if not isinstance(example, Integral) or not -n <= example < n:
        raise ValueError(f"`example` must be one of {n}; got {example!r}. The first is 0.")
    row = tensor[example if len(tensor) == n else 0].detach().cpu()  # one for the whole batch
    return row.float() if row.is_floating_point() and row.itemsize < 4 else row


def _drops(result: ClusteredAttribution) -> Tensor:
    valid, ablated = (_single(name, getattr(result, name)) for name in ("valid", "ablated_scores"))
    return torch.where(valid, result.scores.unsqueeze(1) - ablated, 0)  # (N, K)
