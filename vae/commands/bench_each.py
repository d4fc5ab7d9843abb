"""`vae bench --each prior`: what a training step costs under every option of a group of conf/, in turns."""

from pathlib import Path
from statistics import median

import torch
import yaml

from vae.commands.bench import TURN
from vae.errors import InputError
from vae.run.bare import Bare, timed
from vae.run.build import build_data
from vae.run.compose import compose
from vae.run.keys import CONF

GROUPS = ("prior", "posterior", "likelihood", "objective", "optimizer")  # what a step of the same data is made of


def main(group: str, overrides: list[str], turns: int) -> None:
    """Prints a line an option: milliseconds a step, as a median over turns, and the ratio to the group's default."""
    usual, options = options_of(group, overrides)
    default = compose(overrides)
    if default.threads:
        torch.set_num_threads(default.threads)
    data, loops = build_data(default), {}
    for option in options:
        try:
            loops[option] = Bare(compose([*overrides, f"{group}={option}"]), data)
        except InputError as error:
            print(f"{option:<22} {error}")
    spent = {option: median(times) for option, times in measure(loops, turns).items()}
    for option, seconds in spent.items():
        ratio = f"{seconds / spent[usual]:.2f} of {usual}" if usual in spent else ""
        count = loops[option].vae.parameter_count
        print(f"{option:<22} {1000 * seconds:8.2f} ms a step  {count:>11,} parameters  {ratio}")


def options_of(group: str, overrides: list[str]) -> tuple[str, list[str]]:
    """The default's name and all names; raises InputError for what is no group, or is chosen already."""
    folder = Path(CONF, group)
    options = sorted(path.stem for path in folder.glob("*.yaml") if path.stem not in ("own", "base"))
    if group not in GROUPS:
        raise InputError(f"--each={group}: must be one of {', '.join(GROUPS)}")
    if chosen := [one for one in overrides if one.startswith(f"{group}=")]:
        raise InputError(f"{chosen[0]}: --each={group} takes all of them; leave it out")
    defaults = yaml.safe_load(Path(CONF, "config.yaml").read_text())["defaults"]
    return next((one[group] for one in defaults if isinstance(one, dict) and group in one), options[0]), options


def measure(loops: dict[str, Bare], turns: int) -> dict[str, list[float]]:
    """Seconds of a step, a value a turn; the first turn only warms up."""
    steps = {option: min(TURN, loop.steps_an_epoch) for option, loop in loops.items()}
    found: dict[str, list[float]] = {option: [] for option in loops}
    for _ in range(turns + 1):
        for option, loop in loops.items():
            found[option].append(timed(loop.epoch(), steps[option]) / steps[option])
    return {option: times[1:] for option, times in found.items()}
