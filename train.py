"""Trains a VAE: `python train.py model=conv latent_dim=4`; `--help` explains the keys."""

import gc
import sys
from typing import Any

import hydra
from omegaconf import DictConfig

from vae import command, settings


def run(cfg: DictConfig) -> float:
    """One run, begun or continued, to its result: the best epoch's monitored metric."""
    s = settings.check(cfg)
    from vae import runs  # imports torch and lightning: seconds, which a mistyped key need not wait for
    from vae.lit import LitVAE

    if not gc.isenabled():  # `main` turned it off; what was imported is never looked through again
        gc.freeze()
        gc.enable()
    one = runs.Run(command.directory_of(cfg), s)
    one.check()
    if one.finished:
        return runs.shown(one)
    data = runs.build_data(s)
    lit: LitVAE = runs.build_model(s, data)  # whose training_step calls the objective: vae/lit.py, vae/objectives.py
    with one.opened(cfg), runs.training(one, lit, data) as (trainer, history):
        trainer.fit(lit, datamodule=data, ckpt_path=one.resume_from, weights_only=True)
        return runs.finished(one, lit, data, trainer, history)


@hydra.main(version_base="1.3", config_path=command.CONF, config_name="config")
def job(cfg: DictConfig) -> float:
    return command.ended(run, cfg)


def main() -> Any:
    sys.argv[1:] = command.placed(sys.argv[1:])
    if command.answered(sys.argv[1:]):
        return None
    gc.disable()  # the imports make a million objects and no garbage, which takes a second to see
    try:
        return job()
    finally:
        gc.unfreeze()
        gc.enable()


if __name__ == "__main__":
    main()
