"""`vae reproduce`: the ladder's files, its verdicts, its budget, its resumption; and `vae ledger`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import joblib
import pytest
import yaml
from conftest import ROOT, tree

from vae.commands import cli, ledger, reproduce
from vae.commands.reproduce import Claim, Rung, columns, jobs_of, judge, ladder, verdict
from vae.run.compose import compose
from vae.run.records import is_locked

TINY = (
    "data=digits", "latent_dim=2", "model.encoder.hidden=[5]", "model.decoder.hidden=[4]", "evaluation=none",
    "threads=1", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "callbacks.figures_every=0",
)  # fmt: skip


def rung(**changes: Any) -> Rung:
    plain: dict[str, Any] = {"name": "T", "what": "", "source": "", "seeds": [0, 1, 2], "minutes": 1, "runs": {}}
    return Rung(**plain | {"claims": []} | changes)


def vae(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vae", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_every_rung_s_runs_compose_and_its_claims_name_them() -> None:
    rungs = ladder()
    assert {"T0", "T1", "T2", "T3", "T4", "T5", "T6", "T7", "T8"} <= set(rungs)
    for one in rungs.values():
        assert one.source
        assert one.seeds
        composed = {name: compose(overrides) for name, overrides in one.runs.items()}
        for claim in one.claims:
            assert {claim.of, claim.minus or claim.of} <= set(one.runs)
            assert sum(bound is not None for bound in (claim.target, claim.below, claim.above)) == 1
            assert claim.minus is None or claim.target is None
            for name in claim.sides:
                assert "nll" not in claim.metric or composed[name].evaluation.samples > 0


@pytest.mark.parametrize(
    ("mean", "half", "better", "expected"),
    [
        (86.0, 0.9, "lower", "reproduced"),
        (86.0, 1.1, "lower", "undecided"),  # its mean alone would be within 85 to 87
        (86.9, 0.05, "lower", "reproduced"),
        (86.9, 0.3, "lower", "undecided"),
        (87.4, 0.3, "lower", "not reproduced"),
        (84.6, 0.3, "lower", "better"),
        (84.8, 0.3, "lower", "undecided"),
        (87.4, 0.3, "higher", "better"),
        (84.6, 0.3, "higher", "not reproduced"),
    ],
)
def test_verdicts_of_a_target_are_those_of_the_whole_interval(
    mean: float, half: float, better: str, expected: str
) -> None:
    claim = Claim("test/nll", "a", target=86.0, tolerance=1.0, better=better)
    assert verdict(claim, mean, half).partition(":")[0] == expected


def test_a_difference_is_reproduced_only_where_its_interval_excludes_the_bound() -> None:
    claim = Claim("test/nll", "a", minus="b", below=0.0)
    assert verdict(claim, -1.0, 0.9) == "reproduced"
    assert verdict(claim, -1.0, 1.1).startswith("undecided: the interval")
    assert verdict(claim, 1.0, 0.9) == "not reproduced"
    assert verdict(Claim("x", "a", minus="b", above=0.0), 2.0, 1.0) == "reproduced"


def test_one_seed_and_seeds_without_spread_decide_nothing_and_say_so() -> None:
    claim = Claim("test/nll", "a", target=86.0, tolerance=1.0)
    for mean, place in ((86.5, "reproduced"), (80.0, "better"), (90.0, "not reproduced")):
        assert verdict(claim, mean, None) == f"undecided: one seed ({place})"
    assert verdict(claim, 86.5, 0.0) == "undecided: the seeds do not differ"


def test_the_interval_is_student_s_over_seeds_and_one_seed_has_none(tmp_path: Path) -> None:
    one = rung(runs={"a": []}, claims=[Claim("test/nll", "a", target=2.0, tolerance=3.0)])
    end(tmp_path, "a", 0, test__nll=1.0, test__nll_error=0.1)
    (row,) = judge(one, tmp_path, gpu=False)
    assert (row.obtained, row.error, row.seeds) == (1.0, None, 1)
    for seed in (1, 2):
        end(tmp_path, "a", seed, test__nll=1.0 + seed)
    (row,) = judge(one, tmp_path, gpu=False)
    assert row.obtained == 2
    assert row.error == pytest.approx(4.302653 / 3**0.5)  # t of 2 degrees of freedom at 0.975
    assert row.verdict == "reproduced"
    assert columns([row])["obtained"] == ["2.0 ± 2.5"]
    assert columns([row])["claimed"] == ["−1 to 5"]  # a tolerance is not an interval: no ±


@pytest.mark.parametrize("content", ["{", "[]", '{"epochs": null}', "null and void"])
def test_a_damaged_run_does_not_end_the_table(tmp_path: Path, content: str) -> None:
    one = rung(runs={"a": [], "b": []}, claims=[Claim("test/nll", name, below=2.0) for name in "ab"], seeds=[0, 1])
    for seed in (0, 1):
        end(tmp_path, "a", seed, test__nll=1.0 + seed / 10)
        end(tmp_path, "b", seed, test__nll=1.0)
        (tmp_path / "T" / f"b-{seed}" / "metrics.json").write_text(content)
    good, bad = judge(one, tmp_path, gpu=False)
    assert (good.seeds, good.verdict) == (2, "reproduced")
    assert (bad.seeds, bad.verdict) == (0, "metrics.json cannot be read")


def test_sigterm_stops_the_run_that_is_under_way(tmp_path: Path) -> None:
    """The run saves and leaves its directory free."""
    given = ("data=digits", "trainer.max_epochs=100000", "threads=1", "likelihood=gaussian")
    command = [sys.executable, "-m", "vae.commands.cli", "reproduce", "T0", *given, "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run = tmp_path / "T0" / "report_mlp-0"
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 143, said
    assert said.splitlines()[-1].startswith("stopped by SIGTERM; the same command continues")
    assert not is_locked(run)


def end(folder: Path, name: str, seed: int, commit: str = "abc", **metrics: Any) -> None:
    """Leaves the metrics of a run that has ended."""
    place = folder / "T" / f"{name}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    counts = {"epochs": 1, "best_epoch": 1, "stopped_early": 0, "provenance": {"format": 2, "git_commit": commit}}
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    (place / "metrics.json").write_text(json.dumps(named | counts))


@pytest.mark.slow
@pytest.mark.parametrize("at_once", ["1", "2"])
def test_nothing_trains_on_when_it_is_killed(tmp_path: Path, at_once: str) -> None:
    given = ("data=digits", "trainer.max_epochs=100000", "threads=1", "likelihood=gaussian", "--jobs", at_once)
    command = [sys.executable, "-P", "-m", "vae.commands.cli", "reproduce", "T0", *given, "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    runs = [tmp_path / "T0" / f"report_mlp-{seed}" for seed in range(int(at_once))]
    while not all((run / "checkpoints" / "last.ckpt").exists() for run in runs):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(map(is_locked, runs)):
        assert time.monotonic() < deadline, "a run goes on without its parent"
        time.sleep(0.1)
    assert not (tmp_path / "T0" / f"report_mlp-{at_once}").exists(), "the next run was begun"


DIFFERENCE = Claim("test/nll", "a", minus="b", below=0.0)


def test_pairs_are_taken_seed_by_seed(tmp_path: Path) -> None:
    """Two runs whose difference is steady though both move with the seed; a seed that lacks its partner is left out."""
    one = rung(runs={"a": [], "b": []}, claims=[DIFFERENCE])
    commits = {"a": "abcdef0123", "b": "1234567890+changes"}
    for name, seed, nll in (("a", 0, 90.0), ("b", 0, 91.0), ("a", 1, 95.0), ("b", 1, 96.1), ("a", 2, 80.0)):
        end(tmp_path, name, seed, commits[name], test__nll=nll)
    (row,) = judge(one, tmp_path, gpu=False)
    assert (row.seeds, row.commits, row.verdict) == (2, "12345678+changes abcdef01", "reproduced")
    assert row.obtained == pytest.approx(-1.05)


def test_a_row_names_the_commits_that_trained(tmp_path: Path) -> None:
    """Beside that which evaluated, where the run was continued by other code."""
    end(tmp_path, "a", 0, "abcdef0123", test__nll=1.0)
    file = tmp_path / "T" / "a-0" / "metrics.json"
    found = json.loads(file.read_text())
    found["provenance"]["training_commits"] = ["1234567890", "abcdef0123"]
    file.write_text(json.dumps(found))
    (row,) = judge(rung(runs={"a": []}, claims=[Claim("test/nll", "a", below=2.0)], seeds=[0]), tmp_path, gpu=False)
    assert row.commits == "12345678 abcdef01"


def test_what_has_no_number_says_why(tmp_path: Path) -> None:
    one = rung(runs={"a": [], "b": []}, claims=[DIFFERENCE], seeds=[0])
    a = tmp_path / "T" / "a-0"
    assert next(judge(one, tmp_path, gpu=False)).verdict == "not run"
    assert next(judge(rung(minutes=None, claims=[DIFFERENCE]), tmp_path, gpu=False)).verdict == "not run: needs a GPU"
    assert next(judge(one, tmp_path, gpu=False, failed={a})).verdict == "failed"
    end(tmp_path, "a", 0, test__loss=1.0)
    end(tmp_path, "b", 0, test__nll=1.0)
    (row,) = judge(one, tmp_path, gpu=False)
    assert (row.verdict, row.obtained, row.seeds) == ("no test/nll in these runs", None, 0)
    end(tmp_path, "a", 0, test__nll=0.0, test__nll_samples=5000)
    end(tmp_path, "b", 0, test__nll=1.0, test__nll_samples=500)
    assert next(judge(one, tmp_path, gpu=False)).verdict == "not comparable: 500, 5000 importance samples"


def test_a_budget_goes_to_what_ends_soonest_and_seeds_stay_whole(tmp_path: Path) -> None:
    short = rung(name="short", minutes=2, runs={"a": [], "b": []})
    rungs = [
        rung(name="gpu", minutes=None, seeds=[0], runs={"e": []}),
        rung(name="long", minutes=5, runs={"d": []}),
        short,
    ]
    order = [job.directory.name for job in jobs_of(rungs, tmp_path, [])]
    assert order == ["a-0", "b-0", "a-1", "b-1", "d-0", "a-2", "b-2", "d-1", "d-2", "e-0"]


def test_runs_at_a_time_share_the_cores_and_one_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = [one for one in TINY if not one.startswith("threads")]
    runs = {"good": free, "bad": [*free, "optimizer.lr=1e30"], "better": free}
    claims = [Claim("dev/loss", name, target=0.0) for name in runs]
    one = rung(name="three", seeds=[0], runs=runs, claims=claims)
    monkeypatch.setattr(reproduce, "ladder", lambda: {"three": one})
    assert vae(monkeypatch, "reproduce", "three", "three", "--jobs", "2", "--out", str(tmp_path)) == 1
    assert f"{tmp_path / 'three' / 'bad-0'}: failed" in capsys.readouterr().err
    verdicts = {row["claim"]: row["verdict"] for row in json.loads((tmp_path / "reproduced.json").read_text())}
    assert verdicts == {
        "dev/loss, good": "undecided: one seed (not reproduced)",
        "dev/loss, bad": "failed",
        "dev/loss, better": "undecided: one seed (not reproduced)",
    }
    threads = json.loads((tmp_path / "three" / "good-0" / "metrics.json").read_text())["provenance"]["threads"]
    assert threads == max(1, joblib.cpu_count() // 2)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "vae reproduce: name rungs (T0"),
        (("T99",), "T99: there is no such rung"),
        (("T0", "--budget", "soon"), "--budget=soon: must be a time above 0, for example 90s, 30m or 2h"),
        (("T0", "latent_dimm=3"), "latent_dimm"),
        (("T0", "latent_dim=0"), "latent_dim=0: must be"),
        (("T0", "seed=7"), "seed=7: each rung sets its seeds"),
        (("T0", "--out", "/dev/null/x"), "--out=/dev/null/x: /dev/null is not a folder; choose a folder"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    arguments: tuple[str, ...],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert vae(monkeypatch, "reproduce", "--out", str(tmp_path / "out"), *arguments) == 2
    said = capsys.readouterr().err.strip()
    assert line in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_rung_is_trained_once_and_judged_and_its_runs_are_in_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = rung(
        name="tiny",
        runs={"a": [*TINY, "likelihood=gaussian", "evaluation.samples=3"], "b": [*TINY, "optimizer.lr=0.1"]},
        claims=[
            Claim("dev/loss", "b", target=1e6, tolerance=1.0),
            Claim("test/loss", "a", minus="b", above=-1e9),
        ],
        seeds=[0],
    )
    monkeypatch.setattr(reproduce, "ladder", lambda: {"tiny": tiny})
    out = tmp_path / "out"
    assert vae(monkeypatch, "reproduce", "--all", "--budget", "0.01s", "--out", str(out)) == 0
    assert {row["verdict"] for row in json.loads((out / "reproduced.json").read_text())} == {"not run"}

    assert vae(monkeypatch, "reproduce", "tiny", "--out", str(out)) == 0
    rows = json.loads((out / "reproduced.json").read_text())
    assert [(row["seeds"], row["verdict"]) for row in rows] == [
        (1, "undecided: one seed (better)"),
        (1, "undecided: one seed (reproduced)"),
    ]
    assert "| tiny | dev/loss, b | 999999 to 1e+06 |" in (out / "reproduced.md").read_text()

    before = {name: entry for name, entry in tree(out).items() if not name.startswith("reproduced")}
    assert vae(monkeypatch, "reproduce", "tiny", "--out", str(out)) == 0
    assert {name: entry for name, entry in tree(out).items() if not name.startswith("reproduced")} == before

    assert vae(monkeypatch, "reproduce", "tiny", "latent_dim=3", "--out", str(out)) == 2
    assert "latent_dim (2 there, 3 now)" in capsys.readouterr().err

    (group,) = ledger.ledger([str(out)])
    (row,) = ledger.ledger([str(out)])[group]
    assert row["run"].endswith("a-0")  # b has no nats
    assert group == "digits, data.binarize=none, gaussian, evaluation.samples=3"
    assert vae(monkeypatch, "ledger", str(out)) == 0
    assert group.split(";")[0] in capsys.readouterr().out
    assert vae(monkeypatch, "ledger", str(out), "--out", str(tmp_path / "nats.csv")) == 0
    assert (tmp_path / "nats.csv").read_text().startswith("group,run,NLL")


def test_the_ledger_separates_what_does_not_compare_and_sorts_the_rest(tmp_path: Path) -> None:
    def record(name: str, nll: float, samples: int = 500, *overrides: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        given = ["data=digits", "likelihood=bernoulli", "data.binarize=dynamic", f"run_dir={folder}", *overrides]
        plain = compose(given).plain
        (folder / "config.yaml").write_text(yaml.safe_dump(plain))
        metrics = {"test/nll": nll, "test/nll_samples": samples, "epochs": 1, "best_epoch": 1, "stopped_early": 0}
        origin = {"format": 2, "git_commit": None, "data_md5": "1"}
        (folder / "metrics.json").write_text(json.dumps(metrics | {"provenance": origin}))

    record("worse", 90.0, 500, "prior=flow")
    record("better", 80.0, 500, "latent_dim=7")
    record("more samples", 70.0, 5000)
    record("labels", 60.0, 500, "model.conditional=true")
    record("other split", 50.0, 500, "data.dev_size=100")
    record("other binarisation", 40.0, 500, "data.binarize=static")
    groups = [[Path(row["run"]).name for row in rows] for rows in ledger.ledger([str(tmp_path)]).values()]
    assert ["better", "worse"] in groups
    assert sorted(map(len, groups)) == [1, 1, 1, 1, 2]
