"""Trains a VAE: `python train.py model=conv latent_dim=4`. From here to the loss: training/lit.py, objectives.py."""

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from vae.run import command, runner, settings
from vae.run.directory import Run
from vae.run.keys import CONF
from vae.run.process import begin_command


def train(cfg: DictConfig) -> float:
    """One run, begun or continued, to its result: the best epoch's monitored metric."""
    checked = settings.check(cfg)
    run = Run(Path(checked.run_dir), checked)
    command.hand_on(run)
    return runner.finish(run, cfg)


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def job(cfg: DictConfig) -> float:
    return command.with_exit_codes(train, cfg)


def main() -> Any:
    begin_command()
    sys.argv[1:] = command.prepare(sys.argv[1:])
    return None if command.answered(sys.argv[1:]) else job()


if __name__ == "__main__":
    main()
