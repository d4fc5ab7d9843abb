"""Encoders and decoders of every kind, for images of awkward shapes."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vae.errors import InputError
from vae.networks import (
    ACTIVATIONS,
    ConvDecoder,
    ConvEncoder,
    Dropout,
    MLPDecoder,
    MLPEncoder,
    Shape,
    Stage,
    conv_sizes,
    norm_layer,
)

SHAPES: list[Shape] = [(3, 11, 13), (1, 28, 28), (2, 7, 5)]
ENCODERS = {"mlp": MLPEncoder, "conv": ConvEncoder}
DECODERS = {"mlp": MLPDecoder, "conv": ConvDecoder}
GRID = list(itertools.product((1, 2, 3, 4, 5), (1, 2, 3), (0, 1, 2), ("none", "max", "avg"), (1, 2)))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def small(kind: str) -> dict[str, Any]:
    return {"hidden": (6, 4)} | ({"channels": (3, 5)} if kind == "conv" else {})


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Shapes


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("encoder", "decoder"), list(itertools.product(ENCODERS, DECODERS)))
def test_every_pair_of_halves_goes_there_and_back(encoder: str, decoder: str, shape: Shape) -> None:
    encode = ENCODERS[encoder](shape, 4, **small(encoder))
    decode = DECODERS[decoder](4, shape, **small(decoder))
    x = torch.rand(3, *shape)
    z = encode(x)
    assert z.shape == (3, 4)
    assert decode(z).shape == x.shape


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("network", [MLPEncoder, ConvEncoder, MLPDecoder, ConvDecoder])
def test_every_weight_takes_part(network: Callable[..., nn.Module], shape: Shape) -> None:
    kind = small("conv" if "Conv" in network.__name__ else "mlp") | {"activation": "softplus"}
    decoder = "Decoder" in network.__name__
    module = network(4, shape, **kind) if decoder else network(shape, 4, **kind)
    module(torch.randn(3, 4) if decoder else torch.rand(3, *shape)).pow(2).sum().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_the_decoder_gives_back_exactly_the_image_over_a_grid_of_settings() -> None:
    """Whatever the encoder's settings leave, the decoder of the same settings ends at the image; or both refuse."""
    built = refused = 0
    for shape, (kernel_size, stride, padding, pool, layers) in itertools.product(SHAPES, GRID):
        settings: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "pool": pool}
        settings |= {"channels": (2, 3)[:layers], "hidden": ()}
        try:
            encoder = ConvEncoder(shape, 4, **settings)
        except InputError:
            with pytest.raises(InputError, match=r"model\.decoder"):
                ConvDecoder(4, shape, **settings)
            refused += 1
            continue
        z = encoder(torch.zeros(1, *shape))
        assert z.shape == (1, 4)
        assert ConvDecoder(4, shape, **settings)(z).shape == (1, *shape), settings
        built += 1
    assert built > 500
    assert refused > 50


@pytest.mark.parametrize("pool", ["none", "max", "avg"])
@pytest.mark.parametrize("shape", SHAPES)
def test_conv_sizes_are_what_the_encoder_sees(shape: Shape, pool: str) -> None:
    encoder = ConvEncoder(shape, 4, channels=(2, 3), kernel_size=3, stride=1, padding=1, pool=pool, hidden=())
    seen: dict[type[nn.Module], list[tuple[int, int]]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kind = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.MaxPool2d
        seen.setdefault(kind, []).append((output.shape[2], output.shape[3]))

    for module in encoder.convolutions:
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            module.register_forward_hook(record)
    encoder(torch.zeros(1, *shape))
    stages = conv_sizes(shape, 2, kernel_size=3, stride=1, padding=1, pool=pool)
    assert [s.convolved for s in stages] == seen[nn.Conv2d]
    assert [s.pooled for s in stages] == seen.get(nn.MaxPool2d, seen[nn.Conv2d])
    assert [s.before for s in stages] == [shape[1:], stages[0].pooled]


def test_conv_sizes_by_hand() -> None:
    assert conv_sizes((1, 28, 28), 2, kernel_size=3, stride=2, padding=1, pool="none") == [
        Stage((28, 28), (14, 14), (14, 14)),
        Stage((14, 14), (7, 7), (7, 7)),
    ]
    assert conv_sizes((3, 11, 13), 2, kernel_size=3, stride=1, padding=0, pool="max") == [
        Stage((11, 13), (9, 11), (4, 5)),
        Stage((4, 5), (2, 3), (1, 1)),
    ]


# What cannot fit


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_kernel_too_large_is_refused_with_the_arithmetic(half: str) -> None:
    # 7x5 -> (7 - 3) // 2 + 1 = 3 by (5 - 3) // 2 + 1 = 2, which a kernel of 3 does not fit
    with pytest.raises(InputError) as refusal:
        conv_sizes((2, 7, 5), 3, kernel_size=3, stride=2, padding=0, pool="none", half=half)
    message = str(refusal.value)
    assert f"model.{half}.kernel_size=3" in message
    assert "layer 2 of 3 sees 3x2 pixels" in message
    assert "(2 + 2*0 - 3) // 2 + 1 = 0" in message
    assert "padding" in message
    assert "\n" not in message


def test_a_kernel_too_large_for_the_shorter_side_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"sees 9x2 pixels and \(2 \+ 2\*0 - 4\) // 1 \+ 1 = -1"):
        conv_sizes((1, 9, 2), 1, kernel_size=4, stride=1, padding=0, pool="none")


@pytest.mark.parametrize("network", [ConvEncoder, ConvDecoder])
def test_too_much_pooling_is_refused_with_the_arithmetic(network: type[ConvEncoder] | type[ConvDecoder]) -> None:
    half = "encoder" if network is ConvEncoder else "decoder"
    shape: Shape = (2, 7, 5)
    settings: dict[str, Any] = {"channels": (2,) * 3, "kernel_size": 3, "stride": 1, "padding": 1, "pool": "avg"}
    with pytest.raises(InputError, match=rf"model\.{half}\.pool=avg: layer 3 of 3 pools 1x1 pixels and 1 // 2 = 0"):
        ConvEncoder(shape, 4, **settings) if half == "encoder" else ConvDecoder(4, shape, **settings)


def test_the_last_size_that_fits_is_taken() -> None:
    assert conv_sizes((1, 3, 4), 1, 3, 1, 0, "none")[0].convolved == (1, 2)
    assert conv_sizes((1, 4, 5), 1, 3, 1, 0, "max")[0].pooled == (1, 1)


# Depth, width, dropout, norms


@pytest.mark.parametrize("hidden", [(), (7,), (7, 6), (5, 6, 7, 8)])
def test_mlp_parameters_counted_by_hand(hidden: tuple[int, ...]) -> None:
    widths = [3 * 11 * 13, *hidden, 9]
    count = sum(wide * narrow + narrow for wide, narrow in itertools.pairwise(widths))
    assert parameters(MLPEncoder((3, 11, 13), 9, hidden)) == count
    widths = [4, *hidden, 3 * 11 * 13]
    count = sum(wide * narrow + narrow for wide, narrow in itertools.pairwise(widths))
    assert parameters(MLPDecoder(4, (3, 11, 13), hidden)) == count


def test_the_reports_network_has_this_many_parameters() -> None:
    encoder, decoder = MLPEncoder((1, 28, 28), 8), MLPDecoder(4, (2, 28, 28))
    assert parameters(encoder) == 785 * 200 + 2 * 201 * 200 + 201 * 8
    assert parameters(decoder) == 5 * 200 + 2 * 201 * 200 + 201 * 1568
    assert [type(layer) for layer in encoder.hidden] == [nn.Linear, nn.ReLU] * 3


@pytest.mark.parametrize(("stride", "pool", "flat"), [(2, "none", 5 * 2 * 3), (1, "max", 5 * 2 * 2)])
def test_conv_parameters_counted_by_hand(stride: int, pool: str, flat: int) -> None:
    """11x13 -> 5x6 -> 2x3 by strides; by pooling -> 10x12, halved 5x6 -> 4x5, halved 2x2."""
    settings: dict[str, Any] = {"channels": (3, 5), "kernel_size": 4, "padding": 1, "hidden": (6,)}
    settings |= {"stride": stride, "pool": pool}
    encoder = (2 * 16 + 1) * 3 + (3 * 16 + 1) * 5 + (flat + 1) * 6 + 7 * 9
    assert parameters(ConvEncoder((2, 11, 13), 9, **settings)) == encoder
    decoder = 5 * 6 + 7 * flat + (5 * 16 * 3 + 3) + (3 * 16 * 2 + 2)
    assert parameters(ConvDecoder(4, (2, 11, 13), **settings)) == decoder


def test_no_hidden_layer_makes_a_linear_map() -> None:
    encoder, decoder = MLPEncoder((2, 7, 5), 4, ()), MLPDecoder(4, (2, 7, 5), ())
    for module, a, b in (
        (encoder, torch.rand(3, 2, 7, 5), torch.rand(3, 2, 7, 5)),
        (decoder, torch.rand(3, 4), torch.rand(3, 4)),
    ):
        torch.testing.assert_close(module(0.3 * a + 0.7 * b), 0.3 * module(a) + 0.7 * module(b))


def test_a_decoded_image_keeps_its_pixels_in_place() -> None:
    """Output feature c H W + h W + w is pixel (c, h, w), and the encoder reads it from there."""
    decoder = MLPDecoder(4, (2, 7, 5), ())
    nn.init.zeros_(decoder.out.weight)
    decoder.out.bias.data = torch.arange(70.0)
    assert torch.equal(decoder(torch.zeros(1, 4))[0], torch.arange(70.0).view(2, 7, 5))
    encoder = MLPEncoder((2, 7, 5), 70, ())
    nn.init.eye_(encoder.out.weight)
    nn.init.zeros_(encoder.out.bias)
    assert torch.equal(encoder(torch.arange(70.0).view(1, 2, 7, 5))[0], torch.arange(70.0))


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp encoder": lambda **settings: MLPEncoder((2, 7, 5), 40, **settings),
    "conv encoder": lambda **settings: ConvEncoder((2, 7, 5), 40, channels=(3, 5), **settings),
    "mlp decoder": lambda **settings: MLPDecoder(4, (2, 7, 5), **settings),
    "conv decoder": lambda **settings: ConvDecoder(4, (2, 7, 5), channels=(3, 5), **settings),
}


def an_input(name: str) -> Tensor:
    return torch.rand(3, 2, 7, 5) if "encoder" in name else torch.randn(3, 4)


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_follows_hidden_layers_only(name: str) -> None:
    module, x = NETWORKS[name](hidden=(16, 16), dropout=0.5), an_input(name)
    assert not torch.equal(module(x), module(x))
    where = [path for path, m in module.named_modules() if isinstance(m, nn.Dropout)]
    linear = [m for path, m in module.named_modules() if path.startswith("hidden") and isinstance(m, nn.Linear)]
    assert all(path.startswith("hidden.") for path in where)
    assert len(where) == len(linear) == (3 if name == "conv decoder" else 2)
    # neither inputs nor outputs fall out: they would be exactly zero
    assert (module(x) != 0).all()
    module.eval()
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("name", ["mlp encoder", "conv encoder", "mlp decoder"])
def test_without_hidden_layers_there_is_nothing_to_drop(name: str) -> None:
    module, x = NETWORKS[name](hidden=(), dropout=0.9), an_input(name)
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_without_dropout_training_and_evaluation_agree(name: str) -> None:
    module, x = NETWORKS[name](hidden=(16,)), an_input(name)
    assert torch.equal(module(x), module.eval()(x))


def test_dropout_keeps_the_expectation_and_drops_its_share() -> None:
    module = MLPEncoder((1, 1, 1), 1, hidden=(4000,), dropout=0.3)
    hidden = module.hidden(torch.ones(1, 1))
    kept = module.eval().hidden(torch.ones(1, 1))
    alive = kept > 0
    share = (hidden[alive] == 0).double().mean().item()
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / alive.sum().item()))
    torch.testing.assert_close(hidden[hidden > 0], kept[hidden > 0] / 0.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_drops_a_share_finer_than_half_precision(dtype: torch.dtype) -> None:
    """Uniform numbers of bfloat16 are multiples of 1/256: one below 0.002 would come twice as often."""
    module, count = Dropout(0.002), 10**6
    dropped = module(torch.ones(count, dtype=dtype)) == 0
    assert dropped.double().mean().item() == pytest.approx(0.002, abs=5 * math.sqrt(0.002 / count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout_has_torchs_gradient(p: float, dtype: torch.dtype) -> None:
    x = torch.rand(50, 40, dtype=dtype).add_(1).requires_grad_()
    out = Dropout(p)(x)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, out.detach() / x.detach())  # 0 or 1 / (1 - p)
    torch.testing.assert_close(out[out > 0], x[out > 0] / (1 - p), rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_the_one_named(activation: str) -> None:
    functional: dict[str, Any] = {
        "leaky_relu": nn.functional.leaky_relu,
        "elu": nn.functional.elu,
        "silu": nn.functional.silu,
    }
    functional |= {"gelu": nn.functional.gelu, "softplus": nn.functional.softplus}
    expected = functional.get(activation) or getattr(torch, activation)
    x = torch.randn(3, 5)
    module = MLPEncoder((5, 1, 1), 2, hidden=(4,), activation=activation)
    torch.testing.assert_close(module.hidden(x), expected(module.hidden[0](x)))


@pytest.mark.parametrize("channels", [1, 3, 8, 12])
@pytest.mark.parametrize(("norm", "groups"), [("batch", 0), ("group", 8), ("layer", 1)])
def test_norms_normalise_what_they_name(norm: str, groups: int, channels: int) -> None:
    (layer,) = norm_layer(norm, channels)
    offsets = torch.arange(1.0, channels + 1).view(-1, 1, 1)
    y = layer(offsets + torch.randn(16, channels, 6, 7))
    if norm == "batch":
        y = y.transpose(0, 1)  # one row for each channel
    else:
        groups = math.gcd(groups, channels)
        assert groups == channels or y[0].mean((1, 2)).std() > 0.2  # channels of one group keep their differences
        y = y.reshape(16 * groups, -1)
    rows = y.flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows)), rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.var(1, correction=0), torch.ones(len(rows)), rtol=1e-3, atol=0)


def test_no_norm_is_no_layer() -> None:
    assert not list(norm_layer("none", 3))


@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer"])
def test_normed_networks_fit_every_width(norm: str) -> None:
    settings: dict[str, Any] = {"channels": (3, 6), "norm": norm, "hidden": (5,)}
    x = torch.rand(3, 2, 7, 5)
    assert ConvDecoder(4, (2, 7, 5), **settings)(ConvEncoder((2, 7, 5), 4, **settings)(x)).shape == x.shape


@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer"])
@pytest.mark.parametrize("pool", ["none", "max", "avg"])
def test_the_image_itself_is_neither_normed_nor_activated(norm: str, pool: str) -> None:
    decoder = ConvDecoder(4, (2, 7, 5), channels=(3, 6), stride=1, norm=norm, pool=pool, hidden=())
    assert decoder.out is list(decoder.modules())[-1]
    assert isinstance(decoder.out, nn.ConvTranspose2d)
    assert decoder.out.bias is not None
    decoder.out.bias.data = torch.tensor([-1000.0, 1000.0])
    image = decoder(torch.randn(3, 4))
    assert (image[:, 0] < -900).all()
    assert (image[:, 1] > 900).all()


def test_a_convolution_sees_a_shift_where_a_linear_layer_does_not() -> None:
    """With stride 1 and no pooling the features of a moved spot are the moved features of the spot."""
    encoder = ConvEncoder((1, 9, 9), 4, channels=(2, 3), kernel_size=3, stride=1, padding=1)
    x, moved = torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)
    x[..., 3, 3], moved[..., 4, 5] = 1, 1
    shifted = encoder.convolutions(x).roll((1, 2), (2, 3))[..., 2:7, 3:8]
    torch.testing.assert_close(encoder.convolutions(moved)[..., 2:7, 3:8], shifted)
