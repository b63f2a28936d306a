"""A slow, literal transcription of the paper's equation, in float64 and without any of our code."""

import torch


def clustered_cam(trunk, head, x, target, labels, weighting="drop"):
    """The heat maps of a model split at the layer: `head(trunk(x))`.

    Returns the maps and the scores without each group, image by image, group by group, pixel by
    pixel: w_G = (S - S_G) / |S|, M = ReLU(sum_G w_G F_G) with F_G the sum of the group's maps.
    """
    maps, ablated = [], []
    with torch.no_grad():
        for image, classes, row in zip(x, target, labels, strict=True):
            activation = trunk(image[None])
            score = head(activation)[0, classes].item()
            heat = torch.zeros(activation.shape[2:], dtype=torch.float64)
            scores = []
            for k in range(int(row.max()) + 1):
                members = [c for c in range(len(row)) if row[c] == k]
                without = activation.clone()
                for c in members:
                    without[0, c] = 0
                fallen = head(without)[0, classes].item()
                scores.append(fallen)
                joint = sum(activation[0, c] for c in members)
                weight = (score - fallen) / (abs(score) if score else 1)
                if weighting == "drop_per_map":
                    weight /= len(members)
                elif weighting == "drop_per_mass":
                    weight /= sum(
                        abs(float(v)) for c in members for v in activation[0, c].flatten()
                    )
                elif weighting == "drop_by_activation":
                    masses = [activation[0, c].abs().sum().item() for c in members]
                    joint = sum(activation[0, c] * m for c, m in zip(members, masses, strict=True))
                    joint = joint / sum(masses)
                for place in torch.cartesian_prod(*[torch.arange(s) for s in heat.shape]).tolist():
                    place = tuple(place) if isinstance(place, list) else (place,)
                    heat[place] += weight * float(joint[place])
            maps.append(heat.clamp(min=0))
            ablated.append(scores)
    return maps, ablated


def off(maps, labels, groups, baselines):
    """Copies of one example's maps, clamped by hand: value by value.

    `maps` holds a tensor `(C, *spatial)` for each of the layer's tensors, `labels` a list of `2 C`
    numbers for each, those of the parts above the baseline first, and `groups` what is switched
    off. A value above its baseline falls to it if the part above is in one of the groups, a value
    below rises to it if the part below is.
    """
    copies = [tensor.clone() for tensor in maps]
    for copy, tensor, row, baseline in zip(copies, maps, labels, baselines, strict=True):
        c = len(tensor)
        for place in _places(tensor.shape):
            value, rest = tensor[place], baseline[place]
            if value > rest and row[place[0]] in groups:
                copy[place] = rest
            if value < rest and row[c + place[0]] in groups:
                copy[place] = rest
    return copies


def parts_cam(head, maps, labels, weighting="drop", baselines=None, whole=False):
    """The heat maps of one example whose maps may have two signs, by parts.

    `head` takes a list of tensors `(1, C, *spatial)` and gives the score. The groups are numbered
    within each tensor. Returns, for each tensor, the heat map without a ReLU and the scores without
    each group. With `whole`, both parts of a map count as one.
    """
    if baselines is None:
        baselines = [torch.zeros_like(tensor) for tensor in maps]
    with torch.no_grad():
        score = head([tensor[None] for tensor in maps]).item()
        heats, ablated = [], []
        for t, (tensor, row, baseline) in enumerate(zip(maps, labels, baselines, strict=True)):
            c = len(tensor)
            heat = torch.zeros(tensor.shape[1:], dtype=torch.float64)
            scores = []
            for k in range(max(row) + 1):
                only = [row if one == t else [-1] * len(row_) for one, row_ in enumerate(labels)]
                without = off(maps, only, {k}, baselines)
                scores.append(head([tensor_[None] for tensor_ in without]).item())
                parts = []  # (map, what it says)
                for p in [p for p in range(2 * c) if row[p] == k]:
                    part = torch.zeros_like(heat)
                    for place in _places(heat.shape):
                        change = float(tensor[p % c][place]) - float(baseline[p % c][place])
                        part[place] = max(change, 0) if p < c else max(-change, 0)
                    parts.append((p % c, part))
                if whole:
                    members = sorted({p for p, _ in parts})
                    parts = [(p, sum(part for q, part in parts if q == p)) for p in members]
                weights = _weights(score, score - scores[-1], [p for _, p in parts], weighting)
                for weight, (_, part) in zip(weights, parts, strict=True):
                    for place in _places(heat.shape):
                        heat[place] += weight * part[place]
            heats.append(heat)
            ablated.append(scores)
    return heats, ablated


def _weights(score, drop, parts, weighting):
    """The weight of each part of a group."""
    masses = [sum(float(v) for v in part.flatten()) for part in parts]
    relative = drop / (abs(score) if score else 1)
    if weighting == "drop":
        return [relative] * len(parts)
    if weighting == "drop_per_map":
        return [relative / len(parts)] * len(parts)
    if weighting == "drop_per_mass":
        return [relative / sum(masses)] * len(parts)
    if weighting == "drop_by_activation":
        return [relative * mass / sum(masses) for mass in masses]
    squares = sum(float(v) ** 2 for part in parts for v in part.flatten())
    return [drop / squares**0.5] * len(parts)


def _places(shape):
    """All places of a tensor, as tuples."""
    return [tuple(p.tolist()) for p in torch.ones(shape).nonzero()]
