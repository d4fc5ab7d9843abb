"""Hydra's basic sweeper for runs that keep what they have done: it starts what is left, and tells of each job.

Hydra takes sweepers from packages under `hydra_plugins` only; conf/config.yaml chooses this one.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.plugins.search_path_plugin import SearchPathPlugin

with contextlib.suppress(ImportError):  # without the extra `sweep` there is no submitit; `vae.run.command` refuses it
    from hydra_plugins.vae_sweeps._slurm import Launcher as Launcher


@dataclass
class SweeperConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.vae_sweeps.Sweeper"
    preset: str | None = None  # a file of conf/sweep/, whose lines are sweeps that run as one; sweep=NAME sets it


ConfigStore.instance().store(group="hydra/sweeper", name="runs", node=SweeperConf, provider="vae")


class Presets(SearchPathPlugin):
    """conf/hydra/launcher/ has files of the launchers' own names, which Hydra is not to mix with the originals."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called when all plugins are there and nothing is composed yet."""
        launchers = ConfigStore.instance().repo["hydra"]["launcher"]
        for name in ("joblib", "submitit_local", "submitit_slurm"):
            launchers.pop(f"{name}.yaml", None)


class Sweeper(BasicSweeper):
    """Jobs, names and folders are those of `vae.run.plan`; a job that fails is no exception here, but a `Failed`."""

    def __init__(self, preset: str | None, **basic: Any) -> None:
        super().__init__(**basic)
        self.preset = preset

    def sweep(self, arguments: list[str]) -> Any:
        from vae.run import command, plan, summary

        assert self.config is not None
        root = Path(self.config.hydra.sweep.dir)
        preset = [] if self.preset is None else [f"{command.PRESET}{self.preset}"]
        self.jobs = command.plan_sweep([*preset, *self._parse_config(), *arguments])
        os.environ["VAE_SWEEP"] = str(os.getpid())
        plan.say(plan.describe(root, self.jobs))
        with plan.Progress(root, self.jobs).lines():
            results = super().sweep(arguments)
        GlobalHydra.instance().clear()  # the comparison composes the defaults
        summary.close(root, self.jobs, [job.return_value for batch in results for job in batch])
        return results

    def split_arguments(  # type: ignore[override]  # static there
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        left = [[*job.overrides, f"hydra.job.name='{job.name}'"] for job in self.jobs if not job.is_done]
        return list(self.split_overrides_to_chunks(left, max_batch_size)) if left else []

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """`command.check` has composed every job already, which takes a tenth of a second each."""
