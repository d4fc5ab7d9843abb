"""vae tune: spaces, and studies whose workers are killed."""

import glob
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from conftest import ROOT, process

from vae.errors import InputError
from vae.run.compose import compose
from vae.run.keys import CONF
from vae.run.search_space import check_edges, edges, read_search

optuna = pytest.importorskip("optuna")

from vae.commands import cli  # noqa: E402
from vae.commands import tune as verb  # noqa: E402
from vae.run import tune as tuning  # noqa: E402

SPACE: dict[str, Any] = {
    "minimize": "dev/loss",
    "space": {
        "latent_dim": "int(interval(2, 6))",
        "model.encoder.hidden": "choice([5], [7,6], [9])",
        "model.decoder.hidden": "${model.encoder.hidden}",
        "optimizer.lr": "tag(log, interval(0.0001, 0.01))",
    },
}
FEW = (
    "data=digits", "evaluation=none", "callbacks.figures_every=0", "threads=1", "trainer.max_epochs=3",
    "trainer.limit_train_batches=4",
)  # fmt: skip


def write(path: Path, space: Any) -> str:
    path.write_text(yaml.safe_dump(space, sort_keys=False))
    return str(path)


@pytest.fixture
def space(tmp_path: Path) -> str:
    return write(tmp_path / "mine.yaml", SPACE)


# --- spaces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(CONF, "tune").glob("*.yaml")))
def test_every_space_of_ours_holds_only_values_that_runs_take(name: str) -> None:
    check_edges(read_search(name), ["data=digits"])


def test_a_value_goes_to_the_keys_that_share_it_and_an_option_opens_its_space(tmp_path: Path) -> None:
    options = {"model": {"mlp": None, "conv": {"model.encoder.stride": "range(1, 3)"}}}
    search = read_search(write(tmp_path / "s.yaml", {"space": {**options, **SPACE["space"], "dropout": 0.1}}))
    trial = optuna.trial.FixedTrial
    values = {"latent_dim": 3, "model.encoder.hidden": "[7,6]", "optimizer.lr": 0.002, "model.encoder.stride": "2"}
    conv = search.suggest(trial({"model": "conv", **values}))
    assert {"model=conv", "model.encoder.stride=2", "optimizer.lr=0.002", "latent_dim=3", "dropout=0.1"} < set(conv)
    assert compose(["data=digits", *conv[2:]]).plain["model"]["decoder"]["hidden"] == [7, 6]
    assert not [override for override in search.suggest(trial({"model": "mlp", **values})) if "stride" in override]
    assert search.keys() == {"model", "model.encoder.stride", *SPACE["space"], "dropout"}


def test_the_edges_of_a_space_have_each_value_once(tmp_path: Path) -> None:
    options = {"model": {"mlp": None, "conv": {"model.encoder.stride": "choice(1, 2)"}}, "dropout": "interval(0, 0.5)"}
    search = read_search(write(tmp_path / "s.yaml", {"space": options}))
    assert [" ".join(edge) for edge in edges(search)] == [
        "model=mlp dropout=0.0",
        "model=conv model.encoder.stride=1 dropout=0.0",
        "model=mlp dropout=0.5",
        "model=conv model.encoder.stride=2 dropout=0.0",
    ]


def test_a_logarithmic_interval_is_searched_on_a_logarithmic_scale(space: str) -> None:
    study = optuna.create_study()
    trial = study.ask()
    read_search(space).suggest(trial)
    assert trial.distributions["optimizer.lr"] == optuna.distributions.FloatDistribution(0.0001, 0.01, log=True)
    assert trial.distributions["latent_dim"] == optuna.distributions.IntDistribution(2, 6)


REFUSED: dict[str, tuple[Any, str]] = {
    "no space": ({"minimize": "dev/loss"}, "has no `space`"),
    "an unknown entry": ({**SPACE, "sampler": "x"}, "sampler: unknown entry"),
    "an unknown key": ({"space": {"latent_dimm": "int(interval(1, 2))"}}, "did you mean latent_dim"),
    "a value that no run takes": ({"space": {"latent_dim": "int(interval(0, 2))"}}, "latent_dim=0: must be"),
    "a last value that no run takes": ({"space": {"dropout": "interval(0.1, 1.5)"}}, "dropout=1.5: must be"),
    "a choice that no run takes": ({"space": {"latent_dim": "choice(2, -1)"}}, "latent_dim=-1: must be"),
    "an end too few": ({"space": {"latent_dim": "interval(2)"}}, "cannot be read"),
    "ends the wrong way round": ({"space": {"dropout": "interval(0.5, 0.1)"}}, "low must be below high"),
    "a log scale from 0": ({"space": {"dropout": "tag(log, interval(0, 0.1))"}}, "above 0 on a log scale"),
    "pruning by two": ({**SPACE, "minimize": ["dev/loss", "dev/kl"], "prune": True}, "only one objective"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_space_that_cannot_be_searched_is_refused(case: str, tmp_path: Path) -> None:
    plain, words = REFUSED[case]
    with pytest.raises(InputError, match=re.escape(words)) as error:
        verb.tune(write(tmp_path / "s.yaml", plain), [f"run_dir={tmp_path / 'study'}"], 3)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "study").exists()


def test_bad_commands_are_refused_before_anything_is_written(space: str, tmp_path: Path) -> None:
    place = f"run_dir={tmp_path / 'study'}"
    for name, given, words in [
        ("nine", [], "there is no such search space; it is one of architecture, sizes"),
        (space, ["latent_dim=3"], "latent_dim is what is searched"),
        (space, ["model.decoder.hidden=[3]"], "model.decoder.hidden is what is searched"),
        (space, ["data=digit"], "there is no such option"),
        (space, ["dropout=2"], "dropout=2: must be"),
        (space, ["fast"], "is not key=value"),
        (space, ["run_dir=/dev/null/study"], "run_dir=/dev/null/study: /dev/null is not a folder"),
    ]:
        with pytest.raises(InputError, match=re.escape(words)):
            verb.tune(name, [place, *given], 3)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("password", ["hush-hush", "p@ss/w0rd:x", "p%40ss%2Fhush"])
@pytest.mark.parametrize("url", ["nosuch://me:{}@here/db", "postgresql+psycopg://me:{}@127.0.0.1:1/db"])
def test_the_password_of_a_storage_is_never_shown(
    space: str, tmp_path: Path, url: str, password: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    arguments = ["tune", space, *FEW, f"run_dir={tmp_path / 's'}", "--storage", url.format(password)]
    monkeypatch.setattr(sys, "argv", ["vae", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capfd.readouterr()
    assert end.value.code == 2
    assert "cannot be opened" in err
    assert "me:***@" in err
    pieces = [piece for piece in re.split("[@/:]", unquote(password)) if len(piece) > 2]
    assert not [piece for piece in [password, *pieces] if piece in out + err]


# --- a study in this process ------------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In the place of training: a function of the configuration, and the folders that were trained."""
    folders: list[str] = []

    def train(run: Any, trial: Any, search: Any) -> dict[str, Any] | None:
        folders.append(run.directory.name)
        if run.settings.latent_dim == 3:
            raise ValueError("no threes")
        return {"dev/loss": run.settings.latent_dim + run.settings.optimizer["lr"], "parameters": 10}

    monkeypatch.setattr(tuning, "train_trial", train)
    return folders


def study_of(space: str, folder: Path, total: int, *given: str) -> tuning.Tuning:
    return tuning.Tuning(read_search(space), list(given or FEW), folder, total)


def test_a_study_has_its_number_of_trials_and_grows(space: str, tmp_path: Path, trained: list[str]) -> None:
    tuning.work(study_of(space, tmp_path / "s", 6))
    assert len(trained) == 6
    study = tuning.work(study_of(space, tmp_path / "s", 6))  # done: not one more
    assert len(trained) == 6
    tuning.work(study_of(space, tmp_path / "s", 9))
    assert trained == [f"trial_{number:03d}" for number in range(9)]
    failed = [one for one in study.trials if "failed" in one.user_attrs]
    assert all(one.params["latent_dim"] == 3 for one in failed)
    best = min((one for one in study.trials if one.value), key=lambda one: one.value)
    said = verb.describe(study_of(space, tmp_path / "s", 9), study)
    assert f"dev/loss {best.value!r}" in said
    assert f"latent_dim={best.params['latent_dim']}" in said


def test_the_same_seed_searches_the_same(space: str, tmp_path: Path, trained: list[str]) -> None:
    one, other = (tuning.work(study_of(space, tmp_path / name, 12)) for name in ("a", "b"))
    assert [trial.params for trial in one.trials] == [trial.params for trial in other.trials]


def test_another_search_in_the_same_folder_is_refused(space: str, tmp_path: Path, trained: list[str]) -> None:
    tuning.work(study_of(space, tmp_path / "s", 1))
    with pytest.raises(InputError, match="holds another search"):
        tuning.work(study_of(space, tmp_path / "s", 1, *FEW, "dropout=0.1"))


def test_what_a_dead_worker_left_is_run_again_once_and_in_its_folder(
    space: str, tmp_path: Path, trained: list[str]
) -> None:
    asked = study_of(space, tmp_path / "s", 3)
    study = tuning.open_study(asked)
    with tuning.as_worker(asked) as alive:
        first = tuning.next_trial(asked, study, alive)
        lost = tuning.next_trial(asked, study, "a worker that is gone")
        again, third = (tuning.next_trial(asked, study, alive) for _ in range(2))
        assert tuning.next_trial(asked, study, alive) is None
    assert None not in (first, lost, again, third)
    assert again.params == lost.params
    assert again.user_attrs["folder"] == lost.user_attrs["folder"] == "trial_001"
    assert {first.user_attrs["folder"], third.user_attrs["folder"]} == {"trial_000", "trial_003"}
    assert len(tuning.counted(study)) == 3


def test_a_configuration_that_kills_its_workers_is_given_up(space: str, tmp_path: Path, trained: list[str]) -> None:
    asked = study_of(space, tmp_path / "s", 1)
    study = tuning.open_study(asked)
    for _ in range(tuning.LIVES):
        assert tuning.next_trial(asked, study, "gone") is not None
    assert tuning.next_trial(asked, study, "gone") is None
    assert [one.state.name for one in tuning.counted(study)] == ["FAIL"]


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_torn_journal_is_opened_again_without_its_last_line(
    space: str, tmp_path: Path, trained: list[str], cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a worker leaves it that is killed while it writes."""
    tuning.work(study_of(space, tmp_path / "s", 2))
    journal = tmp_path / "s" / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-cut])
    lock = tuning.JournalLock(journal)
    lock.acquire()
    lock.release()
    assert f"{journal}: its last line was cut off" in capsys.readouterr().out
    assert journal.read_bytes() == whole[: whole[:-cut].rfind(b"\n") + 1]
    study = tuning.work(study_of(space, tmp_path / "s", 4))
    assert len(tuning.counted(study)) == 4
    journal.write_bytes(whole + b"{half\n" + whole)
    with pytest.raises(InputError, match=rf"journal.log: line {len(whole.splitlines()) + 1} cannot be read"):
        tuning.open_study(study_of(space, tmp_path / "s", 4))


def test_a_hopeless_trial_is_pruned_and_a_resumed_one_tells_its_past() -> None:
    from types import SimpleNamespace

    from vae.training.history import History
    from vae.training.pruning import Pruning

    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    for value in (1.0, 9.0):
        trial, history = study.ask(), History()
        history.rows = [{"epoch": epoch, "dev/loss": value} for epoch in (1, 2)]  # of the time before a resume
        pruning = Pruning(trial, "dev/loss")
        trainer = SimpleNamespace(current_epoch=2, max_epochs=9, callbacks=[history])
        history.rows.append({"epoch": 3, "dev/loss": value})
        pruning.on_validation_end(trainer, None)  # type: ignore[arg-type]  # what it looks at
        assert study.trials[-1].intermediate_values == {1: value, 2: value, 3: value}
        assert pruning.pruned == getattr(trainer, "should_stop", False) == (value == 9.0)
        study.tell(trial, value)


# --- real workers -----------------------------------------------------------------------------------------------------


class Worker:
    """`vae tune` in a process of its own, which can be killed in mid-trial and started again."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log, self.arguments = log, arguments
        self.start()

    def start(self) -> None:
        self.seen = len(self.lines)
        with open(self.log, "ab") as out:
            command = [sys.executable, "-m", "vae.commands.cli", "tune", *self.arguments]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)

    @property
    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def kill_in_a_trial(self) -> bool:
        """After it has begun its second trial since the start, when an epoch of that has ended; False if it is done."""
        while self.process.poll() is None:
            new = self.lines[self.seen :]
            begun = [i for i, line in enumerate(new) if line.startswith("trial ")]
            if len(begun) > 1 and any("epoch" in line for line in new[begun[-1] :]):
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
                return True
            time.sleep(0.05)
        return False

    def end(self) -> str:
        assert self.process.wait(1800) == 0, self.log.read_text()[-3000:]
        return "\n".join(self.lines[self.seen :])


def check_killed_study(space: str, folder: Path, workers: int, total: int, storage: str | None) -> None:
    given = [space, *FEW, f"run_dir={folder}", "--trials", str(total), *(["--storage", storage] if storage else [])]
    started = [Worker(folder.parent / f"{folder.name}_{i}.log", *given) for i in range(workers)]
    kills = 0
    for _ in range(2):
        for worker in started:
            kills += worker.kill_in_a_trial()
            worker.start()
    said = [worker.end() for worker in started]
    assert kills == 2 * workers
    study = tuning.open_study(tuning.Tuning(read_search(space), list(FEW), folder, total, storage))
    trials = tuning.counted(study)
    assert len(trials) == total
    assert {one.state.name for one in trials} <= {"COMPLETE", "PRUNED"}
    assert len({json.dumps(one.params) for one in trials}) == total  # none doubled
    by_number = {one.number: one for one in study.trials}
    again = [one for one in study.trials if "again" in one.user_attrs]
    assert len(again) >= kills // 2  # a worker may be killed just after its trial's end
    for one in again:  # none lost
        assert one.params == by_number[one.user_attrs["again"]].params
    folders = {one.user_attrs["folder"]: one for one in trials}
    assert sorted(folders) == sorted(path.name for path in folder.glob("trial_*"))
    for name, one in folders.items():
        metrics = folder / name / "metrics.json"
        assert metrics.exists() == (one.state.name == "COMPLETE")
        if metrics.exists():
            assert json.loads(metrics.read_text())["dev/loss"] == one.value
    (command,) = set(re.findall(r"^  python train.py (.*)$", "\n".join(said), re.MULTILINE))
    ended = process(*shlex.split(command), f"run_dir={folder.parent / 'best'}", cwd=folder.parent)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((folder.parent / "best" / "metrics.json").read_text())["dev/loss"] == study.best_value
    assert {path.name for path in (folder / "study").iterdir()} == {"history.png", "slices.png", "importances.png"}
    close(study)


def close(study: Any) -> None:
    """A database's connections, which would warn of themselves when pytest ends."""
    database = getattr(study._storage, "_backend", None)
    if database is not None and hasattr(database, "engine"):
        database.remove_session()
        database.engine.dispose()


@pytest.mark.slow
def test_24_trials_by_two_workers_that_are_killed_twice_each(space: str, tmp_path: Path) -> None:
    check_killed_study(space, tmp_path / "study", 2, 24, None)


BINARIES = Path(max(glob.glob("/usr/lib/postgresql/*/bin"), default="/nowhere"))


@pytest.fixture
def postgres() -> Iterator[str]:
    """The URL of a server of its own on loopback, which refuses to run as root."""
    if not (BINARIES / "initdb").exists():
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    root = os.geteuid() == 0
    if root and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="vae_postgres_"))
    as_user = ["runuser", "-u", "postgres", "--"] if root else []
    if root:
        shutil.chown(folder, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(*command: str | Path) -> None:
        done = subprocess.run([*as_user, *command], cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    data, options = folder / "data", f"-p {port} -k {folder} -h 127.0.0.1"
    try:
        run(BINARIES / "initdb", "-D", data, "-A", "trust", "-U", "tuner")
        run(BINARIES / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start")
        yield f"postgresql+psycopg://tuner@127.0.0.1:{port}/postgres"
        run(BINARIES / "pg_ctl", "-D", data, "-m", "fast", "-w", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_24_trials_on_postgresql_by_three_workers_that_are_killed_twice_each(
    space: str, tmp_path: Path, postgres: str
) -> None:
    check_killed_study(space, tmp_path / "study", 3, 24, postgres)


@pytest.mark.slow
def test_a_study_on_postgresql_is_found_again(space: str, tmp_path: Path, postgres: str, trained: list[str]) -> None:
    asked = tuning.Tuning(read_search(space), list(FEW), tmp_path / "s", 4, postgres)
    first = tuning.work(asked)
    again = tuning.work(asked)
    assert [one.params for one in again.trials] == [one.params for one in first.trials]
    assert len(trained) == len(again.trials) == 4
    close(first)
    close(again)
