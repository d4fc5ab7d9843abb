"""Settings -> data and model."""

from functools import partial
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from vae.data.batches import as_floats
from vae.data.module import ImageDataModule
from vae.errors import InputError
from vae.model import VAE
from vae.noise import derive
from vae.objectives import ELBO, IWAE
from vae.run import settings
from vae.run.memory import require_memory
from vae.run.settings import Settings, plateau_watches
from vae.training.lit import LitVAE


def build(cfg: DictConfig | Settings) -> tuple[LitVAE, ImageDataModule]:
    """The model and its data, set up (reads the files); raises InputError for what cannot be used or does not fit."""
    s = settings.check(cfg) if isinstance(cfg, DictConfig) else cfg
    data = build_data(s)
    return build_model(s, data), data


def made(group: str, node: Settings) -> Any:
    """The object that a group describes; raises InputError for keys that do not belong to the option chosen.

    Hydra checks keys against the files of a group, not those that a recipe left behind under another option.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        given = ", ".join(f"{group}.{key}" for key in node if not key.startswith("_"))
        raise InputError(
            f"{group}: {node['_target_']} does not take these keys ({given}): {error.__cause__}; choose the option on "
            f"the command line without a recipe that sets other keys of {group}"
        ) from error


def build_data(s: Settings) -> ImageDataModule:
    data = made("data", s["data"])
    data.prepare_data()
    data.setup()
    return data


def build_model(s: Settings, data: ImageDataModule) -> LitVAE:
    """Weights are a function of the seed; the images are checked against the likelihood's support."""
    decoder = dict(s["model"]["decoder"])
    init_bias = decoder.pop("init_bias")
    build_vae = partial(_build_vae, s, decoder, data.image_shape)
    require_memory(build_vae, _widths(s))
    torch.default_generator.manual_seed(derive(s["seed"], "weights"))
    vae = build_vae()
    vae.likelihood.check(as_floats(data.dev.images))
    if init_bias == "data":
        start_at_mean(vae, data.train.images)
    if s["compile"]:
        vae.encoder.compile(mode=s["compile"])
        vae.decoder.compile(mode=s["compile"])
    has_schedule = s["scheduler"]["_target_"] is not None
    return LitVAE(
        vae,
        objective=build_objective(s),
        optimizer=made("optimizer", s["optimizer"]),
        scheduler=made("scheduler", s["scheduler"]) if has_schedule else None,
        seed=s["seed"],
        settings=s,
        monitor=plateau_watches(s),
    )


def _build_vae(s: Settings, decoder: Settings, image_shape: tuple[int, int, int]) -> VAE:
    return VAE(
        encoder=made("model.encoder", s["model"]["encoder"]),
        decoder=made("model.decoder", decoder),
        likelihood=made("likelihood", s["likelihood"]),
        latent_dim=s["latent_dim"],
        image_shape=image_shape,
    )


def _widths(s: Settings) -> Settings:
    """The keys that a model's size depends on, with their values."""
    halves = {"latent_dim": s["latent_dim"]} | dict(settings.leaves(s["model"], "model."))
    return {key: value for key, value in halves.items() if key.endswith(("latent_dim", ".hidden", ".channels"))}


def build_objective(s: Settings) -> ELBO | IWAE:
    return made("objective", s["objective"])


@torch.no_grad()
def start_at_mean(vae: VAE, images: Tensor) -> None:
    """The last bias gives the training mean at the start: per pixel in an MLP, per channel in a convolution."""
    mean = images.double().mean(0).div(255).float()  # (C, H, W)
    bias: Tensor = vae.decoder.out.bias  # type: ignore[union-attr, assignment]  # every decoder ends in a layer `out`
    if bias.numel() % mean.numel():
        mean = mean.mean((1, 2))
    bias[: mean.numel()] = vae.likelihood.inverse_mean(mean).flatten()
