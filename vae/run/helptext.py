"""docs/keys.md, made from the signatures, and `python train.py --help`, which reads that page: it imports no torch."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from vae.errors import InputError
from vae.run.compose import compose_config
from vae.run.keys import CONF, PACKAGE, Plain, show
from vae.run.parts import fill_defaults, known_keys, options

# in a wheel inside the package, in a checkout beside it
PAGE = PACKAGE / "keys.md" if (PACKAGE / "keys.md").is_file() else PACKAGE.parent / "docs" / "keys.md"
EXAMPLES = """\
python train.py data=digits                                   a first result without a download
python train.py model=conv latent_dim=8                       convolutions in both halves
python train.py model/encoder=conv model/decoder=mlp          or in one
python train.py experiment=report_mlp_mean                    a recipe; conf/experiment/ says what each one reaches
python train.py -m latent_dim=2,4,8 likelihood.reconstruct=sample,mean run_dir=outputs/multirun/mine
python train.py -m sweep=report_claims                        a preset: the sweeps of conf/sweep/NAME.yaml as one
python train.py run_dir=outputs/mine                          begins it, continues it, or shows its result"""


def write_help(group: str | None = None) -> str:
    """The help of `train.py`: choices, keys with what they may be, examples; or one group's choices and keys.

    Raises InputError for a group that there is not.
    """
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    choices = dict(groups())
    names = sorted({name.partition("/")[0] for name in choices} | {name.partition(".")[0] for name, _, _ in rows})
    if group is not None and group.partition(".")[0] not in names:
        raise InputError(f"--help {group}: there is no such group; it is one of {', '.join(names)}")
    inside = [name for name in choices if group is None or f"{name}/".startswith(f"{group.replace('.', '/')}/")]
    keys = [row for row in rows if group is None or f"{row[0]}.".startswith(f"{group}.")]
    sections = {
        "Choices, as group=option": "\n".join(f"{name:<16} {', '.join(choices[name])}" for name in inside),
        "Keys, as key=value (with the values of a run: python train.py --cfg job)": "\n".join(
            f"{name:<31} {meaning} ({allowed})" for name, meaning, allowed in keys
        ),
        "Examples": EXAMPLES if group is None else "",
    }
    head = ["Trains a variational auto-encoder. -m sweeps over values given with commas; --help GROUP shows one group."]
    texts = [
        f"{title}\n" + "\n".join(f"  {line}" for line in text.splitlines()) for title, text in sections.items() if text
    ]
    return "\n\n".join([*(head if group is None else []), *texts])


def groups() -> Iterator[tuple[str, list[str]]]:
    """Each group with its options, read off the folders of `conf/`; the rungs of `vae reproduce` are none."""
    for folder in sorted({path.parent for path in Path(CONF).glob("*/**/*.yaml")} - {Path(CONF, "reproduce")}):
        yield str(folder.relative_to(CONF)), sorted(p.stem for p in folder.glob("*.yaml") if p.stem != "base")


def write_keys_page() -> str:
    """docs/keys.md: `python -m vae.run.helptext`."""
    rows = [f"| `{name}` | {key.meaning} | {key.allowed} | {_defaults(name)} |" for name, key in known_keys().items()]
    lines = [
        "# Keys",
        "",
        "Every key of the configuration, made from the signatures of the parts by `python -m vae.run.helptext`, which",
        "writes this file. Where the options of a group differ, the default of each is shown.",
        "",
        "| key | meaning | allowed | default |",
        "|---|---|---|---|",
        *rows,
        "",
        "| group | options |",
        "|---|---|",
        *(f"| `{group}` | {', '.join(f'`{option}`' for option in options)} |" for group, options in groups()),
    ]
    return "\n".join(lines) + "\n"


def _defaults(name: str) -> str:
    """A key's value where it is not set: one, or each with the options of its group that have it."""
    group, _, last = name.rpartition(".")
    by_value: dict[str, list[str]] = {}
    for option in options(group) or [""]:
        values = _unset(group, option)
        if last in values:
            by_value.setdefault(_shown(name, values[last]), []).append(option)
    if len(by_value) == 1:
        return f"`{next(iter(by_value))}`"
    return ", ".join(f"`{value}` ({', '.join(names)})" for value, names in by_value.items())


def _shown(name: str, value: Any) -> str:
    """A value, a part by the name of its option."""
    if isinstance(value, dict) and "_target_" in value:
        return next(option for option, target in options(name).items() if target == value["_target_"])
    return ",".join(value) if isinstance(value, dict) and value else show(value)


@functools.cache
def _unset(group: str, option: str) -> Plain:
    """The keys of a group with their defaults, under one of its options."""
    cfg = compose_config([f"{group.replace('.', '/')}={option}"] if option else [])
    fill_defaults(cfg)
    node = OmegaConf.select(cfg, group) if group else cfg
    return cast(Plain, OmegaConf.to_container(node, resolve=False)) if isinstance(node, DictConfig) else {}


if __name__ == "__main__":
    PAGE.write_text(write_keys_page())
