"""Refuses a configuration that cannot be used, and derives what follows from one: by which metric an epoch is best."""

from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae.errors import InputError
from vae.run.keys import PLACES, SECTIONS, Settings, check_keys, expand_place, keys_of_section, nearest
from vae.run.parts import check_parts, fill_defaults, known_keys
from vae.types import Choices, Plain


def resolve(cfg: DictConfig) -> Plain:
    """Plain containers with every default and interpolation filled in, which is what a run is identified by."""
    try:
        fill_defaults(cfg)
        ours = OmegaConf.masked_copy(cfg, [str(group) for group in cfg if group != "hydra"])
        container = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
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
    _check_together(settings, check_parts(plain))
    return settings


def read(plain: Plain) -> Settings:
    """The settings, typed, without a look at the parts, which are not imported; raises InputError as `check` does."""
    return Settings(**_section(Settings, plain), plain=plain)


def _section(section: type, plain: Plain, prefix: str = "") -> dict[str, Any]:
    keys = keys_of_section(section)
    check_keys(prefix, keys, plain, lambda name: f"there is no such key; {nearest(f'{prefix}{name}', [*known_keys()])}")
    sections = SECTIONS if section is Settings else {}
    nested = {name: kind(**_section(kind, plain[name], f"{name}.")) for name, kind in sections.items()}
    return plain | nested


def _check_together(s: Settings, chosen: Choices) -> None:
    """Values that are fine alone and not together; what a part needs of the others, the part itself says."""
    likelihood = chosen.parts["likelihood"]
    if s.evaluation.features and s.evaluation.generated < 10:
        raise InputError(
            f"evaluation.generated={s.evaluation.generated}: evaluation.features=true needs at least 10 samples; "
            "for example evaluation.generated=10000, or evaluation.features=false"
        )
    if s.evaluation.annealing and s.model.conditional:
        raise InputError("evaluation.annealing: does not support conditional models; set evaluation.annealing=0")
    if s.evaluation.annealing and not likelihood.normalised:
        raise InputError(
            f"evaluation.annealing={s.evaluation.annealing}: {likelihood.__name__} has no NLL; choose a likelihood in "
            "nats, or evaluation.annealing=0"
        )
    if s.callbacks.monitor == "dev/unweighted_loss" and likelihood.normalised:
        raise InputError("callbacks.monitor=dev/unweighted_loss: the likelihood is normalised; choose dev/neg_elbo")
    if s.callbacks.monitor in ("dev/elbo", "dev/neg_elbo") and not likelihood.normalised:
        raise InputError(
            f"callbacks.monitor={s.callbacks.monitor}: {likelihood.__name__} is not normalised, so has no ELBO; "
            "choose callbacks.monitor=dev/loss or a normalised likelihood such as likelihood=gaussian"
        )
    clipping = s.trainer.gradient_clip_val
    if clipping is not None and s.trainer.precision == "16-mixed" and chosen["optimizer.fused"]:
        raise InputError(
            f"trainer.gradient_clip_val={clipping}: under trainer.precision=16-mixed a fused optimizer removes the "
            "scale of the loss within its step, after clipping; choose optimizer.fused=false or "
            "trainer.precision=bf16-mixed"
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


def caption(plain: Plain, channels: int | None = None) -> str:
    """What every figure says of its data: the set, colour, grey levels or, since nats depend on it, binarisation."""
    data = plain["data"]
    binarize = data.get("binarize", "none")
    name = Path(data["path"]).name if data.get("path") else str(data["_target_"]).rpartition(".")[2]
    if binarize != "none":
        return f"{name}, {binarize} binarisation"
    return name if channels is None else f"{name}, {'grey levels' if channels == 1 else 'colour'}"
