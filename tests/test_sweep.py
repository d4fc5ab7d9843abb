"""Sweeps: the runs below a folder, folders named by what varies, what is left to do, and what failed."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, RUNS, SHORT, SMALL, settings_of, tree
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from vae.errors import InputError
from vae.model import VAE
from vae.run import command, settings
from vae.run.directory import FAILURE, read_settings, write_yaml
from vae.run.jobs import (
    LONGEST_NAME,
    Job,
    choose_directory,
    fingerprint,
    name_jobs,
    plan_sweep,
    safe_name,
    take_directory,
)
from vae.run.probe import probe
from vae.run.records import list_runs, natural
from vae.run.runner import choose_engine, run_jobs

# --- the list of runs -------------------------------------------------------------------------------------------------


def test_every_run_below_a_folder_is_listed_once_with_its_settings_and_metrics(sweep: Path) -> None:
    records = list_runs(sweep.parent, sweep)
    assert [record.directory.parent for record in records] == [sweep] * 4
    assert {(r.settings["latent_dim"], r.status, r.message) for r in records if r.settings} == {
        (2, "finished", ""),
        (3, "finished", ""),
    }
    for record in records:
        assert record.metrics == json.loads((record.directory / "metrics.json").read_text())


def test_how_it_stands_with_a_run(sweep: Path, tmp_path: Path) -> None:
    first = list_runs(sweep)[0].directory
    for name in ("cut", "failed", "running", "damaged", "no metrics", "grown"):
        shutil.copytree(first, tmp_path / name)
        if name != "grown":
            (tmp_path / name / "metrics.json").unlink()
    (tmp_path / "failed" / FAILURE).write_text("the loss is not finite\n")
    (tmp_path / "damaged" / "config.yaml").write_text("latent_dim: [")
    (tmp_path / "no metrics" / "metrics.json").write_text("{}")
    config = tmp_path / "grown" / "config.yaml"
    plain = yaml.safe_load(config.read_text())
    plain["trainer"]["max_epochs"] += 1
    config.write_text(yaml.safe_dump(plain))
    shutil.copytree(ROOT / "conf", tmp_path / "conf")  # which holds a config.yaml too
    with FileLock(tmp_path / "running" / ".lock"):
        found = {record.name: (record.status, record.message) for record in list_runs(tmp_path)}
    assert "cannot be read" in found["damaged"][1]
    assert "does not hold the metrics" in found["no metrics"][1]
    assert {name: status for name, (status, _) in found.items()} == {
        "cut": "unfinished", "failed": "failed", "running": "running", "damaged": "unreadable",
        "no metrics": "unreadable", "grown": "unfinished",
    }  # fmt: skip
    assert found["cut"][1] == "epoch 1 of 1"
    assert found["failed"][1] == "the loss is not finite"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert list_runs(tmp_path) == []
    with pytest.raises(InputError, match="there is no such folder"):
        list_runs(tmp_path / "nowhere")


def test_runs_are_listed_without_torch() -> None:
    code = (
        "import sys; from vae.run.records import list_runs; list_runs('.'); print({'torch', 'hydra'} & {*sys.modules})"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.stderr) == ("set()\n", "")


def test_numbers_in_names_are_sorted_as_numbers() -> None:
    assert sorted(["latent_dim=16", "latent_dim=4", "10", "9"], key=natural) == [
        "9",
        "10",
        "latent_dim=4",
        "latent_dim=16",
    ]


# --- folders by what varies -------------------------------------------------------------------------------------------


def test_a_job_is_named_by_what_varies_in_the_order_of_the_keys() -> None:
    jobs = [["model=conv", "data=digits", f"latent_dim={n}", "run_dir=a", f"hydra.verbose={n}"] for n in (2, 4)]
    assert name_jobs(jobs) == ["latent_dim=2", "latent_dim=4"]
    assert name_jobs([*jobs, ["model=mlp", "data=digits", "++likelihood.width=3"]]) == [
        "latent_dim=2,model=conv", "latent_dim=4,model=conv", "likelihood.width=3,model=mlp",
    ]  # fmt: skip
    assert name_jobs(jobs[:1]) == ["default"]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("model.encoder.hidden=[200,100, 50]", "model.encoder.hidden=200-100-50"),
        ("data.root=/a b/c", "data.root=_a_b_c-"),
        ("data.mirrors=['https://x/?a=b,c']", "data.mirrors=_https___x__a=b-c_-"),
        (f"data.root={'x' * 300}", "data.root=xxx"),
        ("data.root=$(rm -r *);\n..", "data.root=__rm_-r_____..-"),
    ],
)
def test_a_name_is_safe_and_short_and_differs_where_the_text_does(text: str, start: str) -> None:
    name = safe_name(text)
    assert name.startswith(start)
    assert len(name) <= LONGEST_NAME
    assert not set(name) & set(" /'\"$()*?;\n[]")
    if "hidden" not in text:
        assert safe_name(text.replace("/", "?").replace("x", "y") + "!") != name


def folder(root: Path, name: str, *overrides: str) -> str:
    return take_directory(root, name, settings_of(*SMALL, *overrides)).name


def test_a_job_is_found_by_its_configuration_whatever_its_folder_is_called(tmp_path: Path) -> None:
    """More values, another order, one key more, a number of an older version."""
    assert folder(tmp_path, "seed=1", "seed=1") == "seed=1"
    assert folder(tmp_path, "model=mlp,seed=1", "seed=1", "model=mlp") == "seed=1"
    write_yaml(tmp_path / "17" / "config.yaml", settings_of(*SMALL, "seed=2").plain)
    before = tree(tmp_path)
    assert folder(tmp_path, "seed=2", "seed=2", "threads=1", "data.num_workers=1") == "17"  # no result depends on them
    assert tree(tmp_path) == before


def test_a_folder_of_another_configuration_is_never_taken(tmp_path: Path) -> None:
    names = [folder(tmp_path, "seed=1", "seed=1", rate) for rate in ("optimizer.lr=0.1", "optimizer.lr=0.2") * 2]
    assert names[0] == names[2] == "seed=1"
    assert names[1] == names[3]
    assert names[1].startswith("seed=1-")
    (tmp_path / "seed=3").mkdir()
    (tmp_path / "seed=3" / "notes.txt").write_text("mine")
    assert folder(tmp_path, "seed=3", "seed=3").startswith("seed=3-")
    assert (tmp_path / "seed=3" / "notes.txt").read_text() == "mine"


def test_epochs_grow_in_the_folder_of_the_name_only(tmp_path: Path) -> None:
    """A sweep over the number of epochs leaves the shorter runs alone."""
    assert folder(tmp_path, "seed=1", "seed=1", "trainer.max_epochs=1") == "seed=1"
    assert folder(tmp_path, "seed=1", "seed=1", "trainer.max_epochs=2") == "seed=1"
    each = [folder(tmp_path / "all", f"trainer.max_epochs={n}", f"trainer.max_epochs={n}") for n in (1, 2)]
    assert each == ["trainer.max_epochs=1", "trainer.max_epochs=2"]


def test_equal_numbers_are_one_configuration() -> None:
    assert fingerprint({"dropout": 0.0, "seed": 2**62 + 1}) == fingerprint({"seed": 2**62 + 1, "dropout": 0})
    assert fingerprint({"seed": 2**62 + 1}) != fingerprint({"seed": 2**62})


def test_a_finished_run_is_preferred_among_equal_ones(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep / RUNS[0], tmp_path / "3")
    write_yaml(tmp_path / "own" / "config.yaml", read_settings(tmp_path / "3" / "config.yaml"))
    s = settings.verify(read_settings(tmp_path / "3" / "config.yaml"))
    assert choose_directory(tmp_path, "own", s).name == "3"


# --- a sweep as a whole -----------------------------------------------------------------------------------------------


def test_a_sweep_tells_of_each_job_and_draws_on_demand(sweep: Path) -> None:
    out, err = ((sweep.parent / name).read_text() for name in ("stdout", "stderr"))
    assert "Traceback" not in err
    assert "HYDRA" not in out + err
    lines = out.splitlines()
    assert f"sweep of 4 runs in {sweep}: 4 to do" in lines
    assert sum(line.startswith("epoch 1 of 1  train/loss") for line in lines) == 4
    told = [line for line in lines if re.match(f"({'|'.join(RUNS)}): dev/loss .* in epoch 1 of 1", line)]
    assert len(told) == 4
    assert (sweep / "comparison" / "comparison.md").read_text().count("| mlp | 1 |") == 2
    assert "left, about" in told[0]
    assert "left" not in told[-1]


def run_sweep(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    from train import main

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def status_in_hparams(directory: Path) -> tuple[int, float]:
    """How a run ended, as TensorBoard reads it, and its data.dev_size in the row."""
    found = EventAccumulator(str(directory)).Reload().PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(found["_hparams_/session_start_info"]).session_start_info
    end = HParamsPluginData.FromString(found["_hparams_/session_end_info"]).session_end_info
    return end.status, start.hparams["data.dev_size"].number_value


def test_a_run_that_failed_and_goes_on_has_one_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = (*SHORT, "data.dev_size=1000,900", f"run_dir={tmp_path}")
    with monkeypatch.context() as broken:
        broken.setattr(VAE, "decode", lambda *_: 1 / 0)
        assert run_sweep(broken, *arguments) == 1
    assert "ZeroDivisionError" in capfd.readouterr().out
    assert status_in_hparams(tmp_path / "data.dev_size=1000")[0] == api_pb2.STATUS_FAILURE
    assert run_sweep(monkeypatch, *arguments) == 0
    assert status_in_hparams(tmp_path / "data.dev_size=1000") == (api_pb2.STATUS_SUCCESS, 1000)


def test_a_failed_job_is_listed_and_kept_and_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = (*SHORT, "data.dev_size=2000,1000", f"run_dir={tmp_path}")
    assert run_sweep(monkeypatch, *arguments) == 1
    out, err = capfd.readouterr()
    line = "data.dev_size=2000: data.dev_size=2000: leaves none of 1497 images"
    assert [one for one in out.splitlines() if one.startswith(f"failed: {line}")]
    assert "1 of 2 runs are not finished" in out
    assert err == ""
    found = {record.name: (record.status, record.message) for record in list_runs(tmp_path)}
    assert found["data.dev_size=1000"] == ("finished", "")
    assert found["data.dev_size=2000"][0] == "failed"
    assert found["data.dev_size=2000"][1].startswith("data.dev_size=2000: leaves none of 1497 images")
    assert not list(tmp_path.rglob("*.png"))
    assert status_in_hparams(tmp_path / "data.dev_size=1000") == (api_pb2.STATUS_SUCCESS, 1000)
    assert status_in_hparams(tmp_path / "data.dev_size=2000") == (api_pb2.STATUS_FAILURE, 2000)
    done = tree(tmp_path / "data.dev_size=1000")
    assert run_sweep(monkeypatch, *arguments) == 1
    assert "2 runs in" in (again := capfd.readouterr().out)
    assert "1 finished, 1 begun" in again
    assert tree(tmp_path / "data.dev_size=1000") == done


def test_a_folder_with_an_equals_sign_needs_no_quotes() -> None:
    given = ["run_dir=a/latent_dim=2,model=it's", "data.root=/a b/c"]
    s = settings_of(*command.prepare(given))
    assert (s.run_dir, s.plain["data"]["root"]) == ("a/latent_dim=2,model=it's", "/a b/c")


def test_a_dry_run_lists_the_jobs_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path, "latent_dim=2", "latent_dim=2")
    before = tree(tmp_path)
    given = [one for one in SMALL if not one.startswith("latent_dim")]
    assert run_sweep(monkeypatch, "--dry-run", *given, "latent_dim=2,3", f"run_dir={tmp_path}") == 0
    first, *jobs, last = capsys.readouterr().out.splitlines()
    assert first == f"sweep of 2 runs in {tmp_path}: 1 begun, 1 to do"
    assert [re.sub(" +", " ", job) for job in jobs] == [
        f"{standing} {parameters(latents):,} parameters latent_dim={latents}"
        for latents, standing in ((2, "begun"), (3, "to do"))
    ]
    assert re.match(r"about \d+ (s|min) of training and validation for the 2 left", last)
    assert tree(tmp_path) == before


def parameters(latents: int) -> int:
    """Of the MLP of SMALL, counted by hand; the likelihood takes a mean and a deviation per pixel."""
    return 785 * 5 + 6 * 2 * latents + (latents + 1) * 4 + 5 * 2 * 784


def test_a_dry_run_says_what_the_sweep_would_fail_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("data=npz", f"data.path={tmp_path / 'none.npz'}", "seed=1,2", f"run_dir={tmp_path / 'runs'}")
    assert run_sweep(monkeypatch, "--dry-run", *given) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1:3] == ["to do          seed=1", "to do          seed=2"]
    assert said[3].startswith(f"no estimate, and the sweep would fail: data.path={tmp_path / 'none.npz'}")
    assert not (tmp_path / "runs").exists()


def test_the_time_of_a_dry_run_is_that_of_the_epochs_that_are_left(tmp_path: Path) -> None:
    """Runs that differ in their seed are measured once, so that their times are in the ratio of their epochs."""
    given = [*SMALL, "threads=1", "trainer.max_epochs=10"]
    s = [settings_of(*given, f"seed={seed}") for seed in (0, 1)]
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "train.log").write_text("epoch 4 of 10  train/loss 1\n")
    whole, begun = (Job(str(i), s[i], tmp_path / str(i), status) for i, status in ((1, None), (0, "unfinished")))
    costs = probe([whole, begun])
    assert costs[1].seconds == pytest.approx(0.6 * costs[0].seconds)
    assert costs[0].seconds > 0


def test_an_epoch_of_fewer_steps_than_warm_the_clock_up_is_timed_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of the clock says a second a step: two steps and the validation make three seconds an epoch."""
    taken: list[int] = []

    def clock(work: object, steps: int = 0) -> float:
        taken.append(sum(1 for _ in zip(range(steps), work, strict=False)) if isinstance(work, Iterator) else 1)
        return float(taken[-1])

    monkeypatch.setattr("vae.run.probe.timed", clock)
    monkeypatch.setattr("vae.run.probe.LONGEST", 10)
    s = settings_of(*SMALL, "data.batch_size=600", "trainer.max_epochs=1")  # 1,197 images
    (cost,) = probe([Job("", s, tmp_path)])
    assert cost.seconds == 3


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("latent_dim=2,4", "latent_dim=8"), "latent_dim=8: latent_dim=2,4 is given too"),
        (("latent_dim=2", "latent_dim=4,8"), "latent_dim=4,8: latent_dim=2 is given too"),
        (("latent_dim=2,4", "run_dir=a,b"), "run_dir=a,b: a sweep has one folder"),
        (("latent_dim=2,4", "run_dir='{run}'"), "is a run; a sweep needs a folder of its own"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(arguments: tuple[str, ...], line: str, sweep: Path) -> None:
    given = [one.format(run=sweep / RUNS[0]) for one in arguments]
    with pytest.raises(InputError) as refused:
        command.check(["-m", *given])
    assert line in str(refused.value)


def test_a_finished_sweep_under_another_evaluation_is_refused_at_once(sweep: Path) -> None:
    given = [*(f"latent_dim=2,3 model=mlp,conv {' '.join(SMALL[:1])}").split(), "trainer.max_epochs=1"]
    given += ["model.encoder.hidden=[5]", "model.decoder.hidden=[4]", "likelihood=gaussian", "evaluation.samples=7"]
    with pytest.raises(InputError, match=r"evaluation\.samples.*vae evaluate"):
        command.check(["-m", *given, f"run_dir={sweep}"])


def test_a_launcher_that_cannot_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for launcher, line in [
        ("hydra/launcher=ray", "there is no such launcher; it is one of basic, joblib, submitit_local, submitit_slurm"),
        ("hydra.launcher.n_jobs=2", "hydra/launcher=basic has no such key"),
        ("hydra/launcher=submitit_slurm", "submitit is not installed; pip install"),
    ]:
        monkeypatch.setattr("vae.run.runner.find_spec", lambda name: None)
        with pytest.raises(InputError, match=line):
            command.check(["-m", "latent_dim=2,3", launcher])
    with pytest.raises(InputError, match="is for several runs; give it with -m"):
        command.check(["latent_dim=2", "hydra/launcher=joblib"])


@pytest.mark.slow
def test_lost_slurm_jobs_are_failed_runs_and_squeue_is_asked_where_sacct_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With programs in Slurm's place: sbatch keeps its script and runs nothing, and squeue knows no job."""
    pytest.importorskip("submitit")
    programs = {"sbatch": f'cp "$1" {tmp_path}/script; echo "Submitted batch job 7"', "sacct": "exit 1"}
    for name in ("sbatch", "sacct", "srun", "squeue"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{programs.get(name, 'exit 0')}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    given = ["latent_dim=2,3", "data=digits", f"run_dir={tmp_path / 'sweep'}", "hydra/launcher=submitit_slurm"]
    given += ["hydra.launcher.partition=main", "hydra.launcher.additional_parameters.nice=100"]
    outcomes = run_jobs(plan_sweep(given), choose_engine(given, tmp_path / "sweep"))
    assert {outcome.job.name: outcome.code for outcome in outcomes} == {"latent_dim=2": 1, "latent_dim=3": 1}
    assert all(outcome.line.startswith("job 7_") for outcome in outcomes)
    script = (tmp_path / "script").read_text()
    for option in ("array=0-1", "partition=main", "mem=4GB", "time=240", "signal=USR1@120", "nice=100", "requeue"):
        assert f"#SBATCH --{option}" in script


@pytest.mark.parametrize("group", ["launcher", "sweeper"])
def test_a_launcher_or_values_in_a_yaml_file_are_not_passed_over(group: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    values = {"launcher": {"_target_": "theirs.Launcher"}, "sweeper": {"params": {"latent_dim": "2,3"}}}
    recipe = "# @package _global_\n" + yaml.safe_dump({"hydra": {group: values[group]}})
    (tmp_path / "experiment" / "mine.yaml").write_text(recipe)
    with pytest.raises(InputError, match=rf"^hydra/{group}: is set in a YAML file"):
        command.check(["-m", "experiment=mine", "seed=1,2", "--config-dir", str(tmp_path)])
