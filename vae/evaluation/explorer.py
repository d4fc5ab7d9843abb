"""A trained model as plain data, for a page that encodes and decodes in the browser.

The steps of a network here have their counterparts in `vae/commands/templates/nn.js`; browser tests compare the two.
"""

import base64
import copy
import gzip
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_hex
from torch import Tensor, nn

from vae import likelihoods
from vae.errors import InputError
from vae.evaluation import metrics
from vae.evaluation.draws import decode, encodable, prior_latents
from vae.evaluation.estimates import posteriors
from vae.evaluation.figures.page import class_colours
from vae.model import VAE
from vae.networks import describe_layer, plain_layers
from vae.pixels import as_floats
from vae.posteriors import Diagonal

LATENTS = 64  # sliders that a person can still find
PRIOR_DRAWS = 256
# Half of what the page promises (2/255 of an image, 1e-3 of a latent): float32 is taken where float16 is further off.
IMAGE_TOLERANCE, LATENT_TOLERANCE = 1 / 255, 5e-4


@torch.no_grad()
def explorer(
    vae: VAE,
    images: Tensor | None,
    labels: Sequence[int] | None,
    seed: int,
    binary: bool,
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything that the explorer shows, in JSON's types: both halves, the head, the prior's draws, encoded images.

    images: uint8 (N, C, H, W), or None where there are none to show; labels: (N,) or None, of `class_names`; `binary`:
    what is drawn is made black and white before it is encoded. Raises InputError for a model that it cannot compute.
    """
    check(vae)
    prior = prior_latents(vae, PRIOR_DRAWS, seed).to(vae.prior_loc)
    x = (decode(vae, prior, encodable(vae), seed) if images is None else as_floats(images)).to(vae.prior_loc)
    q = posteriors(vae, (x * 255).round().to(torch.uint8))
    z = torch.cat([q.mu.to(prior), prior])
    check_layers("encoder", vae.encoder, x[:100])
    check_layers("decoder", vae.decoder, z[:100])
    shown = (
        {}
        if images is None
        else {"images": packed(images.cpu().numpy()), "means": packed(q.mu.numpy()), "labels": labels}
    )
    active = metrics.active_units(q.mu) if len(q.mu) > 1 else torch.ones(vae.latent_dim, dtype=torch.bool)
    return {
        "image_shape": list(vae.image_shape),
        "latent_dim": vae.latent_dim,
        "binary": binary,
        "encoder": network(vae.encoder, encoder_fits(vae, x)),
        "decoder": network(vae.decoder, decoder_fits(vae, z)),
        "head": vae.likelihood.describe(),
        "low": z.amin(0).tolist(),
        "high": z.amax(0).tolist(),
        "use": (q.mu.var(0) if q.kl_per_latent is None else q.kl_per_latent).tolist(),
        "unit": "variance of the mean" if q.kl_per_latent is None else "nats",
        "active": active.tolist(),
        "prior": packed(prior.float().cpu().numpy()),
        "classes": list(class_names),
        "colours": [to_hex(colour) for colour in class_colours(len(class_names))] if len(class_names) > 10 else None,
        **shown,
    }


def check(vae: VAE) -> None:
    """Raises InputError, naming the part, for what the page's JavaScript does not know."""
    if vae.latent_dim > LATENTS:
        raise InputError(f"latent_dim={vae.latent_dim}: the explorer has sliders for {LATENTS} latents at most")
    if vae.classes:
        raise InputError("model.conditional=true: the explorer computes models without labels only")
    for name, part in {"encoder": vae.encoder, "decoder": vae.decoder}.items():
        try:
            list(map(describe_layer, plain_layers(part)))
        except InputError as error:
            raise InputError(f"model.{name}: {error}; the explorer cannot compute it") from error
    if type(vae.posterior_head) is not Diagonal:
        raise InputError(
            f"posterior={type(vae.posterior_head).__name__}: the explorer computes posterior=diagonal only"
        )
    if type(vae.likelihood) not in likelihoods.NAMES:
        raise InputError(
            f"likelihood={type(vae.likelihood).__name__}: the explorer computes the project's own likelihoods only"
        )


def check_layers(name: str, half: nn.Module, inputs: Tensor) -> None:
    """Raises InputError where the layers of an own network compute something else than its forward."""
    layers = nn.Sequential(*plain_layers(half))
    if not torch.allclose(layers(inputs).flatten(), half(inputs).flatten(), atol=1e-4):
        raise InputError(f"model.{name}={type(half).__name__}: its layers() do not compute what its forward() does")


def encoder_fits(vae: VAE, x: Tensor) -> bool:
    """Whether float16 weights of the encoder move no latent by more than the tolerance."""
    rounded = rounded_to_half(vae.encoder)
    return all(float((rounded(part) - vae.encoder(part)).abs().max()) < LATENT_TOLERANCE for part in x.split(500))


def decoder_fits(vae: VAE, z: Tensor) -> bool:
    """Whether float16 weights of the decoder move no pixel by more than the tolerance."""
    half = copy.copy(vae)
    half._modules = {**vae._modules, "decoder": rounded_to_half(vae.decoder)}
    return all(float((half.sample(part) - vae.sample(part)).abs().max()) < IMAGE_TOLERANCE for part in z.split(500))


def rounded_to_half(half: nn.Module) -> nn.Module:
    rounded = copy.deepcopy(half)
    for tensor in (*rounded.parameters(), *rounded.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    return rounded


def network(half: nn.Module, in_half: bool) -> dict[str, Any]:
    """`steps`, the layers as torch names them, and `weights`: one vector that they point into by (offset, length)."""
    steps, weights, size = [], [], 0
    for layer in plain_layers(half):
        places = {}
        for name, tensor in layer.state_dict().items():
            places[name] = [size, tensor.numel()]
            size += tensor.numel()
            weights.append(tensor.float().cpu().contiguous().flatten())
        steps.append(describe_layer(layer) | {"tensors": places})
    flat = torch.cat(weights).numpy()
    return {"steps": steps, "weights": packed(flat.astype(np.float16) if in_half else flat)}


def packed(array: np.ndarray) -> dict[str, Any]:
    """An array as the page's `unpack` reads it: gzipped, in base64, little-endian."""
    content = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()
    text = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
    return {"type": array.dtype.name, "shape": list(array.shape), "gzip": text}
