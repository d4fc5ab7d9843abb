"""A person's own parts: used by name, checked by their signature, and never executed for a file's sake."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, SHORT, process, server, train

from vae.errors import InputError
from vae.run.load import load_run
from vae.training.checkpoints import load

OWN = (
    "likelihood._target_=mine.Head", "likelihood.width=0.3", "objective._target_=mine.MMD", "objective.weight=5.0",
    "model.encoder._target_=mine.Encoder", "model.encoder.width=5", "data._target_=mine.Bars", "data.dev_size=20",
    "data.batch_size=8", "data.eval_batch_size=7", "callbacks.extra.counter._target_=mine.Counter",
    "callbacks.extra.counter.file=epochs.txt", "model.decoder.hidden=[4]", "latent_dim=2", "dropout=0", "threads=1",
    "evaluation.samples=3", "evaluation.features=false", "evaluation.probes=false", "evaluation.figures=false",
    "callbacks.figures_every=0",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "tests" / "own_parts" / "mine", tmp_path / "mine")
    return tmp_path


@pytest.fixture(scope="module")
def planted_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the project's parts; tests plant in copies of it."""
    directory = tmp_path_factory.mktemp("plain") / "run"
    train(*SHORT, "trainer.limit_train_batches=1", f"run_dir={directory}")
    return directory


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    ended = process(*arguments, cwd=folder)
    return ended.returncode, ended.stdout + ended.stderr


def metrics(directory: Path) -> dict[str, float]:
    found = json.loads((directory / "metrics.json").read_text())
    return {name: value for name, value in found.items() if name not in ("provenance", "seconds", "images_per_second")}


def test_own_parts_train_and_the_last_loss_is_the_loss(folder: Path) -> None:
    code, said = run(folder, *OWN, "trainer.max_epochs=2", "run_dir=own")
    assert code == 0, said
    assert (folder / "epochs.txt").read_text() == "epoch\n" * 2
    found = metrics(folder / "own")
    rows = load(folder / "own" / "checkpoints" / "last.ckpt")["callbacks"]["History"]["rows"]
    best = rows[int(found["best_epoch"]) - 1]
    assert found["dev/loss"] == pytest.approx(best["dev/loss"], rel=1e-6)  # with the batch term
    assert abs(found["dev/loss"] - found["dev/neg_elbo"]) > 1e-3
    assert "dev/loss_error" not in found
    assert "dev/neg_elbo_error" in found


def test_own_parts_resume_to_the_bit_after_a_kill(folder: Path) -> None:
    longer = (*OWN, "data.repeat=20", "trainer.max_epochs=4", "callbacks.checkpoint_minutes=0.002")
    assert run(folder, *longer, "run_dir=undisturbed")[0] == 0
    killed = server().start(*longer, "run_dir=killed", cwd=folder)
    assert killed.until(lambda: "\nepoch 2" in killed.said)
    time.sleep(0.2)
    killed.kill()
    assert not (folder / "killed" / "metrics.json").exists()
    code, said = run(folder, *longer, "run_dir=killed")
    assert code == 0, said
    assert metrics(folder / "killed") == metrics(folder / "undisturbed")
    one, other = (load(folder / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("killed", "undisturbed"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_own_parts_sweep_and_stand_in_a_folder_of_ones_own(folder: Path) -> None:
    group = folder / "configs" / "likelihood"
    group.mkdir(parents=True)
    (group / "mine.yaml").write_text("_target_: mine.Head\nwidth: 0.2\n")
    others = [one for one in OWN if not one.startswith("likelihood.")]
    code, said = run(
        folder, "--config-dir=configs", "likelihood=mine", "-m", "likelihood.width=0.2,0.4", *others,
        "trainer.max_epochs=1", "run_dir=sweep",
    )  # fmt: skip
    assert code == 0, said
    assert len(list(folder.glob("sweep/*/metrics.json"))) == 2


def test_a_run_with_own_parts_is_loaded_only_where_it_is_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(folder, *OWN, "trainer.max_epochs=1", "run_dir=own")[0] == 0
    (folder / "executed").unlink()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(InputError, match=r'nothing of it was executed; .*trust=\("mine",\)'):
        load_run("own")
    assert not (folder / "executed").exists()
    assert "mine" not in sys.modules
    trained = load_run("own", trust=("mine",))
    assert type(trained.vae.likelihood).__name__ == "Head"
    assert trained.vae.sample(3).shape == (3, 1, 5, 7)
    del sys.modules["mine"]


@pytest.mark.parametrize("target", ["os.system", "torch.hub.load", "vae.networks.torch.hub.load", "mine.Head"])
def test_a_planted_part_is_refused_before_it_is_imported(target: str, folder: Path, planted_in: Path) -> None:
    shutil.copytree(planted_in, folder / "own")
    config = folder / "own" / "config.yaml"
    config.write_text(config.read_text().replace("vae.likelihoods.SquaredErrorHead", target))
    with pytest.raises(InputError, match="from outside the project"):
        load_run(folder / "own")
    assert not (folder / "executed").exists()


def test_a_part_planted_in_a_list_is_refused(folder: Path, planted_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(planted_in, folder / "own")
    config = folder / "own" / "config.yaml"
    plain = yaml.safe_load(config.read_text())
    planted = [{"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": ["executed"]}]}]
    plain["optimizer"] = {"_target_": "torch.optim.Rprop", "_partial_": True, "lr": planted}
    config.write_text(yaml.safe_dump(plain))
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"^optimizer\.lr\.0\..*nothing of it was executed"):
        load_run("own")
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(("group", "key"), [("data", "binarize"), ("optimizer", "lr"), ("evaluation", "cache_dir")])
def test_a_planted_interpolation_is_refused(
    group: str, key: str, folder: Path, planted_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OmegaConf's resolver oc.create would build what the text describes."""
    shutil.copytree(planted_in, folder / "own")
    config = folder / "own" / "config.yaml"
    plain = yaml.safe_load(config.read_text())
    plain[group][key] = "${oc.create:{_target_:os.mkdir,path:executed}}"
    config.write_text(yaml.safe_dump(plain))
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=f"^{group}.{key}=.*nothing of it was executed"):
        load_run("own")
    assert not (folder / "executed").exists()


REFUSED = {
    "callbacks.extra.a.file=x": "callbacks.extra.a: names no part; give callbacks.extra.a._target_=",
    "likelihood._target_=mine.Head likelihood.widht=3": "likelihood.widht=3: mine.Head has no such key; did you mean",
    "likelihood._target_=mine.Head likelihood.width=wide": "likelihood.width=wide: must be a number",
    "likelihood._target_=mine.Head": "likelihood.width: is missing; give likelihood.width=..., a number",
    "likelihood._target_=nowhere.Head": "likelihood._target_=nowhere.Head: cannot be imported",
    "likelihood._target_=mine.Nothing": "likelihood._target_=mine.Nothing: cannot be imported",
    "likelihood._target_=mine.MMD": "likelihood._target_=mine.MMD: is not a vae.likelihoods.Likelihood",
    "optimizer._target_=mine.Head": "optimizer._target_=mine.Head: is not a torch.optim.Optimizer",
    "callbacks.extra.a._target_=mine.MMD": "callbacks.extra.a._target_=mine.MMD: is not a lightning.Callback",
    "data._target_=mine.Head data.width=1.0": "data._target_=mine.Head: is not a lightning.LightningDataModule",
}  # fmt: skip


@pytest.mark.parametrize("arguments", REFUSED)
def test_a_bad_own_part_is_one_line_and_leaves_no_directory(arguments: str, folder: Path) -> None:
    code, said = run(folder, *arguments.split(), "run_dir=own")
    assert code == 2
    assert said.startswith(REFUSED[arguments])
    assert said.count("\n") == 1
    assert not (folder / "own").exists()
