"""What every key of the configuration may be; checked before a file is written, a data set read or torch imported."""

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae.errors import InputError

Settings = dict[str, Any]


class Rule(NamedTuple):
    """What is allowed, in words, and whether a value is; `example` is what to write instead."""

    allowed: str
    accepts: Callable[[Any], bool]
    example: str


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def whole(low: int, example: int | None = None) -> Rule:
    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    return Rule(f"a whole number of at least {low}", accepts, str(low if example is None else example))


def real(low: float = -math.inf, high: float = math.inf, example: float = 0.0, open_low: bool = False) -> Rule:
    """A finite number with low <= value < high, or low < value."""

    def accepts(value: Any) -> bool:
        return _is_number(value) and (value > low if open_low else value >= low) and value < high

    lower = "" if low == -math.inf else (f" above {low:g}" if open_low else f" of at least {low:g}")
    upper = "" if high == math.inf else f" and below {high:g}" if lower else f" below {high:g}"
    return Rule(f"a finite number{lower}{upper}", accepts, f"{example:g}")


def choice(*options: str) -> Rule:
    return Rule("one of " + ", ".join(options), lambda value: value in options, options[0])


def listed(rule: Rule, empty: bool = False, length: int | None = None) -> Rule:
    def accepts(value: Any) -> bool:
        return (
            isinstance(value, list)
            and (empty or bool(value))
            and (length is None or len(value) == length)
            and all(rule.accepts(v) for v in value)
        )

    size = f" of {length}" if length else "" if empty else ", not empty"
    example = ",".join([rule.example] * (length or 2))
    return Rule(f"a list{size}, each {rule.allowed}", accepts, f"[{example}]")


def either(*rules: Rule) -> Rule:
    return Rule(
        ", or ".join(r.allowed for r in rules), lambda value: any(r.accepts(value) for r in rules), rules[0].example
    )


FLAG = Rule("true or false", lambda value: isinstance(value, bool), "true")

TEXT = Rule("a text, not empty", lambda value: isinstance(value, str) and bool(value), "outputs/mine")

NONE = Rule("null", lambda value: value is None, "null")

ANY = Rule("anything", lambda value: True, "")

SEED = Rule(
    "a whole number from 0 to 2^63 - 1",
    lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63,
    "0",
)

SHARE = real(0, 1, 0.3)

POSITIVE = real(0, example=0.001, open_low=True)

NOT_NEGATIVE = real(0, example=0.0)

ACTIVATION = choice("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "softplus", "sigmoid")


def _network(half: str) -> dict[str, Rule]:
    keys = {
        "hidden": listed(whole(1, 200), empty=True),
        "activation": ACTIVATION,
        "dropout": SHARE,
        "channels": listed(whole(1, 32)),
        "kernel_size": whole(1, 3),
        "stride": whole(1, 2),
        "padding": whole(0, 1),
        "pool": choice("none", "max", "avg"),
        "norm": choice("none", "batch", "group", "layer"),
    }
    return {f"model.{half}.{key}": rule for key, rule in keys.items()}


RULES: dict[str, Rule] = {
    "latent_dim": whole(1, 4),
    "dropout": SHARE,
    "seed": SEED,
    "threads": either(whole(1, 2), NONE),
    "compile": either(choice("default", "reduce-overhead"), NONE),
    "checkpoint": choice("last", "best"),
    "run_dir": TEXT,
    **_network("encoder"),
    **_network("decoder"),
    "model.decoder.init_bias": either(NONE, choice("data")),
    "likelihood.reconstruct": choice("sample", "mean"),
    "likelihood.mean": choice("sigmoid", "linear"),
    "likelihood.sigma": either(real(0, example=0.1, open_low=True), choice("shared", "pixel", "optimal")),
    "likelihood.min_sigma": POSITIVE,
    "likelihood.min_scale": POSITIVE,
    "objective.samples": whole(1),
    "objective.free_bits": NOT_NEGATIVE,
    "objective.gradient": choice("plain", "dreg"),
    "objective.beta": NOT_NEGATIVE,
    "objective.beta.value": NOT_NEGATIVE,
    "objective.beta.start": NOT_NEGATIVE,
    "objective.beta.end": NOT_NEGATIVE,
    "objective.beta.steps": whole(1, 10_000),
    "objective.beta.period": whole(1, 10_000),
    "objective.beta.ramp": real(0, 1.0000001, 0.5, open_low=True),
    "data.name": choice("mnist", "fashion_mnist", "kmnist", "digits"),
    "data.root": TEXT,
    "data.batch_size": whole(1, 100),
    "data.eval_batch_size": whole(1, 1000),
    "data.dev_size": either(whole(1, 10_000), NONE),
    "data.split": choice("last", "random"),
    "data.split_seed": SEED,
    "data.binarize": choice("none", "threshold", "static", "dynamic"),
    "data.num_workers": whole(0),
    "data.repeat": whole(1),
    "data.resident": either(FLAG, NONE),
    "data.mirrors": either(NONE, listed(TEXT)),
    "data.timeout": POSITIVE,
    "data.seed": SEED,
    "optimizer.lr": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.betas": listed(real(0, 1, 0.9), length=2),
    "optimizer.eps": POSITIVE,
    "optimizer.fused": either(FLAG, NONE),
    "optimizer.alpha": SHARE,
    "optimizer.momentum": SHARE,
    "optimizer.nesterov": FLAG,
    "optimizer.lr_decay": NOT_NEGATIVE,
    "scheduler.T_max": whole(1, 70),
    "scheduler.eta_min": NOT_NEGATIVE,
    "scheduler.warmup": whole(1, 5),
    "scheduler.epochs": whole(1, 70),
    "scheduler.max_lr": POSITIVE,
    "scheduler.pct_start": real(0, 1, 0.3, open_low=True),
    "scheduler.div_factor": POSITIVE,
    "scheduler.final_div_factor": POSITIVE,
    "scheduler.cycle_momentum": FLAG,
    "scheduler.start_factor": real(0, 1.0000001, 0.01, open_low=True),
    "scheduler.step_size": whole(1, 30),
    "scheduler.milestones": listed(whole(1)),
    "scheduler.gamma": POSITIVE,
    "scheduler.factor": real(0, 1, 0.5, open_low=True),
    "scheduler.patience": whole(0, 5),
    "scheduler.min_lr": NOT_NEGATIVE,
    "trainer.max_epochs": whole(1, 70),
    "trainer.accelerator": choice("auto", "cpu", "gpu", "cuda"),
    "trainer.devices": either(whole(1), listed(whole(0)), choice("auto")),
    "trainer.strategy": choice("auto", "ddp", "ddp_spawn", "ddp_fork"),
    "trainer.num_nodes": whole(1),
    "trainer.precision": choice("32-true", "bf16-mixed", "16-mixed", "64-true"),
    "trainer.gradient_clip_val": either(POSITIVE, NONE),
    "trainer.accumulate_grad_batches": whole(1),
    "trainer.deterministic": FLAG,
    "trainer.limit_train_batches": either(whole(1), NONE),
    "trainer.enable_progress_bar": either(FLAG, NONE),
    "callbacks.monitor": choice("dev/loss", "dev/bound", "dev/elbo", "dev/reconstruction", "dev/kl"),
    "callbacks.early_stopping": either(whole(1, 10), NONE),
    "callbacks.checkpoint_minutes": real(0, example=10, open_low=True),
    "callbacks.figures_every": whole(0, 10),
    "evaluation.samples": whole(0, 500),
    "evaluation.features": FLAG,
    "evaluation.generated": whole(0, 10_000),
    "evaluation.cache_dir": TEXT,
    "evaluation.probes": FLAG,
}

GROUPS = ("model", "likelihood", "objective", "data", "optimizer", "scheduler", "trainer", "callbacks", "evaluation")

SCALARS = ("latent_dim", "dropout", "seed", "threads", "compile", "checkpoint", "run_dir")


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value; a list is a value."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Plain containers with every interpolation filled in, which is what a run is identified by."""
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{error.full_key}: {first}; see `python train.py --help`") from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def nearest(key: str, known: list[str]) -> str:
    """The known key that a mistyped one most likely meant, matched whole or by its last part."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:
        last = {k.rpartition(".")[2]: k for k in known}
        close = [last[k] for k in difflib.get_close_matches(key.rpartition(".")[2], list(last), n=1, cutoff=0.6)]
    return f"did you mean {close[0]}?" if close else "`python train.py --help` lists the keys"


@functools.cache
def targets() -> frozenset[str | None]:
    """Everything that the files of conf/ build: a value from the command line can name nothing else to be called."""
    files = Path(CONF).rglob("*.yaml")
    named = (re.findall(r"^_target_: (\S+)", file.read_text(), re.MULTILINE) for file in files)
    return frozenset(None if name == "null" else name for names in named for name in names)


def check(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration; raises InputError, one line, for the first key or value that cannot be used."""
    return verify(resolved(cfg))


def verify(settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings, all of them usable, wherever they come from: a run's config.yaml is input too."""
    for group in GROUPS:
        if not isinstance(settings.get(group), dict):
            raise InputError(f"{group}: is missing; choose one of its options, see `python train.py --help`")
    for key in SCALARS:
        if key not in settings:
            raise InputError(f"{key}: is missing; for example {key}={RULES[key].example}")
    for key, value in leaves(settings):
        if key.rpartition(".")[2] == "_target_" and value not in targets():
            raise InputError(f"{key}={value}: is none of the parts that conf/ names; choose an option of its group")
        if key.rpartition(".")[2] in ("_target_", "_partial_"):
            continue
        rule = RULES.get(key)
        if rule is None:
            raise InputError(f"{key}={_shown(value)}: there is no such key; {nearest(key, list(RULES))}")
        if not rule.accepts(value):
            raise InputError(f"{key}={_shown(value)}: must be {rule.allowed}; for example {key}={rule.example}")
    _check_together(settings)
    return settings


def _shown(value: Any) -> str:
    return (
        "null"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else value
        if isinstance(value, str)
        else str(value).replace(" ", "")
    )


def _check_together(s: dict[str, Any]) -> None:
    """Values that are fine alone and not together."""
    normalised = not s["likelihood"]["_target_"].endswith("SquaredErrorHead")
    if s["callbacks"]["monitor"] == "dev/elbo" and not normalised:
        raise InputError(
            "callbacks.monitor=dev/elbo: likelihood=squared_error is not normalised and has no ELBO in nats; "
            "take callbacks.monitor=dev/loss or a normalised likelihood such as likelihood=gaussian"
        )
    if s["likelihood"]["_target_"].endswith("BernoulliHead") and "Continuous" not in s["likelihood"]["_target_"]:
        if s["data"]["binarize"] == "none":
            raise InputError(
                "likelihood=bernoulli: data.binarize=none leaves grey levels, and it is defined on 0 and 1 only; "
                "take data.binarize=dynamic (or static, threshold), or likelihood=continuous_bernoulli"
            )
    if s["evaluation"]["features"] and s["evaluation"]["generated"] < 10:
        raise InputError(
            f"evaluation.generated={s['evaluation']['generated']}: evaluation.features=true needs at least 10 samples; "
            "for example evaluation.generated=10000, or evaluation.features=false"
        )
    _check_clipping(s)
    _check_sgd(s["optimizer"])
    _check_one_cycle(s["scheduler"], s["trainer"]["max_epochs"])


def _check_clipping(s: dict[str, Any]) -> None:
    value = s["trainer"]["gradient_clip_val"]
    if value is not None and s["trainer"]["precision"] == "16-mixed" and s["optimizer"].get("fused"):
        raise InputError(
            f"trainer.gradient_clip_val={value}: under trainer.precision=16-mixed a fused optimizer takes the loss's "
            "scale off within its step, after clipping; take optimizer.fused=false or trainer.precision=bf16-mixed"
        )


def _check_one_cycle(scheduler: dict[str, Any], max_epochs: int) -> None:
    if str(scheduler["_target_"]).endswith("OneCycleLR") and scheduler["epochs"] < max_epochs:
        raise InputError(
            f"trainer.max_epochs={max_epochs}: scheduler=one_cycle ends after scheduler.epochs={scheduler['epochs']}; "
            f"take scheduler.epochs={max_epochs} in a new run_dir, or no more than {scheduler['epochs']} epochs"
        )


def _check_sgd(optimizer: dict[str, Any]) -> None:
    if optimizer.get("nesterov") and not optimizer.get("momentum"):
        raise InputError("optimizer.nesterov=true: needs momentum above 0; for example optimizer.momentum=0.9")


CONF = str(Path(__file__).resolve().parents[2] / "conf")


def caption(s: Settings) -> str:
    """What every figure says of its data: the set and, since nats depend on it, how it was binarised."""
    grey = s["data"]["binarize"]
    return f"{s['data']['name']}, {'grey levels' if grey == 'none' else f'{grey} binarisation'}"


def monitored(s: Settings) -> tuple[str, str]:
    """The metric that the best epoch is best by, and `min` or `max`.

    Where beta has a schedule, the loss of two epochs does not compare: `dev/bound`, with beta 1, takes its place.
    """
    name = s["callbacks"]["monitor"]
    beta = s["objective"].get("beta", 1.0)
    if name == "dev/loss" and isinstance(beta, dict) and {"steps", "period"} & beta.keys():
        name = "dev/bound"
    return name, "max" if name == "dev/elbo" else "min"


def plateau_watches(s: Settings) -> str:
    """What the plateau scheduler waits for: the lower, the better."""
    name, mode = monitored(s)
    return "dev/bound" if mode == "max" else name
