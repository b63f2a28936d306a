"""A module of small models, and the commands that tests run on them, without a shell."""

import sys

from typer.testing import CliRunner

from captum_clustered.app import cli
from captum_clustered.models import load

MODEL = """
import torch
from torch import nn
from torchvision import models, transforms


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(nn.Conv2d(3, 12, 5, stride=2), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.pool(self.features(x)).flatten(1))


transform = transforms.Compose(
    [transforms.Resize((20, 24)), transforms.ToTensor(), transforms.Normalize(0.5, 0.25)]
)


def net():
    return Net(), transform


class Broken(Net):
    def forward(self, x):
        return super().forward(x) * torch.nan


def broken():
    return Broken(), transform


class Fussy(Net):
    def forward(self, x):
        if x.mean() > 1.5:
            raise RuntimeError("too bright\\nfor me")
        return super().forward(x)


def fussy():
    return Fussy(), transform


class Certain(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)


def certain():
    return Certain(), transform


def binary():
    model = Net()
    model.head = nn.Linear(12, 1)
    nn.init.constant_(model.head.bias, -2.0)
    return model, transform


def labels():
    return nn.Sequential(Net(), nn.Sigmoid()), transform


class Dense(Net):
    def forward(self, x):
        return self.features(x)


def dense():
    return Dense(), transform


class Shared(Net):
    def forward(self, x):
        return self.head(self.pool(self.features(x).square()).flatten(1))


def shared():
    return Shared(), transform


def tokens():
    torch.manual_seed(3)
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 1, "num_heads": 1}
    model = models.VisionTransformer(**sizes, hidden_dim=8, mlp_dim=8, num_classes=3)
    return model, transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])
"""


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def explain(*arguments, model="nets:net", out="out"):
    return run("explain", "--model", model, "--out", out, *arguments)


def load_net(folder, name="nets:net"):
    sys.path.insert(0, str(folder))
    try:
        return load(name)
    finally:
        sys.path.remove(str(folder))


def one_error(result):
    """The line of a command that failed for the user's reasons."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("captum-clustered: error: ")
    return line.removeprefix("captum-clustered: error: ")
