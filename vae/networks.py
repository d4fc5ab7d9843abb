"""MLP and convolutional encoders and decoders for images of any shape (C, H, W).

An encoder maps x (N, C, H, W) to (N, out_features); a decoder maps z (N, in_features) to (N, C, H, W), exactly.
The convolutional decoder mirrors the encoder of the same settings: its sizes are the encoder's, read backwards.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from vae.errors import InputError
from vae.types import Count, CountOrZero, Rate

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU,
    "silu": nn.SiLU, "tanh": nn.Tanh, "softplus": nn.Softplus, "sigmoid": nn.Sigmoid,
}  # fmt: skip
POOLS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}
Shape = tuple[int, int, int]
T = TypeVar("T")

# keys that several networks share
Hidden = Annotated[Sequence[Count], "widths of the hidden layers; [] for none"]
Activation = Annotated[
    Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "softplus", "sigmoid"], "after every hidden layer"
]
DropoutRate = Annotated[Rate, "dropout of the hidden layers"]
InitBias = Annotated[Literal["data"] | None, "data: the last bias starts where the mean image is the training mean"]
Channels = Annotated[Sequence[Count], MinLen(1), "channels of the convolutions, in the encoder's order"]
KernelSize = Annotated[Count, "kernel size of the convolutions"]
Stride = Annotated[Count, "stride of the convolutions"]
Padding = Annotated[CountOrZero, "padding of the convolutions"]
Pool = Annotated[Literal["none", "max", "avg"], "pooling after every convolution, by two"]
Norm = Annotated[Literal["none", "batch", "group", "layer"], "normalisation after every convolution"]


class Dropout(nn.Dropout):
    """Keeps each feature with probability 1 - p and divides it by 1 - p (Srivastava et al. 2014, inverted).

    On a CPU the mask is made from uniform numbers, in half the time of torch's Bernoulli draws.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu" or self.p == 1:
            return super().forward(x)
        # float32 even under bf16, whose uniform numbers are multiples of 1/256
        mask = torch.rand(x.shape, dtype=torch.float32, device=x.device).ge_(self.p)
        return x * mask.to(x.dtype).div_(1 - self.p)


def mlp(widths: Sequence[int], activation: str, dropout: float) -> nn.Sequential:
    """Linear, activation and dropout between each pair of widths."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), one_of("activation", activation, ACTIVATIONS)()]
        layers += [Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers)


# torch's layers that a half may be made of, and the arguments, attributes of the same name, that rebuild each.
ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    nn.ConvTranspose2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding"),
    nn.BatchNorm2d: ("num_features", "eps"),
    nn.GroupNorm: ("num_groups", "num_channels", "eps"),
    nn.MaxPool2d: ("kernel_size",), nn.AvgPool2d: ("kernel_size",), nn.Upsample: ("size",),
    nn.Flatten: ("start_dim",), nn.Unflatten: ("dim", "unflattened_size"),
    nn.LeakyReLU: ("negative_slope",), nn.ELU: ("alpha",),
    nn.ReLU: (), nn.GELU: (), nn.SiLU: (), nn.Tanh: (), nn.Softplus: (), nn.Sigmoid: (),
}  # fmt: skip


def plain_layers(half: nn.Module) -> list[nn.Module]:
    """torch's own layers that compute an encoder or decoder in eval mode, one after the other.

    Raises InputError for an own network that does not list its `layers()`.
    """
    layers: Callable[[], list[nn.Module]] | None = getattr(half, "layers", None)
    if layers is None:
        raise InputError(f"{type(half).__name__}: an own network without a method layers(), which lists its layers")
    return [layer for layer in layers() if not isinstance(layer, nn.Dropout)]


def describe_layer(layer: nn.Module) -> dict[str, Any]:
    """What rebuilds a layer: `getattr(nn, type)(**arguments)`. Raises InputError for a kind not in ARGUMENTS."""
    kind = type(layer)
    if kind not in ARGUMENTS:
        known = ", ".join(each.__name__ for each in ARGUMENTS)
        raise InputError(f"{kind.__name__}: not one of the layers that can be described: {known}")
    return {"type": kind.__name__, "arguments": {name: getattr(layer, name) for name in ARGUMENTS[kind]}}


class MLPEncoder(nn.Module):
    def __init__(
        self,
        image_shape: Shape,
        out_features: int,
        hidden: Hidden = (200, 200, 200),
        activation: Activation = "relu",
        dropout: DropoutRate = 0.0,
    ) -> None:
        super().__init__()
        widths = [math.prod(image_shape), *hidden]
        self.hidden = mlp(widths, activation, dropout)
        self.out = nn.Linear(widths[-1], out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x.flatten(1)))

    def layers(self) -> list[nn.Module]:
        return [nn.Flatten(), *self.hidden, self.out]


class MLPDecoder(nn.Module):
    def __init__(
        self,
        in_features: int,
        image_shape: Shape,
        hidden: Hidden = (200, 200, 200),
        activation: Activation = "relu",
        dropout: DropoutRate = 0.0,
        init_bias: InitBias = None,
    ) -> None:
        super().__init__()
        self.init_bias = init_bias
        widths = [in_features, *hidden]
        self.image_shape = tuple(image_shape)
        self.hidden = mlp(widths, activation, dropout)
        self.out = nn.Linear(widths[-1], math.prod(image_shape))

    def forward(self, z: Tensor) -> Tensor:
        return self.out(self.hidden(z)).unflatten(1, self.image_shape)

    def layers(self) -> list[nn.Module]:
        return [*self.hidden, self.out, nn.Unflatten(1, self.image_shape)]


class Stage(NamedTuple):
    """One convolution and its pooling: (height, width) before, after the convolution, and after the pooling."""

    before: tuple[int, int]
    convolved: tuple[int, int]
    pooled: tuple[int, int]


def conv_sizes(
    image_shape: Shape, layers: int, kernel_size: int, stride: int, padding: int, pool: str, half: str = "encoder"
) -> list[Stage]:
    """Sizes through a stack of convolutions; raises InputError, with the arithmetic, if one falls below 1."""
    one_of("pool", pool, {"none": None, **POOLS})
    size, stages = (image_shape[1], image_shape[2]), []
    for layer in range(1, layers + 1):
        convolved = tuple((s + 2 * padding - kernel_size) // stride + 1 for s in size)
        if min(convolved) < 1:
            raise InputError(
                f"model.{half}.kernel_size={kernel_size}: layer {layer} of {layers} sees {size[0]}x{size[1]} pixels "
                f"and ({min(size)} + 2*{padding} - {kernel_size}) // {stride} + 1 = {min(convolved)}, "
                f"where at least 1 is needed; take a smaller kernel_size or stride, more padding, or fewer channels"
            )
        pooled = convolved if pool == "none" else tuple(s // 2 for s in convolved)
        if min(pooled) < 1:
            raise InputError(
                f"model.{half}.pool={pool}: layer {layer} of {layers} pools {convolved[0]}x{convolved[1]} pixels and "
                f"{min(convolved)} // 2 = 0, where at least 1 is needed; take pool=none or fewer channels"
            )
        stages.append(Stage(size, convolved, pooled))  # type: ignore[arg-type]  # tuples of two, by construction
        size = pooled  # type: ignore[assignment]
    return stages


def one_of(name: str, value: str, table: Mapping[str, T]) -> T:
    """The entry of a table; raises ValueError for an unknown name."""
    if value not in table:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(table)}")
    return table[value]


def norm_layer(norm: str, channels: int) -> Iterable[nn.Module]:
    layers: dict[str, Callable[[], list[nn.Module]]] = {
        "none": list,
        "batch": lambda: [nn.BatchNorm2d(channels)],
        "group": lambda: [nn.GroupNorm(math.gcd(8, channels), channels)],
        "layer": lambda: [nn.GroupNorm(1, channels)],
    }
    return one_of("norm", norm, layers)()


class ConvEncoder(nn.Module):
    """Convolutions, then the linear layers `hidden`, which hold nearly all weights and therefore the dropout."""

    def __init__(
        self,
        image_shape: Shape,
        out_features: int,
        channels: Channels = (16, 32),
        kernel_size: KernelSize = 3,
        stride: Stride = 2,
        padding: Padding = 1,
        pool: Pool = "none",
        norm: Norm = "none",
        hidden: Hidden = (200,),
        activation: Activation = "relu",
        dropout: DropoutRate = 0.0,
    ) -> None:
        super().__init__()
        stages = conv_sizes(image_shape, len(channels), kernel_size, stride, padding, pool)
        layers: list[nn.Module] = []
        for c_in, c_out in zip([image_shape[0], *channels[:-1]], channels, strict=True):
            layers += [nn.Conv2d(c_in, c_out, kernel_size, stride, padding), *norm_layer(norm, c_out)]
            layers += [one_of("activation", activation, ACTIVATIONS)()]
            layers += [POOLS[pool](2)] if pool != "none" else []
        self.convolutions = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # a quarter faster on CPUs
        widths = [channels[-1] * math.prod(stages[-1].pooled), *hidden]
        self.hidden = mlp(widths, activation, dropout)
        self.out = nn.Linear(widths[-1], out_features)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.convolutions(x.contiguous(memory_format=torch.channels_last))
        return self.out(self.hidden(maps.flatten(1)))

    def layers(self) -> list[nn.Module]:
        return [*self.convolutions, nn.Flatten(), *self.hidden, self.out]


class ConvDecoder(nn.Module):
    """Mirror of ConvEncoder; `channels` and `hidden` are given in the encoder's order."""

    def __init__(
        self,
        in_features: int,
        image_shape: Shape,
        channels: Channels = (16, 32),
        kernel_size: KernelSize = 3,
        stride: Stride = 2,
        padding: Padding = 1,
        pool: Pool = "none",
        norm: Norm = "none",
        hidden: Hidden = (200,),
        activation: Activation = "relu",
        dropout: DropoutRate = 0.0,
        init_bias: InitBias = None,
    ) -> None:
        super().__init__()
        self.init_bias = init_bias
        stages = conv_sizes(image_shape, len(channels), kernel_size, stride, padding, pool, "decoder")
        self.small = (channels[-1], *stages[-1].pooled)
        widths = [in_features, *reversed(hidden), math.prod(self.small)]
        self.hidden = mlp(widths, activation, dropout)
        layers: list[nn.Module] = []
        for i in reversed(range(len(channels))):
            before, convolved, _ = stages[i]
            c_out = channels[i - 1] if i else image_shape[0]
            # the remainder of the floor division in the encoder's size; always less than the stride
            high, wide = (
                b - ((c - 1) * stride - 2 * padding + kernel_size) for b, c in zip(before, convolved, strict=True)
            )
            layers += [nn.Upsample(size=convolved)] if pool != "none" else []
            layers += [
                nn.ConvTranspose2d(channels[i], c_out, kernel_size, stride, padding, output_padding=(high, wide))
            ]
            layers += [*norm_layer(norm, c_out), ACTIVATIONS[activation]()] if i else []
        self.convolutions = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    @property
    def out(self) -> nn.Module:
        return self.convolutions[-1]

    def forward(self, z: Tensor) -> Tensor:
        maps = self.hidden(z).unflatten(1, self.small).contiguous(memory_format=torch.channels_last)
        return self.convolutions(maps).contiguous()

    def layers(self) -> list[nn.Module]:
        return [*self.hidden, nn.Unflatten(1, self.small), *self.convolutions]
