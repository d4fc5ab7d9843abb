"""`vae export RUN`: encoder and decoder in a file each, to be used without this package.

torch and safetensors hold the weights of two `nn.Sequential`s, whose layers model.json lists. onnx holds two graphs:
images to the mean and standard deviation of z, and z to the mean of x.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae.commands.options import Chosen
from vae.commands.output import cannot_write, check_folder, require_only
from vae.distributions import LEVELS, ContinuousBernoulli, DiscretizedLogistic
from vae.errors import InputError
from vae.files import replace, whole_file, whole_folder
from vae.model import VAE
from vae.networks import describe_layer, plain_layers
from vae.run.load import TrainedRun

HALVES = ("encoder", "decoder")
OPSET = 18


def export(chosen: Chosen, format_: str, out: str | None, force: bool) -> None:
    """Writes the files to a folder that is there as a whole or not at all, and prints their names."""
    own = (*HALVES, "model")
    place = check_folder(out, force, own)
    run = chosen.open()
    folder = place or run.directory / f"export_{format_}"
    require_only(folder, own)
    vae = run.vae.cpu().eval()
    if vae.classes:
        raise InputError("model.conditional=true: exports have no input for labels; use the model through load_run")
    try:
        with whole_folder(folder) as new:
            described = write_onnx(vae, new) if format_ == "onnx" else write_weights(vae, new, format_)
            replace(new / "model.json", (json.dumps(common(run, format_) | described, indent=2) + "\n").encode())
    except OSError as error:
        raise cannot_write(folder, error) from error
    for file in sorted(folder.iterdir()):
        print(file)


def write_weights(vae: VAE, folder: Path, format_: str) -> dict[str, Any]:
    """A file per half; returns what model.json says of them."""
    halves = {half: sequential(vae, half) for half in HALVES}
    described = describe_layers(vae, halves)
    for half, layers in halves.items():
        _write_weights(folder / f"{half}.{'pt' if format_ == 'torch' else 'safetensors'}", layers, format_)
    return described


def common(run: TrainedRun, format_: str) -> dict[str, Any]:
    """What model.json says in every format."""
    vae, plain = run.vae, run.settings.plain
    return {
        "format": format_,
        "run": run.directory.absolute().name,
        "image_shape": list(vae.image_shape),
        "images": "float32 in [0, 1], (B, C, H, W)",
        "binarize": plain["data"].get("binarize", "none"),
        "latent_dim": vae.latent_dim,
        "likelihood": type(vae.likelihood).__name__,
        "normalised": vae.likelihood.normalised,
        "prior": type(vae.prior).__name__ + (", zero mean and unit variance" if is_standard(vae) else ""),
    }


def is_standard(vae: VAE) -> bool:
    prior = vae.prior
    try:
        return bool((prior.mean == 0).all() and (prior.stddev == 1).all()) and not prior.event_shape
    except NotImplementedError:
        return False


# --- weights for plain torch ------------------------------------------------------------------------------------------


def sequential(vae: VAE, half: str) -> nn.Sequential:
    """A half as a plain stack of torch's own layers, which share its weights; raises InputError for an own network."""
    try:
        return nn.Sequential(*plain_layers(getattr(vae, half)))
    except InputError as error:
        raise InputError(f"--format: {error}; take --format onnx") from error


def describe_layers(vae: VAE, halves: dict[str, nn.Sequential]) -> dict[str, Any]:
    """What plain torch needs beside the weights."""
    head = vae.likelihood.describe()
    return {
        "use": "net = nn.Sequential(*(getattr(nn, layer['type'])(**layer['arguments']) for layer in layers)); "
        "net.load_state_dict(weights); net.eval()",
        "layers": {half: [describe_layer(layer) for layer in net] for half, net in halves.items()},
        "encoder_output": posterior_in_words(vae),
        "decoder_output": "params.view(B, P, C, H, W)",
        "params_per_pixel": head["params_per_pixel"],
        "mean_of_x": head["mean"] or "the likelihood is an own one",
        **{name: head[name] for name in ("sigma", "min_sigma", "min_scale") if head.get(name) is not None},
    }


def posterior_in_words(vae: VAE) -> str:
    kind = type(getattr(vae, "posterior_head", None)).__name__
    if kind in ("NoneType", "Diagonal"):
        return "mu, log_var = output.chunk(2, dim=1); q(z|x) = N(mu, exp(log_var))"
    return f"what the posterior {kind} is made of; take --format onnx for its mean"


def _write_weights(path: Path, net: nn.Module, format_: str) -> None:
    weights = {name: value.detach().contiguous().clone() for name, value in net.state_dict().items()}
    if format_ == "torch":
        with whole_file(path) as file:
            torch.save(weights, file)
        return
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise InputError("safetensors is not installed; pip install 'vae-lightning[export]'") from error
    replace(path, save(weights))


# --- graphs for onnx --------------------------------------------------------------------------------------------------


class Encode(nn.Module):
    """x (B, C, H, W) -> the mean (B, D) of q(z|x) and, where it has one, its standard deviation (B, D)."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q = self.vae.encode(x)
        return (q.mean, q.stddev) if has_stddev(q) else (q.mean,)


class Decode(nn.Module):
    """z (B, D) -> the mean (B, C, H, W) of p(x|z)."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return mean_of(self.vae.decode(z.unsqueeze(0))).squeeze(0)


def mean_of(p: torch.distributions.Distribution) -> Tensor:
    """The mean of p(x|z) in operations that ONNX has in full precision (it has no expm1), and in few of them."""
    base = getattr(p, "base_dist", p)
    if isinstance(base, DiscretizedLogistic):
        thresholds = ((torch.arange(LEVELS) + 0.5) / LEVELS).split(17)  # 15 operations on 17 images each, not 255
        above = [torch.sigmoid((base.loc.unsqueeze(-1) - part) / base.scale.unsqueeze(-1)) for part in thresholds]
        return torch.stack([part.sum(-1) for part in above]).sum(0) / LEVELS
    if not isinstance(base, ContinuousBernoulli):
        return p.mean
    small = base.logits.abs() < 0.05
    safe = torch.where(small, 1.0, base.logits)
    return 0.5 + torch.where(small, base.logits / 12, 0.5 / torch.tanh(safe / 2) - 1 / safe)


def has_stddev(q: torch.distributions.Distribution) -> bool:
    try:
        _ = q.stddev
    except NotImplementedError:
        return False
    return True


def names(vae: VAE) -> dict[str, tuple[str, list[str]]]:
    """Of each half: its input, its outputs."""
    with torch.no_grad():
        spread = has_stddev(vae.encode(torch.zeros(2, *vae.image_shape)))
    return {"encoder": ("x", ["mean", "stddev"] if spread else ["mean"]), "decoder": ("z", ["x_mean"])}


def describe_onnx(vae: VAE) -> dict[str, Any]:
    return {
        half: {"input": given, "outputs": outputs, "batch": "any size, from 1"}
        for half, (given, outputs) in names(vae).items()
    }


def write_onnx(vae: VAE, folder: Path) -> dict[str, Any]:
    """A graph per half; returns what model.json says of them."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # what torch writes the file by
    except ImportError as error:
        raise InputError("onnx and onnxscript are not installed; pip install 'vae-lightning[export]'") from error
    for noisy in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    shapes = {"encoder": vae.image_shape, "decoder": (vae.latent_dim,)}
    for half, net in (("encoder", Encode(vae)), ("decoder", Decode(vae))):
        given, outputs = names(vae)[half]
        program = torch.onnx.export(
            net.eval(), (torch.zeros(2, *shapes[half]),), input_names=[given], output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
        assert program is not None
        with whole_file(folder / f"{half}.onnx") as file:
            onnx.save(program.model_proto, file)
    return describe_onnx(vae)
