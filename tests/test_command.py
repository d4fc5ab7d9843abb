"""The command line: its help, its refusals, its sweeps, and where each run goes."""

import itertools
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, RUNS, SHORT, SMALL, composed, process, settings_of
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from vae.errors import InputError
from vae.run import command
from vae.run.compose import compose, hydra_over
from vae.run.directory import Run, read_settings
from vae.run.jobs import overrides_of_jobs
from vae.run.keys import CONF
from vae.run.parts import known_keys
from vae.run.process import log_to
from vae.training.checkpoints import load

# --- help -------------------------------------------------------------------------------------------------------------


def without_torch(*arguments: str) -> str:
    """What `python train.py` prints, and that it printed it before torch was there."""
    code = "import sys, train; train.main(); sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    run = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_help_names_every_group_option_and_key_before_torch_is_imported() -> None:
    text = without_torch("--help")
    folders = {path.parent for path in Path(CONF).rglob("*/*.yaml")}
    for folder in folders - {Path(CONF, "reproduce")}:  # rungs are no choices of a run
        line = re.search(rf"^ *{folder.relative_to(CONF)} +(.*)$", text, re.MULTILINE)
        assert line, folder
        options = {path.stem for path in folder.glob("*.yaml")} - {"base"}
        assert set(line[1].split(", ")) == options
    for example in re.findall(r"^ *python train\.py (.*?)(?:   .*)?$", text, re.MULTILINE):
        if "sweep=" not in example:  # tests/test_presets.py composes every run of a preset
            command.check(command.prepare(example.split()))
    for key in ("latent_dim", "run_dir", "data.root", "optimizer.lr", "trainer.max_epochs", "model.encoder.hidden"):
        assert key in text


def test_help_and_the_page_of_keys_hold_every_key() -> None:
    from vae.run.helptext import write_help, write_keys_page

    for name, key in known_keys().items():
        assert re.search(rf"^  {re.escape(name)} +.*{re.escape(key.allowed)}\)$", write_help(), re.MULTILINE)
    assert (ROOT / "docs" / "keys.md").read_text() == write_keys_page()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["latent_dim=0", "+latent_dimm=4", "model=convv"])
def test_bad_value_ends_the_process_with_one_line(bad: str, tmp_path: Path) -> None:
    ended = process("data=digits", bad, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert bad.lstrip("+") in ended.stderr
    assert (ended.stdout, list(tmp_path.iterdir())) == ("", [])


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the command, in this process."""
    from train import main

    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize(
    "bad",
    [
        "model=conv model.encoder.kernel_size=99",
        "data.dev_size=2000",
        "data=mnist data.timeout=0.1 data.root=/sys/nowhere",
    ],
)
def test_what_is_refused_later_leaves_no_directory(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where the data must be read or the networks built to know."""
    monkeypatch.chdir(tmp_path)
    code = main(monkeypatch, *SMALL[:1], *bad.split())
    out, err = capfd.readouterr()
    value = bad.rpartition("=")[2]
    assert [line for line in (out + err).splitlines() if value in line]
    assert "Traceback" not in out + err
    assert code == 2
    assert len((out + err).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


EXPLAINED = {  # what is said of each form of Hydra's messages, and what it must name
    "model=convv": ["model=convv", "conv, mlp"],
    "objective/beta=lin": ["objective/beta=lin", "linear"],
    "latent_dimm=4": ["latent_dimm=4", "did you mean latent_dim?"],
    "optimzer=sgd": ["optimzer=sgd", "did you mean optimizer?"],
    "~latent_dimm": ["latent_dimm", "did you mean latent_dim?"],
    "~latent_dim=5": ["latent_dim=5"],
    "+optimizer.lr=0.1": ["optimizer.lr=0.1"],
    "latent_dim=[1,": ["latent_dim=[1,"],
    "latent_dim": ["latent_dim"],
    "latent_dim=2,3": ["latent_dim=2,3", "--multirun"],
    "data=base": ["data._target_"],
    "dropout=${nothing}": ["dropout", "nothing"],
    "=4": ["=4", "key=value"],
    "latent_dim=4 4": ["latent_dim=4 4"],
}


@pytest.mark.parametrize("override", EXPLAINED)
def test_hydra_s_messages_become_one_line(override: str) -> None:
    with pytest.raises(InputError) as caught:
        command.check([override])
    line = str(caught.value)
    assert "\n" not in line
    for part in EXPLAINED[override]:
        assert part in line


def test_processes_of_one_run_are_refused_a_sweep() -> None:
    """Under -m each of Lightning's ddp processes would start the whole sweep again."""
    with pytest.raises(InputError, match=r"^trainer\.strategy=ddp: .*-m"):
        command.check(["-m", "trainer=ddp", "latent_dim=2,3"])


# --- sweeps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ["latent_dim=2,3"],
        ["latent_dim=choice(2,3,5)"],
        ["latent_dim=range(2,9,3)"],
        ["optimizer.lr=0.1,0.001", "latent_dim=2,3", "seed=range(3)"],
        ["model=mlp,conv", "data=digits"],
        ["model.encoder.hidden=[5],[5,6]"],
        ["model=glob(*)"],
        ["experiment=glob(report_*)", "seed=1,2"],
        ["optimizer=glob(*,exclude=sgd)"],
        ["seed=shuffle(1,2)"],
        ["data=digits", "latent_dim=3"],
        ["run_dir='a,b'"],
    ],
    ids=str,
)
def test_sweep_is_taken_apart_as_by_hydra(overrides: list[str]) -> None:
    with hydra_over():
        from hydra.core.global_hydra import GlobalHydra

        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
        (expected,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        found = overrides_of_jobs(overrides)
    assert [[part.replace("'", "") for part in job] for job in found] == [
        [part.replace("'", "") for part in job] for job in expected
    ] or (any("shuffle" in o for o in overrides) and sorted(map(str, found)) == sorted(map(str, expected)))


def test_every_run_of_a_sweep_is_checked() -> None:
    for bad in ("latent_dim=2,0", "seed=range(-1,2)", "model=mlp,convv"):
        with pytest.raises(InputError):
            command.check(["-m", "dropout=0.1,0.2", bad])


def test_sweep_writes_what_the_design_says(sweep: Path) -> None:
    """`-m latent_dim=2,3 model=mlp,conv`: four directories, each a whole run of its own configuration."""
    assert {path.name for path in sweep.iterdir()} == {*RUNS, "multirun.yaml", ".lock", "comparison"}
    for name, (latents, half) in zip(RUNS, itertools.product([2, 3], ["MLP", "Conv"]), strict=True):
        run = sweep / name
        names = {path.name for path in run.iterdir()}
        assert {"config.yaml", "metrics.json", "train.log", "checkpoints", "figures", ".hydra"} <= names
        assert [name for name in names if name.startswith("events.out.tfevents.")]
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        assert {path.name for path in (run / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
        s = read_settings(run / "config.yaml")
        assert s["latent_dim"] == latents
        assert s["model"]["encoder"]["_target_"] == f"vae.networks.{half}Encoder"
        assert load(run / "checkpoints" / "last.ckpt")["vae"]["settings"] == s
        overrides = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text())
        assert f"latent_dim={latents}" in overrides
        assert "epoch 1 of 1" in (run / "train.log").read_text()
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO ", (run / "train.log").read_text())


# --- where a run goes -------------------------------------------------------------------------------------------------


def test_runs_of_the_same_second_have_directories_of_their_own() -> None:
    first, second = (settings_of("seed=0", f"threads={n}").plain["run_dir"] for n in (1, 2))
    assert first != second
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-\d{6}", first)


@pytest.mark.slow
def test_two_processes_at_once_write_two_runs(tmp_path: Path) -> None:
    run = [sys.executable, str(ROOT / "train.py"), *SHORT]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(run, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [one.wait(timeout=600) for one in both] == [0, 0]
    assert len(list(tmp_path.glob("outputs/*/*/metrics.json"))) == 2


def test_processes_of_other_devices_are_told_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning starts them by the same arguments, and the time may be in the directory's name."""
    monkeypatch.setattr(sys, "argv", ["train.py", "trainer=ddp", "run_dir=x"])
    run = Run(tmp_path / "a,b=c", settings_of("data=digits", "trainer=ddp"))
    command.hand_on(run)
    assert compose(sys.argv[1:]).run_dir == str(tmp_path / "a,b=c")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    command.hand_on(Run(tmp_path, settings_of("data=digits")))
    assert sys.argv == ["train.py"]


def test_a_requeued_job_finds_its_run_and_another_command_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(*arguments: str) -> str:
        (found,) = [a for a in command.with_run_dir([*arguments]) if a.startswith("run_dir=")]
        return found

    monkeypatch.setenv("SLURM_JOB_ID", "41")
    assert place("latent_dim=3") == place("latent_dim=3")
    assert place("latent_dim=3").startswith("run_dir=outputs/slurm/41-")
    assert len({place("latent_dim=3"), place("latent_dim=4"), place("-m", "latent_dim=3")}) == 3
    assert place("-m", "latent_dim=3").startswith("run_dir=outputs/multirun/41-")
    assert place("run_dir=mine") == "run_dir=mine"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    assert place("latent_dim=3").startswith("run_dir=outputs/slurm/40_7-")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # a shell on a node: what runs there is not one command
    assert command.with_run_dir(["latent_dim=3"]) == ["latent_dim=3"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine must lack what is asked for")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    one = Run(tmp_path / "run", settings_of("data=digits", "trainer=gpu"))
    with pytest.raises(InputError, match=r"^trainer\.accelerator=gpu: .*no GPU.*trainer=cpu"), one.open():
        pytest.fail("it was opened")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [".", ".hydra", "checkpoints", "figures"])
def test_a_run_clears_what_a_killed_process_half_wrote(tmp_path: Path, place: str) -> None:
    """Wherever a run writes; the process number is one that no process can have."""
    half = tmp_path / "run" / place / "config.yaml.7.99999999.part"
    half.parent.mkdir(parents=True, exist_ok=True)
    half.touch()
    with Run(tmp_path / "run", settings_of("data=digits")).open():
        assert not half.exists()


def test_an_unexpected_failure_names_the_log_which_has_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(cfg: Any) -> float:
        log_to(tmp_path / "train.log")
        logging.getLogger().addHandler(caplog.handler)
        return 1 / 0

    with pytest.raises(SystemExit) as ended:
        command.with_exit_codes(fails, composed("data=digits"))
    assert ended.value.code == 1
    assert caplog.messages[-1].startswith("ZeroDivisionError: division by zero; its log: ")
    assert caplog.messages[-1].endswith("train.log")
    assert "in fails" in (tmp_path / "train.log").read_text()
    log_to(None)


def test_overrides_may_stand_on_both_sides_of_m(tmp_path: Path) -> None:
    ended = process(
        "data=digits", "model.encoder.hidden=[4]", "-m", "latent_dim=2,4", "model.decoder.hidden=[4]",
        "trainer.max_epochs=1", "trainer.limit_train_batches=1", "evaluation=none", f"run_dir={tmp_path}",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {
        read_settings(tmp_path / name / "config.yaml")["latent_dim"] for name in ("latent_dim=2", "latent_dim=4")
    } == {2, 4}


def test_the_package_is_quick_to_import_and_hands_on_its_names() -> None:
    code = "import sys, vae; quick = 'torch' not in sys.modules; "
    code += "from vae import VAE, ELBO, IWAE, LitVAE, ImageDataModule, load_run; print(quick, VAE.__module__)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.stdout == "True vae.model\n"
