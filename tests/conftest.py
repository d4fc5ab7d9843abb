"""What the tests of whole runs share: a small network, the command in this process and in others, one real sweep."""

import atexit
import copy
import functools
import hashlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import browser  # noqa: F401 (a fixture)
from faults_tools import Server
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vae.run import settings
from vae.run.compose import compose_config
from vae.run.keys import Settings
from vae.run.process import log_to

ROOT = Path(__file__).parent.parent
SMALL = (
    "data=digits", "dropout=0.3", "latent_dim=2", "model.encoder.hidden=[5]", "model.decoder.hidden=[4]",
    "callbacks.figures_every=0",  # pictures take two thirds of a small run
)  # fmt: skip
SHORT = (*SMALL, "evaluation=none", "trainer.max_epochs=1", "trainer.limit_train_batches=2")
SWEEP = ("latent_dim=2,3", "model=mlp,conv", "data=digits", "trainer.max_epochs=1", "evaluation=none")
RUNS = [f"latent_dim={latents},model={model}" for latents in (2, 3) for model in ("mlp", "conv")]  # its folders

torch.set_num_threads(1)  # tensors are tiny here: a second thread would wait for the first, busily


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    """A run in this process sets up its log, its environment and torch's threads; the next test meets none of it."""
    root, threads, environment = logging.getLogger(), torch.get_num_threads(), dict(os.environ)
    handlers, level = root.handlers[:], root.level
    yield
    for handler in [h for h in root.handlers if h not in handlers]:
        handler.close()
    root.handlers[:], root.level = handlers, level
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose_config(overrides, with_hydra=True)


def composed(*overrides: str) -> DictConfig:
    """The configuration, not resolved, as train.py gets it."""
    return copy.deepcopy(_composed(overrides))


def settings_of(*overrides: str) -> Settings:
    return settings.check(composed(*overrides))


def train(*overrides: str) -> float:
    """The run of `python train.py overrides`, in this process."""
    from train import train as run

    log_to(None)
    return run(composed(*overrides))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without their PNG files, which take five of the six seconds of a small one."""
    monkeypatch.setattr("vae.run.results.draw", lambda *arguments: {})


@functools.cache
def server() -> Server:
    """Forks each command from a process that has imported torch and Lightning, which takes six seconds."""
    server = Server(Path(tempfile.mkdtemp()))
    atexit.register(server.close)
    return server


def process(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`python train.py arguments` in a process of its own."""
    command = server().run(*arguments, cwd=cwd, env=dict(os.environ))
    out, err = ((command.folder / name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(arguments, command.wait(), out, err)


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real `python train.py -m`: four runs of an epoch, in RUNS; tests change copies of them only."""
    directory = tmp_path_factory.mktemp("sweep") / "all"
    small = (
        "model.encoder.hidden=[5]",
        "model.decoder.hidden=[4]",
        "likelihood=gaussian",
        "threads=1",
        "evaluation.figures=true",
    )
    ended = process("-m", *SWEEP, *small, f"run_dir={directory}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (directory.parent / "stdout").write_text(ended.stdout)
    (directory.parent / "stderr").write_text(ended.stderr)
    return directory


def tree(root: Path) -> dict[str, tuple[int, str]]:
    """Every file below a folder, with its time of change, so that a rewrite shows too."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files
    }
