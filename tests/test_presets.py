"""Presets of sweeps, conf/sweep/: which runs they are, and that they run as one sweep."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import process

from vae.errors import InputError
from vae.run import command, jobs
from vae.run.compose import compose_config, hydra_over
from vae.run.keys import CONF

PRESETS = sorted(path.stem for path in Path(CONF, "sweep").glob("*.yaml"))


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder conf/sweep/ with one preset."""
    file = tmp_path / "conf" / "sweep" / "mine.yaml"
    file.parent.mkdir(parents=True)
    common, lines = ["seed=0,1", "dropout=0.1"], ["", "latent_dim=2,3", "model=conv model.encoder.norm=batch"]
    file.write_text(yaml.safe_dump({"common": common, "lines": lines}))
    with hydra_over():
        monkeypatch.setattr(jobs, "CONF", str(tmp_path / "conf"))
        yield


@pytest.mark.usefixtures("preset")
def test_a_preset_is_the_union_of_its_lines_seed_by_seed() -> None:
    runs = jobs.preset_jobs("mine", [])
    line = [[], ["latent_dim=2"], ["latent_dim=3"], ["model=conv", "model.encoder.norm=batch"]]
    assert runs == [[f"seed={seed}", "dropout=0.1", *keys] for seed in (0, 1) for keys in line]


@pytest.mark.usefixtures("preset")
def test_the_command_wins_over_what_is_common_and_a_line_over_the_command() -> None:
    runs = jobs.preset_jobs("mine", ["dropout=0.2", "seed=5", "latent_dim=7"])
    assert {"dropout=0.2"} <= set.intersection(*map(set, runs))
    assert [next(key for key in job if key.startswith("latent_dim")) for job in runs] == [
        "latent_dim=7", "latent_dim=2", "latent_dim=3", "latent_dim=7",
    ]  # fmt: skip
    assert all("seed=5" in job for job in runs)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_accepted(name: str) -> None:
    command.check(command.prepare(["-m", f"sweep={name}", "seed=0"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_run_of_a_preset_is_a_configuration_of_its_own(name: str) -> None:
    with hydra_over():
        runs = jobs.preset_jobs(name, ["seed=0"])
    composed = [compose_config(job) for job in runs]
    assert len({str(cfg) for cfg in composed}) == len(runs) > 5


def test_a_preset_that_is_not_there_and_one_without_m_are_refused() -> None:
    with pytest.raises(InputError, match=r"sweep=nine: there is no such option; it is one of .*report_claims"):
        command.check(command.prepare(["-m", "sweep=nine"]))
    with pytest.raises(InputError, match=r"sweep=report_claims: is for several runs; give it with -m"):
        command.check(command.prepare(["sweep=report_claims"]))


def test_a_preset_has_a_place_of_its_own() -> None:
    assert "run_dir=outputs/multirun/report_claims" in command.prepare(["-m", "sweep=report_claims"])
    assert "run_dir=here" in command.prepare(["-m", "sweep=report_claims", "run_dir=here"])


@pytest.mark.slow
def test_a_preset_trains_in_a_process_of_its_own(tmp_path: Path) -> None:
    small = [
        "data=digits",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        "seed=3",
        "evaluation.features=false",
    ]
    ended = process("-m", "sweep=report_claims_70", *small, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(list(tmp_path.glob("outputs/multirun/report_claims_70/*/metrics.json"))) == 6
