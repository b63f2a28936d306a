"""Small random programs: networks with the habits that make it hard to replay a forward pass.

A program is a list of steps over a growing list of tensors, all of the same shape. A step calls a
module or a function on one or two of them. Its result is appended, takes a tensor's place, or is
thrown away. Many steps write in place: into a tensor, into a view of one, or into what a module has
just returned. The list is plain data, so that a program can be printed, and made smaller.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CHANNELS", "SIZE", "Program", "Step", "random_steps", "smaller"]

CHANNELS, SIZE, CLASSES = 4, 6, 3


class Step(NamedTuple):
    """One step: what is done, to which tensors, and what becomes of the result.

    Attributes:
        op (str): A key of `MODULES`, `FUNCTIONS` or `HEADS`, ``"again"``, ``"recall"`` or
            ``"block"``.
        a (int): The tensor that is read, or written to; counted round the list.
        b (int): A second tensor, where the step takes two.
        k (int): A number that the step may use: a channel, or which module runs again.
        keep (str): ``"new"``, ``"replace"`` or ``"discard"``.
        steps (tuple[Step, ...]): Those of a block.
    """

    op: str
    a: int = -1
    b: int = 0
    k: int = 0
    keep: str = "new"
    steps: tuple[Step, ...] = ()


class AddOne(nn.Module):
    """Writes into its input and returns it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


class WritesOnly(nn.Module):
    """Writes into its input and returns something else."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(-0.5)
        return x.tanh()


class WritesPart(nn.Module):
    """Writes into a view of its input and returns the input."""

    def forward(self, x: Tensor) -> Tensor:
        x[:, 1:3].relu_()
        return x


class View(nn.Module):
    """Returns another view of its input's memory."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view_as(x)


class Turned(nn.Module):
    """Returns a view that is not contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3)


class Spread(nn.Module):
    """Returns an expanded tensor, whose values share memory."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True).expand_as(x)


class Remembers(nn.Module):
    """Keeps what it returns, as networks do that are read out later."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x * 1.5
        return self.kept


class Pair(nn.Module):
    """Returns a value and another one made of it, in a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.sin()
        return y, y * 2


class AliasPair(nn.Module):
    """Returns its input, and a view of it, in a list."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x.flip(1)]


class Named(nn.Module):
    """Returns a dict, one of whose tensors is the input."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"same": x, "out": x.cos()}


class ByName(nn.Module):
    """Takes its tensors by keyword, and writes into one of them."""

    def forward(self, *, x: Tensor, y: Tensor) -> Tensor:
        x.add_(y, alpha=0.5)
        return x


class Residual(nn.Module):
    """Adds its branch to the input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        out += x
        return self.relu(out)


class ActFirst(nn.Module):
    """Begins with an activation in place, which rewrites the input of the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.relu(x))


def _conv() -> nn.Module:
    return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)


def _norm() -> nn.Module:
    norm = nn.BatchNorm2d(CHANNELS)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.running_mean, norm.running_var = torch.randn(CHANNELS), torch.rand(CHANNELS) + 0.5
    return norm


MODULES: dict[str, Callable[[], nn.Module]] = {
    "conv": _conv,
    "norm": _norm,
    "group_norm": lambda: nn.GroupNorm(2, CHANNELS),
    "relu": nn.ReLU,
    "relu_": lambda: nn.ReLU(inplace=True),
    "leaky_": lambda: nn.LeakyReLU(0.3, inplace=True),
    "elu_": lambda: nn.ELU(inplace=True),
    "silu_": lambda: nn.SiLU(inplace=True),
    "hardtanh_": lambda: nn.Hardtanh(-0.3, 0.4, inplace=True),
    "threshold_": lambda: nn.Threshold(0.1, -0.2, inplace=True),
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "dropout": nn.Dropout,
    "dropout_": lambda: nn.Dropout2d(inplace=True),
    "identity": nn.Identity,
    "max_pool": lambda: nn.MaxPool2d(3, 1, 1),
    "avg_pool": lambda: nn.AvgPool2d(3, 1, 1),
    "add_one": AddOne,
    "writes_only": WritesOnly,
    "writes_part": WritesPart,
    "view": View,
    "turned": Turned,
    "spread": Spread,
    "remembers": Remembers,
    "pair": Pair,
    "alias_pair": AliasPair,
    "named": Named,
    "by_name": ByName,
    "residual": Residual,
    "act_first": ActFirst,
    "conv_relu_": lambda: nn.Sequential(_conv(), nn.ReLU(inplace=True)),
    "norm_relu_pool": lambda: nn.Sequential(_norm(), nn.ReLU(inplace=True), nn.AvgPool2d(3, 1, 1)),
    "relu_conv": lambda: nn.Sequential(nn.ReLU(inplace=True), _conv()),
    "relu_relu_": lambda: nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), nn.ReLU()),
}
"""Modules of one tensor; what their names end with says that they work in place."""

_IN_PLACE = ("relu_", "leaky_", "elu_", "silu_", "hardtanh_", "threshold_", "dropout_", "add_one")


def _set_channel(x: Tensor, y: Tensor, k: int) -> None:
    x[:, k] = y[:, 0]


def _set_channels(x: Tensor, y: Tensor, k: int) -> None:
    x[:, k:] = y[:, k:] * 0.7


def _channel_relu(x: Tensor, _: Tensor, k: int) -> None:
    x[:, k].relu_()


def _scale_rows(x: Tensor, _: Tensor, k: int) -> None:
    x[:, :, k:].mul_(0.3)


def _add_to_turned(x: Tensor, y: Tensor, _: int) -> None:
    x.transpose(2, 3).add_(y)


def _chunks_swapped(x: Tensor, _: Tensor, __: int) -> Tensor:
    one, other = x.chunk(2, 1)
    return torch.cat([other, one], 1)


def _chunk_written(x: Tensor, y: Tensor, _: int) -> Tensor:
    one, other = x.chunk(2, 1)
    one.mul_(0.5)
    return torch.cat([one, other + y[:, :2]], 1)


def _out(x: Tensor, y: Tensor, _: int) -> Tensor:
    return torch.add(x, y, alpha=0.3, out=torch.empty_like(x))


def _mix(x: Tensor, y: Tensor, k: int) -> Tensor:
    return torch.cat([x[:, : k + 1], y[:, k + 1 :]], 1)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, int], Tensor | None]] = {
    "f.relu": lambda x, _, __: x.relu(),
    "f.relu_": lambda x, _, __: functional.relu(x, inplace=True),
    "f.dropout": lambda x, _, __: functional.dropout(x, training=False),
    "f.add": lambda x, y, _: x + y,
    "f.gate": lambda x, y, _: x * y.sigmoid(),
    "f.tanh": lambda x, _, __: x.tanh(),
    "f.square": lambda x, _, __: x * x * 0.3,
    "f.add_": lambda x, y, _: x.add_(y, alpha=0.5),
    "f.mul_": lambda x, _, __: x.mul_(-0.7),
    "f.sub_": lambda x, y, _: x.sub_(y.tanh()),
    "f.copy_": lambda x, y, _: x.copy_(y.clone()),
    "f.div_": lambda x, y, _: x.div_(1 + y.abs()),
    "f.set_channel": _set_channel,
    "f.set_channels": _set_channels,
    "f.channel_relu_": _channel_relu,
    "f.rows_mul_": _scale_rows,
    "f.add_to_turned": _add_to_turned,
    "f.masked_fill_": lambda x, y, _: x.masked_fill_(y > 0.5, 0.2),
    "f.index_add_": lambda x, y, k: x.index_add_(1, torch.tensor([k]), y[:, :1]),
    "f.view": lambda x, _, __: x[:],
    "f.flat_view": lambda x, _, __: x.flatten(2).unflatten(2, (SIZE, SIZE)),
    "f.turned": lambda x, _, __: x.transpose(2, 3),
    "f.flip": lambda x, _, __: x.flip(1),
    "f.expand": lambda x, _, __: x.amax((2, 3), keepdim=True).expand_as(x),
    "f.clone": lambda x, _, __: x.clone(),
    "f.detach": lambda x, _, __: x.detach(),
    "f.stack": lambda x, y, _: torch.stack([x, y]).sum(0),
    "f.chunks_swapped": _chunks_swapped,
    "f.chunk_written": _chunk_written,
    "f.out": _out,
    "f.mix": _mix,
    "f.norm": lambda x, _, __: functional.layer_norm(x, x.shape[2:]),
}
"""Functions of one or two tensors and a number."""

HEADS: dict[str, Callable[[], nn.Module]] = {
    "pooled": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES)
    ),
    "rectified": lambda: nn.Sequential(
        nn.ReLU(inplace=True), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES)
    ),
    "flat": lambda: nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * SIZE**2, CLASSES)),
    "normed": lambda: nn.Sequential(
        _norm(), nn.Flatten(), nn.Dropout(), nn.Linear(CHANNELS * SIZE**2, CLASSES)
    ),
}


class Program(nn.Module):
    """A network that follows a list of steps.

    Args:
        steps (tuple[Step, ...]): The steps. A head among them gives class scores, which are added
            up; a block gives what its tensors are at the end.
    """

    def __init__(self, steps: tuple[Step, ...]) -> None:
        super().__init__()
        self.steps = steps
        self.parts = nn.ModuleList(_module(step) for step in steps)

    def forward(self, *given: Tensor) -> Any:
        """Class scores `(N, classes)`; of a block a tensor, or two of them in a tuple."""
        tensors = list(given)
        scores = []
        for part in self.parts:
            part.__dict__.pop("kept", None)  # what is kept is of this pass
        for step, module in zip(self.steps, self.parts, strict=True):
            a, b = step.a % len(tensors), step.b % len(tensors)
            if step.op in HEADS:
                scores.append(module(tensors[a]))
                continue
            result = self._do(step, module, tensors[a], tensors[b])
            if step.keep == "discard" or result is None:
                continue
            found = _tensors(result)
            if step.keep == "replace":
                tensors[a] = found.pop()
            tensors += found
        if scores:
            return torch.stack(scores).sum(0)
        return {"tensor": tensors[-1], "tuple": tuple(tensors[-2:])}[self.gives]

    def _do(self, step: Step, module: nn.Module, x: Tensor, y: Tensor) -> Any:
        if step.op in FUNCTIONS:
            return FUNCTIONS[step.op](x, y, step.k)
        if step.op == "again":  # a module of before, if it takes one tensor
            before = step.k % len(self.steps)
            once = self.steps[before].op in ("block", "again", "by_name", *FUNCTIONS, *HEADS)
            return x if once else self.parts[before](x)
        if step.op == "recall":  # what a module has kept
            return next((one.kept for one in self.parts if hasattr(one, "kept")), x)
        if step.op == "by_name":
            return module(x=x, y=y)
        return module(x, y) if step.op == "block" else module(x)

    @property
    def gives(self) -> str:
        """What a block returns."""
        return "tuple" if len(self.steps) % 3 == 0 else "tensor"


def _module(step: Step) -> nn.Module:
    if step.op == "block":
        return Program(step.steps)
    make = MODULES.get(step.op) or HEADS.get(step.op)
    return nn.Module() if make is None else make()


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, dict):
        return list(result.values())
    return list(result) if isinstance(result, (tuple, list)) else [result]


def random_steps(draw: random.Random, *, depth: int = 0) -> tuple[Step, ...]:
    """The steps of a random program.

    Args:
        draw (random.Random): Where choices come from.
        depth (int, optional): How deep in blocks the steps are; only those on top have heads.
            Default: 0
    """
    steps = [] if depth else [Step("conv", keep=draw.choice(("new", "replace")))]
    steps += [_random_step(draw, depth) for _ in range(draw.randint(2, 4 if depth else 9))]
    if not depth:
        steps.append(Step(draw.choice(list(HEADS)), a=draw.choice((-1, -1, -1, -2))))
        if draw.random() < 0.25:
            steps.append(Step(draw.choice(list(HEADS)), a=draw.choice((-2, -3))))
    return tuple(steps)


def _random_step(draw: random.Random, depth: int) -> Step:
    kind = draw.random()
    near, other = draw.choice((-1, -1, -1, -2, -3)), draw.choice((-1, -2, -3))
    keep = draw.choice(("new", "new", "new", "replace", "replace", "discard"))
    k = draw.randrange(CHANNELS)
    if kind < 0.1 and depth < 2:
        return Step("block", near, other, k, keep, random_steps(draw, depth=depth + 1))
    if kind < 0.13:
        op = draw.choice(("again", "again", "recall"))
        return Step(op, near, other, draw.randrange(12), keep)
    if kind < 0.35:
        return Step(draw.choice(_IN_PLACE), near, other, k, keep)
    if kind < 0.65:
        return Step(draw.choice(list(MODULES)), near, other, k, keep)
    return Step(draw.choice(list(FUNCTIONS)), near, other, k, keep)


def smaller(steps: tuple[Step, ...]) -> list[tuple[Step, ...]]:
    """The programs that lack one step, or have a block's steps in place of the block."""
    found = []
    for i, step in enumerate(steps):
        before, behind = steps[:i], steps[i + 1 :]
        found.append(before + behind)
        if step.op == "block":
            found.append(before + step.steps + behind)
            found += [
                (*before, step._replace(steps=fewer), *behind) for fewer in smaller(step.steps)
            ]
    return [one for one in found if one]
