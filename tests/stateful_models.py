"""Models that write something into themselves when they run."""

import types
from collections import deque

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm


class Base(nn.Module):
    """Convolution `a`, mean, and a linear head; subclasses change the features `h`, `(N, 4)`."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.f = nn.Linear(4, 2)
        self.eval()

    def forward(self, x):
        return self.f(self.state(self.a(x).mean((2, 3))))

    def state(self, h):
        raise NotImplementedError


class Attribute(Base):
    mem = None

    def state(self, h):
        self.mem = h if self.mem is None else (self.mem + h) / 2
        return self.mem


class Dictionary(Base):
    def __init__(self):
        super().__init__()
        self.cache = {"old": {}}

    def state(self, h):
        h = h + self.cache["old"].get("h", 0)
        self.cache["old"]["h"] = h
        return h


class Growing(Base):
    def __init__(self):
        super().__init__()
        self.past = []

    def state(self, h):
        self.past.append(h)
        return sum(self.past)


class Window(Base):
    def __init__(self):
        super().__init__()
        self.past = deque([1.0], maxlen=2)

    def state(self, h):
        self.past.append(h)
        return h * len(self.past) + self.past[0]


class Array(Base):
    def __init__(self):
        super().__init__()
        self.scale = np.ones(4, np.float32)

    def state(self, h):
        self.scale += 1
        return h * torch.from_numpy(self.scale.copy())


class BufferInPlace(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(4))

    def state(self, h):
        self.mean.mul_(2)
        return h * self.mean


class BufferByData(BufferInPlace):
    def state(self, h):
        self.mean.data += 1
        return h * self.mean


class BufferAssigned(BufferInPlace):
    def state(self, h):
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return h * self.mean


class BufferOfAnotherShape(BufferInPlace):
    def state(self, h):
        mean = self.mean
        mean.data = mean.data.reshape(2, 2) if mean.ndim == 1 else mean.data.reshape(2, 2, 1)
        return h * mean.ndim


class BufferOfAnotherType(BufferInPlace):
    def state(self, h):
        h = h + self.mean.itemsize
        self.mean.data = self.mean.data.half()
        return h


class BufferWithNewMemory(BufferInPlace):
    def state(self, h):
        self.mean.data = self.mean.data * 3
        return h * self.mean


class StatisticsOfEachPass(Base):
    """Batch norm that is told to train, and then says that it does not."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4).eval()

    def state(self, h):
        h = h * (1 + self.norm.running_mean)
        self.statistics(h.detach())
        return h

    def statistics(self, h):
        self.norm.train()
        self.norm(h)
        self.norm.eval()


class StatisticsByAFunction(StatisticsOfEachPass):
    def statistics(self, h):
        norm = self.norm
        nn.functional.batch_norm(h, norm.running_mean, norm.running_var, training=True)


class Counter(Base):
    calls = 0

    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.tensor(0))
        self.steps = 0

    def state(self, h):
        self.n += 1
        self.steps += 1
        return h * self.n * self.steps


class TensorInPlace(Base):
    def __init__(self):
        super().__init__()
        self.mem = [torch.ones(4)]

    def state(self, h):
        self.mem[0].add_(1)
        return h * self.mem[0]


class Slots:
    __slots__ = ("keys",)

    def __init__(self):
        self.keys = None


class Cache(Base):
    """Keys of earlier calls, in objects, as transformers keep them."""

    def __init__(self):
        super().__init__()
        self.cache = types.SimpleNamespace(layers=[Slots()])

    def state(self, h):
        (layer,) = self.cache.layers
        layer.keys = h if layer.keys is None else torch.stack([layer.keys, h]).sum(0)
        return layer.keys


class ParentWrites(Base):
    """The parent writes into a child before it calls it."""

    def __init__(self):
        super().__init__()
        self.part = nn.Dropout(0.0)
        self.part.level = 1.0

    def state(self, h):
        self.part.level *= 2
        return self.part(h) * self.part.level


class Switching(Base):
    """Changes modes and flags."""

    def state(self, h):
        for parameter in self.f.parameters():
            parameter.requires_grad_(False)
        self.a.training = not self.a.training
        return h * 2 if self.a.training else h


class OwnGenerator(Base):
    def __init__(self):
        super().__init__()
        self.draw = np.random.default_rng(3)

    def state(self, h):
        return h + float(self.draw.random())


class Iterating(Base):
    """Hooks that come and go, and a set."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def state(self, h):
        self.seen.add(len(self.seen))
        self.f.register_forward_hook(lambda _, __, output: output * 2)
        return h * len(self.seen)


class SpectralNorm(Base):
    """In training mode its vectors go on with every pass."""

    def __init__(self):
        super().__init__()
        self.f = parametrizations.spectral_norm(self.f)
        self.train()

    def state(self, h):
        return h


class WeightNorm(Base):
    """The old form: a hook writes the weight anew in every pass."""

    def __init__(self):
        super().__init__()
        self.f = weight_norm(self.f)

    def state(self, h):
        return h


class TrainingStatistics(Base):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, momentum=0.9)
        self.norm.train()

    def state(self, h):
        self.norm(h.detach())
        return h * self.norm.running_mean


# What is built when the model is first called stays


class HeadOnFirstCall(Base):
    def __init__(self):
        super().__init__()
        self.late = None

    def state(self, h):
        if self.late is None:
            self.late = nn.Linear(h.shape[1], 4)
        return self.late(h)


class ModulesInADictionary(Base):
    def __init__(self):
        super().__init__()
        self.heads = {}

    def state(self, h):
        if h.shape[1:] not in self.heads:
            self.heads[h.shape[1:]] = nn.Linear(h.shape[1], 4)
        return self.heads[h.shape[1:]](h)


class Lazy(Base):
    def __init__(self):
        super().__init__()
        self.f = nn.LazyLinear(2)

    def state(self, h):
        return h


class HooksOnFirstCall(Base):
    ready = False

    def forward(self, x):
        if not self.ready:
            self.f.register_forward_hook(lambda _, __, output: output * 2)
            self.ready = True
        return super().forward(x)

    def state(self, h):
        return h


class BufferOnFirstCall(Base):
    def state(self, h):
        if "mean" not in self._buffers:
            self.register_buffer("mean", h.detach().mean(0))
        return h - self.mean


class ScaleOfFirstBatch(Base):
    """Activation normalisation."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.ready = False

    def state(self, h):
        if not self.ready:
            self.write(1 / h.detach().amax(0))
            self.ready = True
        return h * self.scale

    def write(self, scale):
        self.scale.data.copy_(scale)


class ScaleOfFirstBatchCounted(ScaleOfFirstBatch):
    def __init__(self):
        super().__init__()
        del self.ready
        self.register_buffer("ready", torch.tensor(False))

    def write(self, scale):
        with torch.no_grad():
            self.scale.copy_(scale)
        self.ready.fill_(True)

    def state(self, h):
        if not self.ready:
            self.write(1 / h.detach().amax(0))
        return h * self.scale


PUT_BACK = (
    *(Attribute, Dictionary, Growing, Window, Array, BufferInPlace, BufferByData, BufferAssigned),
    *(BufferWithNewMemory, Counter, TensorInPlace, Cache, ParentWrites, Switching, OwnGenerator),
    *(SpectralNorm, WeightNorm, TrainingStatistics, StatisticsOfEachPass, StatisticsByAFunction),
    *(BufferOfAnotherShape, BufferOfAnotherType),
)
BUILDS = (
    *(HeadOnFirstCall, ModulesInADictionary, Lazy, HooksOnFirstCall, BufferOnFirstCall),
    *(ScaleOfFirstBatch, ScaleOfFirstBatchCounted),
)
