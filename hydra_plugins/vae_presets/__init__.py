"""Hydra's basic sweeper for a preset: a file of conf/sweep/ whose lines are sweeps that run as one.

Hydra takes sweepers from packages under `hydra_plugins` only. `sweep=NAME` chooses this one (vae/run/command.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import MISSING


@dataclass
class PresetSweeperConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.vae_presets.PresetSweeper"
    preset: str = MISSING


ConfigStore.instance().store(group="hydra/sweeper", name="preset", node=PresetSweeperConf, provider="vae")


class PresetSweeper(BasicSweeper):
    def __init__(self, preset: str, **basic: Any) -> None:
        super().__init__(**basic)
        self.preset = preset

    def split_arguments(  # type: ignore[override]  # static there
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        from vae.run.command import preset_jobs

        chosen = preset_jobs(self.preset, [one.input_line or "" for one in overrides])
        return list(self.split_overrides_to_chunks(chosen, max_batch_size))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """`command.check` has composed every job already, which costs 0.1 s each."""
