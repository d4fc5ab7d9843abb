"""Trains a VAE: `python train.py model=conv latent_dim=4`. From here to the loss: training/lit.py, objectives.py."""

import sys
from typing import Any

import hydra
from omegaconf import DictConfig

from vae.run import command, settings
from vae.run.directory import Run
from vae.run.jobs import directory_of
from vae.run.keys import CONF
from vae.run.process import alone, begin_command
from vae.run.table import show_result


def train(cfg: DictConfig) -> float:
    """One run, begun or continued, to its result: the best epoch's monitored metric."""
    checked = settings.check(cfg)
    with alone(checked.trainer):
        return _train(Run(directory_of(cfg, checked), checked), cfg)


def _train(run: Run, cfg: DictConfig) -> float:
    run.check()
    if run.is_finished:
        return show_result(run)
    # torch and lightning take seconds to import, which neither a mistyped key nor a finished run need wait for
    command.import_torch_and_lightning()
    from vae.run import train as training

    return training.train(run, cfg) or 0.0


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def job(cfg: DictConfig) -> float:
    return command.with_exit_codes(train, cfg)


def main() -> Any:
    begin_command()
    sys.argv[1:] = command.prepare(sys.argv[1:])
    return None if command.answer_help_or_refuse(sys.argv[1:]) else job()


if __name__ == "__main__":
    main()
