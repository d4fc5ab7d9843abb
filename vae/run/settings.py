"""Refuses a configuration that cannot be used, and derives what follows from one: by which metric an epoch is best."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from vae.errors import InputError
from vae.run.keys import (
    CONF,
    MOST_LATENTS,
    PLACES,
    Plain,
    Settings,
    expand_place,
    known_keys,
    nearest,
    show,
    targets,
    walk,
)
from vae.run.own_modules import find_own_modules
from vae.run.own_parts import GROUPS_OF_PARTS, check_own_part, import_target
from vae.words import ERRORS

EXTRAS = ("mlflow", "wandb")  # loggers that need a package of the same name


def resolve(cfg: DictConfig) -> Plain:
    """Plain containers with every interpolation filled in, which is what a run is identified by."""
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{error.full_key}: {first}; see `python train.py --help`") from error
    plain = {str(name): value for name, value in cast(Plain, container).items()}
    _expand_places(plain)
    return plain


def _expand_places(plain: Plain) -> None:
    """`~` in paths is the home, in files of settings as on the command line."""
    for key in PLACES:
        group, _, name = key.rpartition(".")
        node = plain.get(group) if group else plain
        if isinstance(node, dict) and isinstance(node.get(name), str):
            try:
                node[name] = expand_place(node[name])
            except InputError as error:
                raise InputError(f"{key}={error}") from error


def check(cfg: DictConfig) -> Settings:
    """The resolved configuration; raises InputError, one line, for the first key or value that cannot be used."""
    return verify(resolve(cfg))


def verify(plain: Plain) -> Settings:
    """The same settings, typed; raises InputError as `check` does. A file's are for `vae.run.load`."""
    settings = read(plain)
    find_own_modules(str(value) for place, value in walk(plain) if place[-1] == "_target_")
    for group, node in _own_parts(plain):
        check_own_part(group, node)
    _check_together(settings)
    return settings


def read(plain: Plain) -> Settings:
    """The settings, typed, key by key; no own part is imported."""
    try:
        settings = Settings.model_validate(plain)
    except ValidationError as error:
        raise InputError(_explain(error, plain)) from None
    settings._plain = plain
    return settings


def _own_parts(plain: Plain) -> Iterator[tuple[str, Plain]]:
    own = [f"{group}.{name}" for group in ("callbacks.extra", "logger") for name in _at(plain, group) or {}]
    for group in (*GROUPS_OF_PARTS, *own):
        node = _at(plain, group)
        if group in own and not (isinstance(node, dict) and node.get("_target_")):
            raise InputError(f"{group}: names no part; give {group}._target_=package.module.Name")
        if isinstance(node, dict) and node.get("_target_") not in targets() and not _is_preset(group, node):
            yield group, node


def _is_preset(group: str, node: Plain) -> bool:
    """Whether a file of conf/ names this logger and these keys; raises InputError where its package is absent."""
    file = Path(CONF, *group.split(".")).with_suffix(".yaml")
    preset = yaml.safe_load(file.read_text())[file.stem] if group.startswith("logger.") and file.exists() else {}
    if node["_target_"] != preset.get("_target_"):
        return False
    if file.stem in EXTRAS and find_spec(file.stem) is None:
        raise InputError(f"logger={file.stem}: {file.stem} is not installed; pip install '.[{file.stem}]'")
    return node.keys() <= preset.keys()


def _at(plain: Plain, dotted: str) -> Any:
    node: Any = plain
    for name in dotted.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _explain(error: ValidationError, plain: Plain) -> str:
    """The first fault as one line; types of a union stand in pydantic's place and are passed over."""
    fault = error.errors()[0]
    node, path = plain, []
    for name in fault["loc"]:
        if isinstance(node, dict) and (name in node or (fault["type"] == "missing" and name == fault["loc"][-1])):
            path.append(str(name))
            node = node.get(str(name), {})
    name = ".".join(path)
    known = known_keys()
    if fault["type"] == "extra_forbidden" or (name not in known and fault["type"] != "missing"):
        return f"{name}={show(node)}: there is no such key; {nearest(name, [*known])}"
    if fault["type"] == "missing":
        example = f"for example {name}={known[name].example}" if name in known else "choose one of its options"
        return f"{name}: is missing; {example}; see `python train.py --help`"
    return f"{name}={show(node)}: must be {known[name].allowed}; for example {name}={known[name].example}"


def _check_together(s: Settings) -> None:
    """Values that are fine alone and not together."""
    if s.evaluation.features and s.evaluation.generated < 10:
        raise InputError(
            f"evaluation.generated={s.evaluation.generated}: evaluation.features=true needs at least 10 samples; "
            "for example evaluation.generated=10000, or evaluation.features=false"
        )
    _check_latents(s)
    _check_data(s.plain["data"])
    if s.model.conditional and s.plain["prior"].get("_target_") == "vae.priors.Vamp":
        raise InputError("model.conditional=true: the pseudo-inputs of prior=vamp have no labels; take another prior")
    if s.model.conditional and s.evaluation.annealing:
        raise InputError("evaluation.annealing: is not there for model.conditional=true; take evaluation.annealing=0")
    _check_likelihood(s)
    _check_clipping(s)
    _check_optimizer(s.plain)


def _check_data(data: Plain) -> None:
    needed = {"vae.data.Folder": "a folder of PNG or JPEG images", "vae.data.Arrays": "an .npz or .npy file"}
    if (what := needed.get(str(data.get("_target_")))) and not data.get("path"):
        raise InputError(f"data.path: is missing; give {what}, for example data.path=mine")


def _check_likelihood(s: Settings) -> None:
    """What depends on the class of the likelihood. The default needs no check, which would import torch."""
    target, iwae = s.likelihood.target, s.objective.target == "vae.objectives.IWAE"
    needs_nats = iwae or s.evaluation.annealing or s.callbacks.monitor in ("dev/elbo", "dev/neg_elbo")
    if target in ERRORS and not needs_nats:
        return
    head = import_target("likelihood", target)
    if s.evaluation.annealing and not head.normalised:
        raise InputError(
            f"evaluation.annealing={s.evaluation.annealing}: {head.__name__} has no NLL; take a likelihood in "
            "nats, or evaluation.annealing=0"
        )
    if head.normalised and s.callbacks.monitor == "dev/unweighted_loss":
        raise InputError("callbacks.monitor=dev/unweighted_loss: the likelihood is normalised; take dev/neg_elbo")
    if not head.normalised and s.callbacks.monitor in ("dev/elbo", "dev/neg_elbo"):
        raise InputError(
            f"callbacks.monitor={s.callbacks.monitor}: likelihood={head.__name__} is not normalised and has no ELBO in "
            "nats; take callbacks.monitor=dev/loss or a normalised likelihood such as likelihood=gaussian"
        )
    if not head.normalised and iwae:
        raise InputError(
            f"objective=iwae: importance weights need a likelihood in nats, and {head.__name__} is not normalised; "
            "take likelihood=gaussian (or another normalised one), or objective=elbo"
        )
    if getattr(head, "support", "") == "binary" and s.plain["data"].get("binarize") == "none":
        raise InputError(
            "likelihood=bernoulli: data.binarize=none leaves grey levels, and it is defined on 0 and 1 only; "
            "take data.binarize=dynamic (or static, threshold), or likelihood=continuous_bernoulli"
        )


def _check_latents(s: Settings) -> None:
    """What a prior, a posterior and an objective need of one another.

    By the names of their classes, so that a refusal waits for no import of torch.
    """
    prior, posterior, objective = (str(part.target).rpartition(".")[2] for part in (s.prior, s.posterior, s.objective))
    norm, given = s.plain["model"]["encoder"].get("norm"), s.plain["objective"]
    by_latent = prior == "Standard" and posterior == "Diagonal"
    refusals = {
        "latent_dim=1: prior=flow moves latents by one another; take latent_dim=2 or more": (
            prior == "Flow" and s.latent_dim == 1
        ),
        "latent_dim=1: posterior=iaf moves latents by one another; take latent_dim=2 or more": (
            posterior == "IAF" and s.latent_dim == 1
        ),
        f"latent_dim={s.latent_dim}: posterior=full takes at most {MOST_LATENTS} latents, as its covariance grows with "
        "their square; take posterior=diagonal or iaf": posterior == "Full" and s.latent_dim > MOST_LATENTS,
        "posterior=iaf: prior=vamp is a mixture of Gaussian posteriors; take posterior=diagonal or full": (
            prior == "Vamp" and posterior == "IAF"
        ),
        "model.encoder.norm=batch: prior=vamp would mix its pseudo-inputs into the images' statistics; take "
        "model.encoder.norm=group or layer": prior == "Vamp" and norm == "batch",
        "objective.gradient=dreg: needs the density of a Gaussian posterior, and posterior=iaf is none; take "
        "objective.gradient=plain": posterior == "IAF" and given.get("gradient") == "dreg",
        f"posterior={posterior.lower()}: objective=tc needs the density of each latent by itself; take "
        "posterior=diagonal": objective == "TotalCorrelation" and posterior in ("Full", "IAF"),
        f"objective.free_bits={given.get('free_bits')}: is a floor under the KL of each latent, which takes "
        "prior=standard and posterior=diagonal; take objective.free_bits=0": given.get("free_bits") and not by_latent,
    }
    for refusal, met in refusals.items():
        if met:
            raise InputError(refusal)


def _check_clipping(s: Settings) -> None:
    value = s.plain["trainer"]["gradient_clip_val"]
    if value is not None and s.trainer.precision == "16-mixed" and s.plain["optimizer"].get("fused"):
        raise InputError(
            f"trainer.gradient_clip_val={value}: under trainer.precision=16-mixed a fused optimizer takes the loss's "
            "scale off within its step, after clipping; take optimizer.fused=false or trainer.precision=bf16-mixed"
        )


def _check_optimizer(plain: Plain) -> None:
    optimizer, scheduler, epochs = plain["optimizer"], plain["scheduler"], plain["trainer"]["max_epochs"]
    if optimizer.get("nesterov") and not optimizer.get("momentum"):
        raise InputError("optimizer.nesterov=true: needs momentum above 0; for example optimizer.momentum=0.9")
    if "pct_start" in scheduler and scheduler.get("epochs", epochs) < epochs:
        raise InputError(
            f"trainer.max_epochs={epochs}: scheduler=one_cycle ends after scheduler.epochs={scheduler['epochs']}; "
            f"take scheduler.epochs={epochs} in a new run_dir, or no more than {scheduler['epochs']} epochs"
        )


def monitored(plain: Plain, normalised: bool) -> tuple[str, str]:
    """The metric that the best epoch is best by, and `min` or `max`.

    Where beta has a schedule, the losses of two epochs do not compare: the loss with beta 1 takes their place.
    """
    name: str = plain["callbacks"]["monitor"]
    beta = plain["objective"].get("beta", 1.0)
    if name == "dev/loss" and isinstance(beta, dict) and beta.get("_target_") != "vae.schedules.constant":
        name = unweighted(normalised)
    return name, "max" if name == "dev/elbo" else "min"


def unweighted(normalised: bool) -> str:
    """Reconstruction + KL with beta 1: the negative ELBO where the likelihood is normalised."""
    return "dev/neg_elbo" if normalised else "dev/unweighted_loss"


def watched_by_plateau(s: Settings, normalised: bool) -> str:
    """What the plateau scheduler waits for: the lower, the better."""
    name, mode = monitored(s.plain, normalised)
    return unweighted(normalised) if mode == "max" else name


def caption(plain: Plain) -> str:
    """What every figure says of its data: the set and, since nats depend on it, how it was binarised."""
    data = plain["data"]
    grey = data.get("binarize", "none")
    name = Path(data["path"]).name if data.get("path") else str(data["_target_"]).rpartition(".")[2]
    return f"{name}, {'grey levels' if grey == 'none' else f'{grey} binarisation'}"
