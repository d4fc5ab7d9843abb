"""Settings -> data and model."""

from collections.abc import Mapping
from functools import partial
from inspect import signature
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor

from vae.data.module import ImageDataModule
from vae.errors import InputError
from vae.model import VAE
from vae.networks import Shape
from vae.noise import derive
from vae.objectives import Objective
from vae.pixels import as_floats
from vae.run.keys import Plain, Settings, leaves
from vae.run.memory import require_memory
from vae.run.parts import import_target
from vae.run.settings import watched_by_plateau
from vae.training.lit import LitVAE


def build(settings: Settings) -> tuple[LitVAE, ImageDataModule]:
    """The model and its data, set up (reads the files); raises InputError for what cannot be used or does not fit."""
    data = build_data(settings)
    return build_model(settings, data), data


def require_enough(settings: Settings, data: ImageDataModule) -> None:
    """Raises InputError for images on which the evaluation would fail after the training."""
    height, width = data.image_shape[1:]
    if data.train.images[0].numel() < 4:
        raise InputError(f"images of {height} x {width} pixels cannot be modelled; give at least 4 pixels")
    if data.classes < 2:
        return
    if settings.evaluation.features and (min(height, width) < 4 or len(data.test) < 4):
        raise InputError(
            f"evaluation.features=true: the classifier needs 4 test images of 4 x 4 pixels or more, and there are "
            f"{len(data.test)} of {height} x {width}; give more, or set evaluation.features=false"
        )
    if settings.evaluation.probes and len(data.train.labels.unique()) < 2:
        raise InputError(
            "evaluation.probes=true: all training images are of one class; set data.split=random, give more images, or "
            "set evaluation.probes=false"
        )


def instantiate_part(group: str, node: Mapping[str, Any]) -> Any:
    """The object that a group describes; raises InputError, with the cause, where it cannot be built."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        cause = error.__cause__
        first = (str(cause).splitlines() or [""])[0]
        raise InputError(f"{group}: {node['_target_']} cannot be built ({type(cause).__name__}: {first})") from error


def build_data(settings: Settings) -> ImageDataModule:
    data = instantiate_part("data", settings.plain["data"])
    if getattr(import_target("objective", settings.objective["_target_"]), "whole_batch", False):
        data.eval_batch_size = data.batch_size  # its loss depends on the batch: train and dev are to compare
    data.prepare_data()
    data.setup()
    return data


def build_model(settings: Settings, data: ImageDataModule) -> LitVAE:
    """Weights are a function of the seed; the images are checked against the likelihood's support."""
    require_enough(settings, data)
    require_memory(partial(build_vae, settings, data.image_shape, data.classes), _widths(settings.plain))
    vae = build_vae(settings, data.image_shape, data.classes)
    vae.check_images(as_floats(data.dev.images))
    if getattr(vae.decoder, "init_bias", None) == "data":
        start_at_mean(vae, data.train.images)
    vae.prior_head.start_at(data.train.images, derive(settings.seed, "prior"))
    if settings.compile:
        vae.encoder.compile(mode=settings.compile)
        vae.decoder.compile(mode=settings.compile)
    return build_lit(settings, vae, data.facts)


def build_vae(settings: Settings, image_shape: Shape, classes: int = 0) -> VAE:
    """`classes` of the data; raises InputError where a conditional model has none."""
    plain = settings.plain
    if settings.model.conditional and not classes:
        raise InputError("model.conditional=true: the images have no labels; give labels, or take false")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are as before
        torch.default_generator.manual_seed(derive(settings.seed, "weights"))
        return VAE(
            encoder=instantiate_part("model.encoder", plain["model"]["encoder"]),
            decoder=instantiate_part("model.decoder", plain["model"]["decoder"]),
            likelihood=instantiate_part("likelihood", plain["likelihood"]),
            latent_dim=settings.latent_dim,
            image_shape=image_shape,
            prior=instantiate_part("prior", plain["prior"]),
            posterior=instantiate_part("posterior", plain["posterior"]),
            classes=classes if settings.model.conditional else 0,
        )


def _widths(plain: Plain) -> Plain:
    """The keys that a model's size depends on, with their values."""
    parts = {"latent_dim": plain["latent_dim"]}
    for group in ("model", "prior", "posterior"):
        parts |= dict(leaves(plain[group], f"{group}."))
    wide = ("latent_dim", ".hidden", ".channels", ".inputs", ".components")
    return {key: value for key, value in parts.items() if key.endswith(wide)}


def build_lit(settings: Settings, vae: VAE, data_facts: Plain | None = None) -> LitVAE:
    plain = settings.plain
    objective = build_objective(settings)
    if vae.classes and not takes_labels(objective):
        raise InputError(
            f"model.conditional=true: objective={type(objective).__name__} takes no labels; let its __call__ take "
            "(vae, x, step, y), or take model.conditional=false"
        )
    has_schedule = plain["scheduler"]["_target_"] is not None
    return LitVAE(
        vae,
        objective=objective,
        optimizer=instantiate_part("optimizer", plain["optimizer"]),
        scheduler=instantiate_part("scheduler", plain["scheduler"]) if has_schedule else None,
        seed=settings.seed,
        settings=plain,
        monitor=watched_by_plateau(settings, vae.likelihood.normalised),
        data_facts=data_facts,
    )


def build_objective(settings: Settings) -> Objective:
    objective: Objective = instantiate_part("objective", settings.plain["objective"])
    return objective


def takes_labels(objective: Objective) -> bool:
    """Whether it can be called with labels y, as `terms_of` does for a conditional model."""
    try:
        signature(objective).bind("vae", "x", 0, "y")
    except TypeError:
        return False
    return True


@torch.no_grad()
def start_at_mean(vae: VAE, images: Tensor) -> None:
    """The last bias gives the training mean at the start: per pixel in an MLP, per channel in a convolution.

    Raises InputError for a decoder that does not end in a layer `out` with a bias.
    """
    bias = getattr(getattr(vae.decoder, "out", None), "bias", None)
    if bias is None:
        raise InputError(
            f"model.decoder.init_bias=data: {type(vae.decoder).__name__} ends in no layer `out` with a bias; "
            "take model.decoder.init_bias=null"
        )
    mean = images.double().mean(0).div(255).float()  # (C, H, W)
    if bias.numel() % mean.numel():
        mean = mean.mean((1, 2))
    bias[: mean.numel()] = vae.likelihood.inverse_mean(mean).flatten()
