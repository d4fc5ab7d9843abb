"""Trains a VAE: `python train.py model=conv latent_dim=4`; `--help` explains the keys."""

import gc
import sys
from typing import Any

import hydra
from omegaconf import DictConfig

from vae.run import command, settings


def run(cfg: DictConfig) -> float:
    """One run, begun or continued, to its result: the best epoch's monitored metric."""
    s = settings.check(cfg)
    # torch and lightning take seconds to import, which a mistyped key need not wait for
    from vae.run import build, directory, process, results, table, trainer

    if not gc.isenabled():  # `main` turned it off; what was imported is never looked through again
        gc.freeze()
        gc.enable()
    run = directory.Run(process.directory_of(cfg), s)
    run.check()
    if run.finished:
        return table.show(run)
    data = build.build_data(s)
    lit = build.build_model(s, data)  # whose training_step calls the objective: training/lit.py, objectives.py
    with run.opened(cfg), trainer.prepared_trainer(run, lit, data) as (fitter, history):
        fitter.fit(lit, datamodule=data, ckpt_path=run.resume_from, weights_only=True)
        return results.finished(run, lit, data, fitter, history)


@hydra.main(version_base="1.3", config_path=settings.CONF, config_name="config")
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
