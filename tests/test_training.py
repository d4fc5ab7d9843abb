"""Whole runs: the same numbers twice, on from where they stand, and never into a directory of something else."""

import gc
import json
import math
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import RUNS, SHORT, SMALL, settings_of, train, tree
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import IMAGES, TENSORS, EventAccumulator
from torch import Tensor

from vae.errors import InputError
from vae.run.build import build, build_model
from vae.run.directory import NOT_IDENTITY, Run, read_settings
from vae.run.keys import leaves
from vae.run.settings import verify
from vae.run.trainer import prepared_trainer
from vae.training import checkpoints
from vae.training.hparams import METRICS

BATCH = 20
TIMES = {"seconds", "images_per_second"}
TWO_EPOCHS = (
    *SMALL,
    "evaluation=none",
    "trainer.limit_train_batches=3",
    "trainer.max_epochs=2",
    f"data.batch_size={BATCH}",
)
OTHER_SITTING = (  # every key that may differ between two sittings, but the slow one, compile
    "threads=1", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "data.num_workers=1",
    "data.eval_batch_size=1500", "data.resident=false", "callbacks.checkpoint_minutes=0.001",
    "callbacks.figures_every=0", "evaluation.cache_dir=elsewhere", "checkpoint=last", "evaluation.figures=false",
    "evaluation.formats=[svg]", "evaluation.dpi=100",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _undrawn() -> Iterator[None]:
    """As the fixture `undrawn`, for all runs of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae.run.results.draw", lambda *arguments: {})
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs in one sitting; tests change copies of it only."""
    directory = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(*TWO_EPOCHS, f"run_dir={directory}")
    return directory


@pytest.fixture
def copied(undisturbed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "copy"))


def numbers(run: Path) -> dict[str, float]:
    found = json.loads((run / "metrics.json").read_text())
    return {name: value for name, value in found.items() if name != "provenance" and name not in TIMES}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def last(run: Path) -> dict[str, Any]:
    return checkpoints.load(run / "checkpoints" / "last.ckpt")


def refused(directory: Path, *overrides: str) -> str:
    """The line with which this command is refused in this directory, of which nothing is touched."""
    before = tree(directory)
    with pytest.raises(InputError) as caught:
        train(*overrides, f"run_dir={directory}")
    line = str(caught.value)
    assert "\n" not in line
    assert str(directory) in line
    assert tree(directory) == before
    return line


# --- the same numbers -------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_numbers_and_another_seed_others(undisturbed: Path, tmp_path: Path) -> None:
    result = train(*TWO_EPOCHS, f"run_dir={tmp_path}/again")
    assert numbers(tmp_path / "again") == numbers(undisturbed)
    assert result == numbers(undisturbed)["dev/loss"]
    assert same(last(tmp_path / "again")["state_dict"], last(undisturbed)["state_dict"])
    train(*TWO_EPOCHS, "seed=1", f"run_dir={tmp_path}/other")
    other, fixed = numbers(tmp_path / "other"), numbers(undisturbed)
    assert all(other[name] != fixed[name] for name in ("dev/loss", "dev/kl", "test/loss", "test/reconstruction"))


def test_a_run_tells_which_commits_trained_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commits train an epoch each; a third evaluates what is trained to its end."""

    def sitting(commit: str, *overrides: str) -> dict[str, Any]:
        for place in ("trainer", "provenance"):
            monkeypatch.setattr(f"vae.run.{place}.git_commit", lambda: commit)
        train(*TWO_EPOCHS, *overrides, f"run_dir={tmp_path}/run")
        return json.loads((tmp_path / "run" / "metrics.json").read_text())["provenance"]

    origin = sitting("aaa", "trainer.max_epochs=1")
    assert origin["git_commit"] == "aaa"
    assert "training_commits" not in origin
    origin = sitting("bbb")
    assert (origin["git_commit"], origin["training_commits"]) == ("bbb", ["aaa", "bbb"])
    (tmp_path / "run" / "metrics.json").unlink()
    origin = sitting("ccc")
    assert (origin["git_commit"], origin["training_commits"]) == ("ccc", ["aaa", "bbb"])


@pytest.mark.parametrize("commit", ["bbb", None])
def test_a_run_whose_first_commit_is_not_known_does_not_name_another_in_its_place(
    copied: Path, commit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was begun by an older version, which named none."""
    for name in ("last", "best"):
        path = copied / "checkpoints" / f"{name}.ckpt"
        saved = checkpoints.load(path)
        del saved["callbacks"]["History"]["commits"]
        torch.save(saved, path)
    for place in ("trainer", "provenance"):
        monkeypatch.setattr(f"vae.run.{place}.git_commit", lambda: commit)
    train(*TWO_EPOCHS, "trainer.max_epochs=3", f"run_dir={copied}")
    origin = json.loads((copied / "metrics.json").read_text())["provenance"]
    wanted = ["unknown"] if commit is None else ["unknown", commit]
    assert origin.get("training_commits", [])[:1] == (["unknown"] if commit else [])
    assert last(copied)["callbacks"]["History"]["commits"] == wanted


def test_metrics_are_flat_numbers_with_their_origin(undisturbed: Path) -> None:
    found = json.loads((undisturbed / "metrics.json").read_text())
    origin = found.pop("provenance")
    assert all(type(value) in (int, float) and math.isfinite(value) for value in found.values())
    dev_and_test = {f"{split}/{name}" for split in ("dev", "test") for name in ("loss", "reconstruction", "kl", "beta")}
    assert dev_and_test | {"test/active_units"} <= set(found)
    assert not [name for name in found if "elbo" in name or "nll" in name]  # squared error is not normalised
    assert {"epochs", "best_epoch", "steps", "seconds", "images_per_second", "parameters"} <= set(found)
    assert (found["epochs"], found["steps"], found["stopped_early"]) == (2, 6, 0)
    assert found["images_per_second"] == pytest.approx(6 * BATCH / found["seconds"])
    assert {"format", "seed", "git_commit", "versions", "data_md5", "device", "threads", "command", "processor"} == set(
        origin
    )
    assert {"python", "torch", "lightning"} <= set(origin["versions"])


def test_parameters_are_counted(undisturbed: Path) -> None:
    encoder, decoder = (784 * 5 + 5) + (5 * 4 + 4), (2 * 4 + 4) + (4 * 1568 + 1568)
    assert numbers(undisturbed)["parameters"] == encoder + decoder


def test_dev_figures_are_those_of_the_best_epoch(undisturbed: Path) -> None:
    rows, found = last(undisturbed)["callbacks"]["History"]["rows"], numbers(undisturbed)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert found["best_epoch"] == min(rows, key=lambda row: row["dev/loss"])["epoch"]
    best = rows[int(found["best_epoch"]) - 1]
    for name in ("dev/loss", "dev/reconstruction", "dev/kl", "dev/beta"):
        assert found[name] == pytest.approx(best[name], rel=1e-6)
    assert {"train/loss", "train/grad_norm", "train_eval/loss"} <= set(best)


def test_checkpoint_of_the_best_epoch_is_kept(tmp_path: Path) -> None:
    """By the KL, which grows where beta falls, the first epoch is best, and the table is its."""
    falling = ("objective/beta=linear", "objective.beta.start=50", "objective.beta.end=0", "objective.beta.steps=3")
    how = ("callbacks.monitor=dev/kl", "optimizer.lr=0.03", "dropout=0")
    result = train(*TWO_EPOCHS, *falling, *how, f"run_dir={tmp_path}")
    rows, found = last(tmp_path)["callbacks"]["History"]["rows"], numbers(tmp_path)
    assert rows[1]["dev/kl"] > rows[0]["dev/kl"]
    assert (found["best_epoch"], found["epochs"], result) == (1, 2, found["dev/kl"])
    assert found["dev/loss"] == pytest.approx(rows[0]["dev/loss"], rel=1e-6)
    assert found["dev/loss"] != pytest.approx(rows[1]["dev/loss"], rel=1e-3)


# --- the same command again -------------------------------------------------------------------------------------------


def test_finished_run_returns_its_result_and_changes_no_file(
    undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(undisturbed)
    assert train(*TWO_EPOCHS, f"run_dir={undisturbed}") == numbers(undisturbed)["dev/loss"]
    assert train(*TWO_EPOCHS, *OTHER_SITTING, f"run_dir={undisturbed}") == numbers(undisturbed)["dev/loss"]
    assert tree(undisturbed) == before
    assert "in epoch 2 of 2" in " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch, then the second in a sitting in which every key differs of which it is said that it may."""
    directory = tmp_path_factory.mktemp("runs") / "grown"
    one_epoch = [given for given in TWO_EPOCHS if not given.startswith("trainer.max_epochs")]
    train(*one_epoch, "trainer.max_epochs=1", f"run_dir={directory}")
    assert numbers(directory)["epochs"] == 1
    train(*TWO_EPOCHS, *OTHER_SITTING, f"run_dir={directory}")
    return directory


def test_longer_run_equals_an_undisturbed_one_to_the_bit(undisturbed: Path, grown: Path) -> None:
    longer, whole = last(grown), last(undisturbed)
    assert same(longer["state_dict"], whole["state_dict"])
    assert same(longer["optimizer_states"], whole["optimizer_states"])
    assert numbers(grown) == pytest.approx(numbers(undisturbed), rel=1e-6)  # of eval_batch_size: rounding
    for split in ("train", "dev", "train_eval"):
        curves = [[row[f"{split}/loss"] for row in c["callbacks"]["History"]["rows"]] for c in (longer, whole)]
        assert curves[0] == pytest.approx(curves[1], rel=1e-6)
    assert read_settings(grown / "config.yaml")["trainer"]["max_epochs"] == 2
    assert "continuing from" in (grown / "train.log").read_text()


def test_every_free_key_is_among_those_of_the_other_sitting() -> None:
    given = {override.partition("=")[0] for override in OTHER_SITTING}
    of_other_sets = {"data.root", "data.mirrors", "data.timeout", "data.cache_dir"}
    assert given == set(NOT_IDENTITY) - {"compile", "run_dir"} - of_other_sets


def test_run_that_stopped_early_is_finished(tmp_path: Path) -> None:
    still = ("optimizer=sgd", "optimizer.lr=1e-30", "optimizer.weight_decay=0", "callbacks.early_stopping=1")
    command = (*SHORT, *still, "trainer.max_epochs=5", f"run_dir={tmp_path}")
    result = train(*command)
    found = numbers(tmp_path)
    assert (found["epochs"], found["best_epoch"], found["stopped_early"]) == (2, 1, 1)
    before = tree(tmp_path)
    assert train(*command) == result
    assert tree(tmp_path) == before


def test_threads_are_those_that_were_asked_for(tmp_path: Path) -> None:
    s = settings_of(*SHORT, "threads=2", f"run_dir={tmp_path}")
    lit, data = build(s)
    before = torch.get_num_threads()
    with prepared_trainer(Run(tmp_path, s), lit, data):
        assert torch.get_num_threads() == 2 != before


# --- whose directory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["latent_dim=3"], "latent_dim (2 there, 3 now)"),
        (["seed=1"], "seed (0 there, 1 now), data.seed (0 there, 1 now)"),
        (["trainer.max_epochs=1"], "trainer.max_epochs (2 there, 1 now)"),
        (["model/encoder=conv"], "and 1 more"),
        (["likelihood=gaussian", "latent_dim=3"], "likelihood.reconstruct (sample there, absent now)"),
        (["trainer.max_epochs=3", "dropout=0"], "trainer.max_epochs (2 there, 3 now)"),
    ],
    ids=str,
)
def test_another_configuration_is_refused(copied: Path, overrides: list[str], named: str) -> None:
    line = refused(copied, *TWO_EPOCHS, *overrides)
    assert "another configuration" in line
    assert named in line


def test_unfinished_run_can_grow_and_not_shrink(copied: Path) -> None:
    (copied / "metrics.json").unlink()
    s = settings_of(*TWO_EPOCHS, f"run_dir={copied}")
    for epochs in (2, 3):
        Run(copied, verify(s.plain | {"trainer": s.plain["trainer"] | {"max_epochs": epochs}})).check()
    assert "trainer.max_epochs (2 there, 1 now)" in refused(copied, *TWO_EPOCHS, "trainer.max_epochs=1")


def test_run_whose_schedule_ends_with_it_cannot_grow(tmp_path: Path) -> None:
    """The rates of its first epochs would have been others."""
    s = settings_of(*SHORT, "scheduler=cosine", f"run_dir={tmp_path}")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(s.plain))
    line = refused(tmp_path, *SHORT, "scheduler=cosine", "trainer.max_epochs=2")
    assert "scheduler.T_max (1 there, 2 now)" in line


def test_settings_survive_their_file(copied: Path) -> None:
    saved, s = read_settings(copied / "config.yaml"), settings_of(*TWO_EPOCHS)
    assert dict(leaves(saved)) | {"run_dir": ""} == dict(leaves(s.plain)) | {"run_dir": ""}


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")
    assert "not a run" in refused(tmp_path, *SHORT)


@pytest.mark.parametrize("content", ["", "[1, 2]", "latent_dim: [", "other: 1", "\0"], ids=repr)
def test_configuration_that_cannot_be_read_is_refused(copied: Path, content: str) -> None:
    (copied / "config.yaml").write_text(content)
    assert "config.yaml" in refused(copied, *TWO_EPOCHS)


def test_metrics_that_cannot_be_read_are_refused(copied: Path) -> None:
    (copied / "metrics.json").write_text('{"dev/loss": ')
    assert "metrics.json" in refused(copied, *TWO_EPOCHS)


def test_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match=r"^run_dir=.*/run: .*"):
        train(*SHORT, f"run_dir={tmp_path}/run")
    assert (tmp_path / "run").read_text() == "a file"


def test_directory_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(InputError, match=r"^run_dir=/sys/vae: cannot be written"):
        train(*SHORT, "run_dir=/sys/vae")


def test_directory_in_which_another_process_works_is_refused(copied: Path) -> None:
    with FileLock(copied / ".lock"):
        assert "another process" in refused(copied, *TWO_EPOCHS, "trainer.max_epochs=3")
        assert train(*TWO_EPOCHS, f"run_dir={copied}") == numbers(copied)["dev/loss"]  # looking on is allowed


def test_checkpoint_that_is_missing_is_refused_where_the_other_is_there(copied: Path) -> None:
    (copied / "metrics.json").unlink()
    (copied / "checkpoints" / "last.ckpt").unlink()
    assert "checkpoint=best" in refused(copied, *TWO_EPOCHS)


def test_damaged_checkpoint_is_refused(copied: Path) -> None:
    path = copied / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    (copied / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"last\.ckpt is truncated"):
        train(*TWO_EPOCHS, f"run_dir={copied}")


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={IMAGES: 0, TENSORS: 0}).Reload()


def steps(run: Path, tag: str) -> list[int]:
    return [event.step for event in events(run).Scalars(tag)]


def test_events_hold_the_curves(undisturbed: Path) -> None:
    found = events(undisturbed)
    rows = last(undisturbed)["callbacks"]["History"]["rows"]
    for name in ("train/loss", "dev/loss", "dev/kl", "dev/reconstruction", "train_eval/loss", "train/grad_norm"):
        assert [event.value for event in found.Scalars(name)] == pytest.approx([row[name] for row in rows]), name
    scalars = set(found.Tags()["scalars"])
    assert {"lr", "dev/sigma", "kl_per_latent/z00", "kl_per_latent/z01", "train/beta"} <= scalars
    assert {"reference/mean_image", "reference/PCA_2"} == {name for name in scalars if name.startswith("reference/")}
    assert b"PCA 32" in found.Tensors("baselines/text_summary")[0].tensor_proto.string_val[0]
    assert [event.value for event in found.Scalars("epoch")] == [row["epoch"] for row in rows]
    for name in scalars - set(METRICS):
        assert [event.step for event in found.Scalars(name)] == [row["step"] for row in rows], name


@pytest.mark.parametrize("tag", ["train/loss", "dev/loss", "kl_per_latent/z00"])
def test_events_of_a_longer_run_are_those_of_an_undisturbed_one(undisturbed: Path, grown: Path, tag: str) -> None:
    assert steps(grown, tag) == steps(undisturbed, tag)


def test_events_lay_out_their_charts(undisturbed: Path) -> None:
    found = events(undisturbed)
    text = found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    for tag in ("dev/loss", "train/kl", "reference/.*", "dev/unweighted_loss", "dev/active_units"):
        assert tag.encode() in text


def test_events_set_the_configuration_beside_the_figures(undisturbed: Path) -> None:
    found = events(undisturbed)
    content = found.summary_metadata
    assert {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(content)
    start = content["_hparams_/session_start_info"].plugin_data.content
    for key in ("latent_dim", "optimizer.lr", "model.encoder.hidden", "likelihood"):
        assert key.encode() in start
    assert all(tag.encode() in content["_hparams_/experiment"].plugin_data.content for tag in METRICS)


def test_events_hold_the_pictures(sweep: Path) -> None:
    """Of a run with all its pictures: those of the epochs, and the report's at the end."""
    found = events(sweep / RUNS[0])
    drawn = {path.stem for path in (sweep / RUNS[0] / "figures").glob("*.png")}
    of_epochs = {"pictures/reconstructions", "pictures/samples", "pictures/manifold"}
    assert {f"figures/{name}" for name in drawn} | of_epochs == set(found.Tags()["images"])
    for tag in found.Tags()["images"]:
        assert found.Images(tag)[-1].encoded_image_string.startswith(b"\x89PNG")
    assert {"dev/elbo", "train/elbo", "dev/sigma"} <= set(found.Tags()["scalars"])
    assert (sweep / RUNS[0] / "projector_config.pbtxt").exists()


def test_a_sweep_keeps_nothing_of_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The imports are frozen for the collector; they must hold no run."""
    build_real, seen = build_model, []

    def watched(*arguments: Any) -> Any:
        lit = build_real(*arguments)
        seen.extend([weakref.ref(lit), weakref.ref(arguments[1])])
        return lit

    monkeypatch.setattr("vae.run.train.build_model", watched)
    for name in "ab":
        train(*SHORT, f"run_dir={tmp_path / name}")
    gc.collect()
    assert len(seen) == 4
    assert not any(one() for one in seen)
