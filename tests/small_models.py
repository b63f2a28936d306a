"""Small models, some of them with the habits that make replaying a forward pass hard."""

import torch
from torch import nn


def split_cnn(seed=0, channels=6, classes=4, dims=2, linear_head=False):
    """A trunk and a head, in float64; the head is not linear unless asked for."""
    torch.manual_seed(seed)
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims]
    trunk = nn.Sequential(conv(3, channels, 3), nn.ReLU())
    if linear_head:
        head = nn.Sequential(pool(1), nn.Flatten(), nn.Linear(channels, classes))
    else:
        head = nn.Sequential(
            conv(channels, 5, 2),
            nn.Tanh(),
            pool(2),
            nn.Flatten(),
            nn.Linear(5 * 2**dims, classes),
        )
    return nn.Sequential(trunk, head).double().eval()


class UNet(nn.Module):
    """Skips lead around the layer: the input and the encoder's maps are concatenated behind it."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.out = nn.Conv2d(11, 3, 3, padding=1)

    def forward(self, x):
        encoded = self.down(x).relu()
        decoded = self.up(self.middle(encoded))
        return self.out(torch.cat([encoded, decoded, x], 1))


class SharedReLU(nn.Module):
    """One in-place ReLU serves three places."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 5, 3, padding=1)
        self.conv3 = nn.Conv2d(5, 5, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x)) + x
        x = self.relu(self.conv3(x))
        return self.fc(x.mean((2, 3)) ** 2)


class InPlaceAfterLayer(nn.Module):
    """Fault 1: what the layer returned is overwritten by the next operation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = self.conv(x)
        x.mul_(-2.0).relu_()
        return self.fc(x.mean((2, 3)) ** 2)


class InPlaceOnPrefix(nn.Module):
    """Fault 2: the output of a finished call is added to in place before the layer runs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.side = nn.Conv2d(3, 6, 3, padding=1)
        self.layer = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        out = self.stem(x)
        out += self.side(x)  # handed out again, the sum would be added to once more
        return self.fc((self.layer(out).tanh() + out).mean((2, 3)) ** 2)


class InPlaceBehindLayer(nn.Module):
    """What depends on the layer is written into what does not, as in a residual network."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layer = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        out = self.stem(x)
        out += self.layer(out).tanh()
        return self.fc(out.mean((2, 3)) ** 2)


class Block(nn.Module):
    def __init__(self, conv, shared):
        super().__init__()
        self.conv = conv
        self.shared = shared

    def forward(self, x):
        return self.shared(self.conv(x))


class SharedChild(nn.Module):
    """Fault 3: a child that answers to the call number is shared by frozen and later blocks."""

    def __init__(self):
        super().__init__()
        shared = nn.Conv2d(6, 6, 1)
        self.first = Block(nn.Conv2d(3, 6, 3, padding=1), shared)
        self.second = Block(nn.Conv2d(6, 6, 3, padding=1), shared)
        self.shared = shared
        self.layer = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = self.first(x)
        early = self.shared(x).tanh()  # recorded as the shared child's second call
        x = self.layer(self.second(x)).tanh() + early
        return self.fc(self.shared(x).mean((2, 3)) ** 2)
