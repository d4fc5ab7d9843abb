"""What `python train.py --help` prints, and docs/keys.md: options from `conf/`, keys from the settings' table."""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from vae.run.keys import CONF, known_keys, show

EXAMPLES = """\
python train.py data=digits                                   a first result without a download
python train.py model=conv latent_dim=8                       convolutions in both halves
python train.py model/encoder=conv model/decoder=mlp          or in one
python train.py experiment=report_mlp_mean                    a recipe; conf/experiment/ says what each one reaches
python train.py -m latent_dim=2,4,8 likelihood.reconstruct=sample,mean run_dir=outputs/multirun/mine
python train.py -m sweep=report_claims                        a preset: the sweeps of conf/sweep/NAME.yaml as one
python train.py run_dir=outputs/mine                          begins it, continues it, or shows its result"""


def write_help() -> str:
    """The help of `train.py`: choices, keys with what they may be, examples."""
    sections = {
        "Choices, as group=option": "\n".join(f"{group:<16} {', '.join(options)}" for group, options in groups()),
        "Keys, as key=value (with the values of a run: python train.py --cfg job)": "\n".join(
            f"{name:<31} {key.meaning} ({key.allowed})" for name, key in known_keys().items()
        ),
        "Examples": EXAMPLES,
    }
    head = "Trains a variational auto-encoder. -m sweeps over values given with commas."
    texts = [f"{title}\n" + "\n".join(f"  {line}" for line in body.splitlines()) for title, body in sections.items()]
    return "\n\n".join([head, *texts])


def groups() -> Iterator[tuple[str, list[str]]]:
    """Each group with its options, read off the folders of `conf/`; the rungs of `vae reproduce` are none."""
    for folder in sorted({path.parent for path in Path(CONF).glob("*/**/*.yaml")} - {Path(CONF, "reproduce")}):
        yield str(folder.relative_to(CONF)), sorted(p.stem for p in folder.glob("*.yaml") if p.stem != "base")


def write_keys_page() -> str:
    """docs/keys.md: `python -m vae.run.helptext > docs/keys.md`."""
    rows = [f"| `{name}` | {key.meaning} | {key.allowed} | {_defaults(name)} |" for name, key in known_keys().items()]
    lines = [
        "# Keys",
        "",
        "Every key of the configuration, made by `python -m vae.run.helptext > docs/keys.md`. A key that stands in",
        "several options of its group shows the default of each.",
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
    """The values that the files of conf/ give a key; recipes apart."""
    group, _, last = name.rpartition(".")
    folder = Path(CONF, *group.split("."))
    files = sorted(folder.glob("*.yaml")) if group else [Path(CONF, "config.yaml")]
    found: dict[str, list[str]] = {}
    for file in files:
        node = OmegaConf.load(file)
        if last in node and not OmegaConf.is_missing(node, last):
            value = OmegaConf.to_container(node, resolve=False)[last]  # type: ignore[call-overload, index]
            found.setdefault(show(value), []).append(file.stem)
    if len(found) == 1:
        return f"`{next(iter(found))}`"
    return ", ".join(f"`{value}` ({', '.join(names)})" for value, names in found.items())


if __name__ == "__main__":
    print(write_keys_page(), end="")
