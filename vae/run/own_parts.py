"""Parts from outside the project: which may be built, and whether their keys fit their constructor.

Imports torch only where an own part has to be imported.
"""

import difflib
import importlib
import inspect
from typing import Any, get_type_hints

from vae.errors import InputError
from vae.run.keys import Plain, describe, fits, nearest, show

GROUPS_OF_PARTS = (
    "model.encoder", "model.decoder", "prior", "posterior", "likelihood", "objective", "objective.beta", "data",
    "optimizer", "scheduler",
)  # fmt: skip
# What the builder hands in, beside the configuration's keys.
HANDED_IN = {
    "model.encoder": {"image_shape", "out_features"},
    "model.decoder": {"in_features", "image_shape"},
    "prior": {"latent_dim", "image_shape"},
    "posterior": {"latent_dim"},
    "objective.beta": {"step"},
    "optimizer": {"params"},
    "scheduler": {"optimizer", "steps_per_epoch"},
    "logger": {"save_dir", "purge_step", "id"},
}


def check_own_part(group: str, node: Plain) -> None:
    """Raises InputError, one line, for a part that cannot be imported, is of another kind, or takes other keys."""
    target = node["_target_"]
    made = import_target(group, target)
    _check_kind(group, target, made)
    parameters = inspect.signature(made).parameters
    given = {name: value for name, value in node.items() if not name.startswith("_")}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    handed_in = HANDED_IN.get(group) or HANDED_IN.get(group.partition(".")[0], set())
    known = [name for name in parameters if name not in handed_in]
    for name, value in given.items():
        if name not in parameters and not takes_all:
            hint = nearest(name, known) if difflib.get_close_matches(name, known) else f"it takes {', '.join(known)}"
            raise InputError(f"{group}.{name}={show(value)}: {target} takes no such key; {hint}")
    _check_types(group, made, given)
    for name in known:
        parameter = parameters[name]
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if required and name not in given:
            raise InputError(f"{group}.{name}: is missing; {target} needs it; give {group}.{name}=...")


def import_target(group: str, target: Any) -> Any:
    """The class or function of a dotted name."""
    module, _, name = str(target).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # an own module may fail in any way while it is imported
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{group}._target_={target}: cannot be imported ({reason}); give package.module.Name of something that "
            "`python -c 'import package.module'` finds from here"
        ) from error


def _check_kind(group: str, target: str, made: Any) -> None:
    bases = {
        "model.encoder": "torch.nn.Module", "model.decoder": "torch.nn.Module",
        "prior": "vae.priors.Prior", "posterior": "vae.posteriors.Posterior",
        "likelihood": "vae.likelihoods.Likelihood", "optimizer": "torch.optim.Optimizer",
        "data": "lightning.LightningDataModule", "callbacks.extra": "lightning.Callback",
        "logger": "lightning.pytorch.loggers.Logger",
    }  # fmt: skip
    base = bases.get(group if group in bases else group.rpartition(".")[0])
    if base is not None and not (inspect.isclass(made) and issubclass(made, import_target(group, base))):
        raise InputError(f"{group}._target_={target}: is no {base}; derive the class from it")
    if not callable(made):
        raise InputError(f"{group}._target_={target}: cannot be called; name a class or a function")
    # every class is callable, so that hasattr would always be true of it
    if group == "objective" and inspect.isclass(made) and not any("__call__" in vars(base) for base in made.__mro__):
        raise InputError(f"objective._target_={target}: is no objective; give it __call__(vae, x, step) -> Terms")


def _check_types(group: str, made: Any, given: Plain) -> None:
    try:
        hints = get_type_hints(made.__init__ if inspect.isclass(made) else made, include_extras=True)
    except Exception:  # annotations of an own class may name anything; then the constructor itself decides
        return
    for name, value in given.items():
        if name in hints and not isinstance(value, dict) and not fits(hints[name], value):
            raise InputError(f"{group}.{name}={show(value)}: must be {describe(hints[name])}")
