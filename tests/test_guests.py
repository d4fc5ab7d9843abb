"""Paths of any kind, and the project inside other programs: what is theirs stays as it was."""

import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, settings_of
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from vae import fit
from vae.errors import InputError
from vae.run import command
from vae.run.compose import compose
from vae.run.directory import read_settings
from vae.run.keys import PLACES, as_plain

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 5), dtype=np.uint8)
QUICK = (
    "model.encoder.hidden=[4]", "model.decoder.hidden=[3]", "trainer.max_epochs=1", "evaluation=none",
    "data.dev_size=8", "evaluation.figures=false", "callbacks.figures_every=0", "data.batch_size=9",
)  # fmt: skip

# --- paths ------------------------------------------------------------------------------------------------------------

NAMES = [
    "José", "写真", "a b", "[1]", "a#b", "a&b", "it's", 'say "x"', "a=b", "a,b", "(1)", "{x}", "100%", "a\\b", "2024",
    "true", "plain",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", PLACES)
def test_any_name_of_a_folder_is_taken_as_it_stands(key: str, name: str) -> None:
    sets = {"data.path": ["data=npz"], "data.root": ["data=mnist"], "data.cache_dir": ["data=folder", "data.path=x"]}
    overrides = sets.get(key, ["data=digits"])
    if "," not in name:  # between commas stand several values
        (given,) = command.prepare([f"{key}=/home/{name}/x"])[:1]
        assert find(compose([*overrides, given]).plain, key) == f"/home/{name}/x"
        assert find(compose([*overrides, f"{key}={name}"]).plain, key) == name


def find(plain: dict, key: str) -> object:
    group, _, name = key.rpartition(".")
    return (plain[group] if group else plain)[name]


def test_a_tilde_is_the_home_on_the_command_line_and_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nrun_dir: ~/runs/mine\n")
    assert compose(["--config-dir", "~", "experiment=mine"]).run_dir == f"{tmp_path}/runs/mine"
    assert command.prepare(["run_dir=~/a", "-m"])[1:] == [f"run_dir='{tmp_path}/a'"]
    assert settings_of("data.root=~/data").plain["data"]["root"] == f"{tmp_path}/data"


@pytest.mark.parametrize("key", PLACES)
def test_a_name_that_no_file_system_takes_is_refused_in_a_line(key: str) -> None:
    for name, reason in (
        ("x" * 300, "300 bytes"),
        ("é" * 128, "256 bytes"),
        ("\udcff", "UTF-8"),
        ("a\0b", "null byte"),
    ):
        with pytest.raises(InputError, match=rf"^{key}=.*{reason}") as refused:
            compose([f"{key}=/tmp/{name}/x"])
        assert "\n" not in str(refused.value)


def test_paths_of_a_sweep_are_quoted_one_by_one() -> None:
    assert command.prepare(["-m", "data.path=é,ü", "run_dir=x"])[1:] == ["++data.path='é','ü'", "run_dir=x"]
    jobs = command.check(["-m", "data=npz", "data.path='é','ü'", "run_dir=x"])
    assert [job.settings.plain["data"]["path"] for job in jobs] == ["é", "ü"]


@pytest.mark.parametrize("arguments", [["run_dir={}"], ["-m", "latent_dim=2,3", "run_dir={}"], ["run_dir={}/below/it"]])
def test_a_file_as_run_dir_is_refused_before_anything_is_written(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match=rf"^run_dir={file}.*is not a folder"):
        command.check([argument.format(file) for argument in arguments])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- folders of one's own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["/nonexistent", "file:///nonexistent", "pkg://nonexistent.conf", ""])
def test_a_folder_of_settings_that_is_not_there_is_refused(given: str) -> None:
    for arguments in (["--config-dir", given], [f"--config-dir={given}"], ["-cd", given]):
        with pytest.raises(InputError, match=rf"^--config-dir={given}: "):
            command.check([*arguments, "data=digits"])
    with pytest.raises(InputError, match=rf"^--config-dir={given}: "):
        command.check([f"hydra.searchpath=['{given}']"])


@pytest.mark.parametrize(
    "text", ["a: &a [1]\nb: *a\n", "a: &a {b: *a}\n", "a: " + "[" * 40 + "]" * 40, "a: !!python/name:os.x"]
)
def test_a_file_of_settings_that_never_ends_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yaml").write_text(text)  # which Hydra never reads
    for name in ("mine", "deeper/mine"):
        file = tmp_path / "likelihood" / f"{name}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
        with pytest.raises(InputError, match=rf"^{file}: cannot be read"):
            compose(["--config-dir", str(tmp_path), "data=digits"])
        shutil.rmtree(tmp_path / "likelihood")
    assert compose(["--config-dir", str(tmp_path), "data=digits"]).latent_dim == 4


def test_a_recipe_without_its_package_line_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "paper.yaml").write_text("latent_dim: 8\n")
    with pytest.raises(InputError, match=r"^experiment=paper: .*# @package _global_"):
        compose(["experiment=paper", "--config-dir", str(tmp_path)])


# --- fit --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A run of `fit` inside a sweep of somebody's `@hydra.main`, and what it left of theirs."""
    folder = tmp_path_factory.mktemp("José's [1] # & é")
    root, handler = logging.getLogger(), logging.FileHandler(folder / "theirs.log")
    root.addHandler(handler)
    theirs = OmegaConf.create({"hydra": {"mode": "MULTIRUN", "overrides": {"task": ["theirs=1"]}}})
    GlobalHydra.instance().hydra = application = object()  # type: ignore[assignment]  # any will do: it is not asked
    HydraConfig.instance().cfg = theirs  # type: ignore[assignment]  # as Hydra sets it
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]  # a tuple
    level, filters = root.level, warnings.filters[:]
    try:
        run = fit(IMAGES, *QUICK, run_dir=folder / "run", latent_dim=np.int64(2), seed=torch.tensor(7))
        same = {
            "hydra": GlobalHydra.instance().hydra is application and HydraConfig.instance().cfg is theirs,
            "log": handler in root.handlers and handler.stream is not None and root.level == level,
            "warnings": warnings.filters == filters,
            "torch": torch.equal(torch.get_rng_state(), state),
            "numpy": bool((np.random.get_state()[1] == numpy_state).all()),  # type: ignore[union-attr]  # a tuple
        }
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        root.removeHandler(handler)
        handler.close()
    return {"run": run, "same": same, "folder": folder}


@pytest.mark.parametrize("what", ["hydra", "log", "warnings", "torch", "numpy"])
def test_fit_leaves_what_is_the_caller_s(fitted: dict, what: str) -> None:
    assert fitted["same"][what]


def test_fit_reads_nothing_of_the_caller_s_hydra_and_takes_any_folder(fitted: dict) -> None:
    folder = fitted["folder"]
    assert fitted["run"].directory == folder / "run"
    assert (folder / "run" / "metrics.json").exists()  # not in a folder of a sweep's job
    assert "theirs" not in (folder / "run" / "train.log").read_text()
    s = read_settings(folder / "run" / "config.yaml")
    assert (s["latent_dim"], s["seed"], s["data"]["path"]) == (2, 7, f"{folder}/run.npz")


def test_fit_takes_the_folder_it_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    run = fit(IMAGES, *QUICK, "trainer.limit_train_batches=1", run_dir=".")
    assert run.directory == place
    assert (tmp_path / "here.npz").exists()


@pytest.mark.parametrize("flag", ["-m", "--multirun", "--config-dir=x", "--cfg"])
def test_fit_refuses_flags(flag: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{flag}: fit takes key=value"):
        fit(IMAGES, flag, run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_other_libraries_are_plain_values() -> None:
    values = [np.float32(0.5), torch.tensor(3), np.array([1, 2]), (np.int8(1), 2), Path("a/b")]
    assert [as_plain(value) for value in values] == [0.5, 3, [1, 2], [1, 2], "a/b"]
    assert [type(as_plain(value)) for value in values] == [float, int, list, list, str]


GUEST = """
import hydra, numpy as np, sys
from omegaconf import DictConfig

@hydra.main(version_base=None, config_path=None)
def main(cfg: DictConfig) -> None:
    import vae
    run = vae.fit(np.random.default_rng(0).integers(0, 256, (40, 6, 5), np.uint8), *{quick!r}, run_dir="run")
    table = vae.sweep("run")
    print("trained", run.directory, len(table), hydra.core.hydra_config.HydraConfig.get().job.name)

main()
"""


@pytest.mark.slow
def test_fit_and_sweep_work_in_one_s_own_hydra_main(tmp_path: Path) -> None:
    (tmp_path / "guest.py").write_text(GUEST.format(quick=QUICK))
    run = [sys.executable, "guest.py"]
    ended = subprocess.run(
        run, cwd=tmp_path, capture_output=True, text=True, timeout=300, env={"PYTHONPATH": str(ROOT)}
    )
    assert ended.returncode == 0, ended.stderr
    assert "trained run 1 guest" in ended.stdout
