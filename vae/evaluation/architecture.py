"""A model's layers with their shapes and numbers of parameters, as they are built, and their picture."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from vae.evaluation.figures.page import DEV, chart, drawn
from vae.model import VAE

Shape = tuple[int, ...]


class Layer(NamedTuple):
    """A layer with weights, and what follows it without any; `shape` is what comes out, without the batch."""

    names: list[str]
    shape: Shape
    parameters: int


@torch.no_grad()
def layers_of(half: nn.Module, call: Callable[[Tensor], object], x: Tensor) -> list[Layer]:
    """The layers of an encoder or decoder in the order in which `call(x)` passes them, for one image or z."""
    found: list[Layer] = []

    def seen(module: nn.Module, _: object, out: Tensor) -> None:
        count, shape = sum(p.numel() for p in module.parameters()), tuple(out.shape[1:])
        name = type(module).__name__ + (f" {module.p:g}" if isinstance(module, nn.Dropout) else "")
        if count or not found:
            found.append(Layer([name], shape, count))
        else:
            found[-1] = Layer([*found[-1].names, name], shape, found[-1].parameters)

    hooks = [m.register_forward_hook(seen) for m in half.modules() if not [*m.children()]]
    call(x)
    for hook in hooks:
        hook.remove()
    return found


def architecture(vae: VAE) -> dict[str, tuple[str, str, list[Layer]]]:
    """Of each half: what goes in, what comes out, and its layers."""
    training = vae.training
    vae.eval()
    x, z = vae.prior_loc.new_zeros(1, *vae.image_shape), vae.prior_loc.new_zeros(1, 1, vae.latent_dim)
    image, label = by(vae.image_shape), ", class" if vae.classes else ""
    encoder = layers_of(vae.encoder, lambda x: vae.encode(x, 0), x)
    decoder = layers_of(vae.decoder, lambda z: vae.decode(z, 0), z)
    halves = {
        "Encoder": (f"x  {image}{label}", f"q(z|x), {vae.latent_dim} latents", encoder),
        "Decoder": (f"z  {vae.latent_dim}{label}", f"p(x|z), {type(vae.likelihood).__name__}", decoder),
    }
    vae.train(training)
    return halves


def by(shape: Shape) -> str:
    """1 x 28 x 28."""
    return " x ".join(map(str, shape))


@drawn
def architecture_figure(vae: VAE, caption: str) -> Figure:
    """The halves side by side, a box per layer, from the live model."""
    halves = architecture(vae)
    rows = max(len(layers) for _, _, layers in halves.values()) + 2
    figure, axes = chart(1000, 90 + 72 * rows, f"{caption}; {vae.parameter_count:,} parameters", columns=2)
    for axis, (title, (start, end, layers)) in zip(axes, halves.items(), strict=True):
        axis.set_title(f"{title}: {sum(layer.parameters for layer in layers):,} parameters")
        axis.set(xlim=(0, 1), ylim=(rows - 0.5, -0.5))
        axis.set_axis_off()
        words = [f"{', '.join(each.names)}\n{by(each.shape)}, {each.parameters:,} parameters" for each in layers]
        for row, text in enumerate([start, *words, end]):
            box = {"boxstyle": "round,pad=0.5", "facecolor": "#e8f0fa" if text in words else "white", "edgecolor": DEV}
            arrow = {"arrowstyle": "<|-", "color": DEV, "shrinkA": 0, "shrinkB": 0}
            place: dict[str, Any] = {"ha": "center", "va": "center", "bbox": box, "arrowprops": arrow if row else None}
            axis.annotate(text, (0.5, row - 0.66), (0.5, row), **place)
    return figure
