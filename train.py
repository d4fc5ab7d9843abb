"""Trains a VAE: `python train.py model=conv latent_dim=4`. From here to the loss: training/lit.py, objectives.py."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from vae.run import command, runner, settings
from vae.run.directory import Run
from vae.run.process import begin_command


def train(cfg: DictConfig) -> float:
    """One run, begun or continued, to its result: the best epoch's monitored metric."""
    checked = settings.check(cfg)
    run = Run(Path(checked.run_dir), checked)
    command.hand_on(run)
    return runner.finish(run, cfg)


def main() -> float | None:
    begin_command()
    sys.argv[1:] = command.prepare(sys.argv[1:])
    cfg = command.answer(sys.argv[1:])
    return None if cfg is None else command.with_exit_codes(train, cfg)


if __name__ == "__main__":
    main()
