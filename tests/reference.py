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
