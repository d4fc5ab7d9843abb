"""vae compare: statistics against scipy, one row a configuration, and no column for what does not compare."""

import csv
import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import settings_of
from scipy import stats

import vae
from vae.commands import cli
from vae.errors import InputError
from vae.evaluation.statistics import holm, interval, paired
from vae.run.compare import Comparison, Row, compare, sentence, verdict
from vae.run.compare_text import to_csv, to_latex, to_markdown, to_text

FEW = ("data=digits", "evaluation=none")


def write_run(directory: Path, *overrides: str, **metrics: float) -> Path:
    """A run's files as train.py leaves them."""
    directory.mkdir(parents=True)
    plain = settings_of(*FEW, *overrides, f"run_dir={directory}").plain
    (directory / "config.yaml").write_text(yaml.safe_dump(plain))
    if metrics:
        numbers = {name.replace("__", "/"): value for name, value in metrics.items()}
        ended = {"epochs": plain["trainer"]["max_epochs"], "best_epoch": 3, "stopped_early": 0}
        origin = {"provenance": {"format": 2, "data_md5": "1a2b3c4d"}}
        (directory / "metrics.json").write_text(json.dumps({**numbers, **ended, **origin}))
    return directory


LOSSES = {  # (latent_dim, dropout) -> dev/loss by seed
    (2, 0.0): [31.0, 32.5, 31.7], (2, 0.1): [33.4, 34.1, 33.0],
    (4, 0.0): [30.9, 32.7, 31.5], (4, 0.1): [35.0, 36.2, 35.7],
}  # fmt: skip


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two keys and three seeds; the default is latent_dim=4 without dropout, as digits has it."""
    root = tmp_path_factory.mktemp("grid")
    for number, ((latents, dropout), losses) in enumerate(LOSSES.items()):
        for seed, loss in enumerate(losses):
            given = f"latent_dim={latents}", f"dropout={dropout}", f"seed={seed}"
            write_run(root / f"{number}_{seed}", *given, dev__loss=loss, test__active_units=latents)
    return root


def row(found: Comparison, table: int = 0, **keys: str) -> Row:
    (one,) = [one for one in found.tables[table].rows if all(one.keys[k] == v for k, v in keys.items())]
    return one


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_intervals_and_paired_tests_are_scipys(count: int) -> None:
    rng = np.random.default_rng(count)
    ours, theirs = rng.normal(3, 2, count).tolist(), rng.normal(2, 1, count).tolist()
    low, high = stats.t.interval(0.95, count - 1, loc=np.mean(ours), scale=stats.sem(ours))
    assert interval(ours) == pytest.approx((np.mean(ours), low, high, count))
    test = stats.ttest_rel(ours, theirs)
    found = paired(dict(enumerate(ours)), dict(enumerate(theirs)))
    assert found is not None
    assert found == pytest.approx(
        (*(np.mean(ours) - np.mean(theirs),), *test.confidence_interval(), test.pvalue, count)
    )


def test_pairs_are_of_one_seed_and_other_seeds_are_left_out() -> None:
    found = paired({3: 10.0, 1: 5.0, 7: 99.0}, {1: 4.0, 3: 8.0, 2: -50.0})
    assert found is not None
    assert (found.value, found.seeds) == (1.5, 2)
    assert paired({1: 1.0}, {2: 1.0}) is None


def test_one_seed_tells_of_no_noise_and_equal_gaps_of_none_at_all() -> None:
    assert math.isnan(interval([4.0]).low)
    one, same, nothing = (paired(dict(enumerate(a)), dict(enumerate(b))) for a, b in
                          [([1.0], [0.0]), ([2.0, 3.0], [1.0, 2.0]), ([2.0, 3.0], [2.0, 3.0])])  # fmt: skip
    assert one is not None
    assert math.isnan(one.p)
    assert same is not None
    assert (same.p, same.low, same.high) == (0.0, 1.0, 1.0)
    assert nothing is not None
    assert nothing.p == 1.0


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_unknown = holm([0.9, math.nan, 0.8])
    assert math.isnan(with_unknown[1])
    assert with_unknown[0::2] == [1.0, 1.0]


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_row_a_configuration_with_the_keys_that_vary(grid: Path) -> None:
    found = compare([grid])
    assert found.keys == ["dropout", "latent_dim"]  # model.encoder.dropout follows, data.seed is the seed
    (table,) = found.tables
    assert table.metrics == ["dev/loss"]
    for (latents, dropout), losses in LOSSES.items():
        one = row(found, latent_dim=str(latents), dropout=str(dropout))
        assert one.means["dev/loss"] == pytest.approx(interval(losses))
    assert table.baseline.keys == {"dropout": "0.0", "latent_dim": "4"}
    assert not found.left_out


def test_differences_are_to_the_baseline_seed_by_seed_and_corrected_together(grid: Path) -> None:
    found = compare([grid], baseline="latent_dim=2,dropout=0.0")
    theirs = LOSSES[2, 0.0]
    p = {pair: stats.ttest_rel(losses, theirs).pvalue for pair, losses in LOSSES.items() if pair != (2, 0.0)}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    for (latents, dropout), expected in corrected.items():
        one = row(found, latent_dim=str(latents), dropout=str(dropout))
        assert one.corrected["dev/loss"] == pytest.approx(expected)
        assert verdict(one, "dev/loss") == ("within noise" if expected >= 0.05 else "higher")
    assert {verdict(one, "dev/loss") for one in found.tables[0].rows} == {"", "within noise", "higher"}


def test_the_sentences_say_whether_a_difference_is_noise(grid: Path) -> None:
    found = compare([grid])
    (table,) = found.tables
    noise = sentence(row(found, latent_dim="2", dropout="0.0"), table, "dev/loss")
    assert "latent_dim=2: dev/loss is 0.0333 higher" in noise
    assert noise.endswith("which the noise between 3 seeds explains")
    more = sentence(row(found, latent_dim="4", dropout="0.1"), table, "dev/loss")
    assert "dropout=0.1: dev/loss is 3.93 higher" in more
    assert more.endswith("more than the noise between 3 seeds")


def test_a_part_is_named_by_its_option_and_its_own_keys_do_not_count_as_varying(tmp_path: Path) -> None:
    for name, given in {"a": "model=mlp", "b": "model=conv", "c": "optimizer=adagrad"}.items():
        write_run(tmp_path / name, given, dev__loss=3.0)
    found = compare([tmp_path])
    assert found.keys == ["model", "optimizer"]
    assert [one.keys for one in found.tables[0].rows] == [
        {"model": "conv", "optimizer": "adam"},
        {"model": "mlp", "optimizer": "adagrad"},
        {"model": "mlp", "optimizer": "adam"},
    ]


def test_the_defaults_are_those_of_the_parts_that_the_runs_share(tmp_path: Path) -> None:
    """`model=conv` has 16 and 32 channels without being told, so that the run of 8 and 16 is no baseline."""
    for channels in ("[8,16]", "[16,32]", "[32,64]"):
        write_run(
            tmp_path / channels[1:-1].replace(",", "-"),
            "model=conv",
            f"model.encoder.channels={channels}",
            **{"dev/loss": 1.0},
        )
    (table,) = compare([tmp_path], ["dev/loss"]).tables
    assert table.baseline.keys == {"model.encoder.channels": "[16,32]"}


def test_halves_of_two_kinds_have_a_column_each(tmp_path: Path) -> None:
    for name, given in {"a": "model=mlp", "b": "model/encoder=conv", "c": "model.decoder.dropout=0.5"}.items():
        write_run(tmp_path / name, given, dev__loss=3.0)
    assert compare([tmp_path]).keys == ["model.encoder", "model.decoder.dropout"]


# --- what does not compare --------------------------------------------------------------------------------------------

APART: dict[str, tuple[list[str], list[str], str, int, str]] = {
    "likelihoods": (["likelihood=gaussian"], ["likelihood=continuous_bernoulli"], "dev/loss", 2, "likelihood"),
    "sampled or mean": (["likelihood.reconstruct=mean"], [], "dev/loss", 2, "likelihood.reconstruct"),
    "floors of a learned sigma": (
        ["likelihood=gaussian", "likelihood.sigma=pixel"],
        ["likelihood=gaussian", "likelihood.sigma=pixel", "likelihood.min_sigma=0.1"],
        "dev/loss", 2, "likelihood.min_sigma",
    ),
    "sigmas": (["likelihood=gaussian"], ["likelihood=gaussian", "likelihood.sigma=shared"], "dev/loss", 1, ""),
    "binarisations": (["data.binarize=static"], ["data.binarize=threshold"], "dev/kl", 2, "data.binarize"),
    "dev splits": (["data.dev_size=100"], ["data.dev_size=200"], "dev/kl", 2, "data.dev_size"),
    "objectives": (["objective.beta=4"], [], "dev/loss", 2, "objective.beta"),
    "objectives without their weights": (["objective.beta=4"], [], "dev/unweighted_loss", 1, ""),
    "KL of likelihoods": (["likelihood=gaussian"], [], "dev/kl", 1, ""),
    "time": (["likelihood=gaussian"], ["data.binarize=static"], "seconds", 1, ""),
    "samples": (["evaluation.generated=50"], ["evaluation.generated=60"], "samples/f", 2, "evaluation.generated"),
}  # fmt: skip


@pytest.mark.parametrize("case", APART)
def test_what_does_not_compare_has_tables_of_its_own_with_the_reason(case: str, tmp_path: Path) -> None:
    one, other, metric, tables, reason = APART[case]
    for name, given in {"a": one, "b": other}.items():
        write_run(tmp_path / name, *given, **{metric.replace("/", "__"): 3.0})
    found = compare([tmp_path], [metric])
    assert len(found.tables) == tables
    assert [reason in line for line in found.reasons] == [True] * (tables - 1)
    assert ("do not compare" in to_text(found)) == (tables > 1)


def test_other_images_and_other_sample_sizes_are_apart(tmp_path: Path) -> None:
    nll = {"dev__loss": 3.0, "test__nll": 80.0}
    write_run(tmp_path / "a", "likelihood=gaussian", **nll, test__nll_samples=50)
    write_run(tmp_path / "b", "likelihood=gaussian", "seed=1", **nll, test__nll_samples=500)
    by_metric = {table.metrics[0]: table for table in compare([tmp_path]).tables}
    assert len(by_metric["dev/loss"].rows[0].runs) == 2
    assert [len(table.rows[0].runs) for table in compare([tmp_path], ["test/nll"]).tables] == [1, 1]
    file = tmp_path / "b" / "metrics.json"
    file.write_text(file.read_text().replace("1a2b3c4d", "00000000"))
    assert "fingerprint" in compare([tmp_path], ["dev/loss"]).reasons[0]


# --- runs that are not there ------------------------------------------------------------------------------------------


def test_unfinished_damaged_and_repeated_runs_are_told_of(grid: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "more" / "half", "latent_dim=9")
    write_run(tmp_path / "more" / "again", "latent_dim=2", "dropout=0.0", "seed=0", dev__loss=0.0)
    write_run(tmp_path / "more" / "bad", dev__loss=1.0).joinpath("config.yaml").write_text("}{")
    found = compare([grid, tmp_path / "more"])
    assert row(found, latent_dim="2", dropout="0.0").means["dev/loss"].value == pytest.approx(np.mean(LOSSES[2, 0.0]))
    half, bad, again = (next(line for line in found.left_out if name in line) for name in ("half", "bad", "again"))
    assert "unfinished" in half
    assert "cannot be read" in bad
    assert "repeats" in again


def test_no_runs_no_folder_no_such_metric_and_no_such_baseline_are_refused(grid: Path, tmp_path: Path) -> None:
    for bad, words in [
        (lambda: compare([tmp_path]), "holds no runs"),
        (lambda: compare([tmp_path / "gone"]), "there is no such folder"),
        (lambda: compare([grid], ["dev/los"]), "did you mean dev/loss"),
        (lambda: compare([grid], baseline="latent_dim=7"), "latent_dim=2, 4"),
        (lambda: compare([grid], baseline="width=7"), "does not vary here; these do: dropout, latent_dim"),
    ]:
        with pytest.raises(InputError, match=words):
            bad()


def test_runs_of_older_versions_compare(capsys: pytest.CaptureFixture[str]) -> None:
    old = Path(__file__).parent / "data" / "runs_6d90c2e"
    found = compare([old])
    assert sum(len(one.runs) for one in found.tables[0].rows) >= 1
    assert all(math.isfinite(one.means[found.tables[0].metrics[0]].value) for one in found.tables[0].rows)


# --- in writing -------------------------------------------------------------------------------------------------------


def test_csv_holds_the_unrounded_numbers_and_the_frame_the_same(grid: Path) -> None:
    found = compare([grid])
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert [float(one["dev/loss"]) for one in rows] == [one.means["dev/loss"].value for one in found.tables[0].rows]
    frame = vae.sweep(str(grid))
    assert list(frame.columns) == list(rows[0])
    assert frame["dev/loss"].tolist() == [float(one["dev/loss"]) for one in rows]
    assert frame["latent_dim"].tolist() == [one["latent_dim"] for one in rows]


def test_markdown_and_latex_have_a_row_a_configuration(grid: Path) -> None:
    found = compare([grid])
    lines = [line for line in to_markdown(found).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert len({line.count("|") for line in lines}) == 1
    assert sum(line.endswith(r"\\") for line in to_latex(found).splitlines()) == 1 + 4
    assert r"latent\_dim" in to_latex(found)


def test_the_command_prints_and_writes_the_tables(grid: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    said = call("compare", str(grid), "-o", str(tmp_path / "out"))
    assert "31.7 ± 2.3" in said  # latent_dim=4
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "comparison.csv", "comparison.md", "comparison.tex",
    ]  # fmt: skip


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["vae", *arguments])
        cli.main()
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_500_runs_take_two_seconds_and_no_torch(tmp_path: Path) -> None:
    one = write_run(tmp_path / "0", dev__loss=3.0)
    config, metrics = (one / "config.yaml").read_text(), (one / "metrics.json").read_text()
    for number in range(1, 500):
        directory = tmp_path / str(number)
        directory.mkdir()
        changed = config.replace("latent_dim: 4", f"latent_dim: {number // 5 + 1}")
        (directory / "config.yaml").write_text(changed.replace("\nseed: 0", f"\nseed: {number % 5}"))
        (directory / "metrics.json").write_text(metrics.replace("3.0", f"{3 + math.sin(number)}"))
    code = "from vae.commands import cli; import sys; cli.app(standalone_mode=False); sys.exit('torch' in sys.modules)"
    started = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", code, "compare", str(tmp_path)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "99 configurations" in ended.stdout
    assert time.perf_counter() - started < 2


def test_pictures_of_a_grid(grid: Path, tmp_path: Path) -> None:
    from vae.run.compare_figures import draw, effect

    found = compare([grid], ["dev/loss", "test/active_units"])
    files = draw(found, tmp_path)
    assert sorted(file.name for file in files) == ["front.png", "main_effects.png", "pairs.png"]
    assert all(file.stat().st_size > 5000 for file in files)
    both = [value for (latents, _), losses in LOSSES.items() if latents == 2 for value in losses]
    assert effect(found.tables[0], "latent_dim", "dev/loss")["2"] == pytest.approx(interval(both))


def test_learning_curves_are_the_checkpoints(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae.run import compare_figures

    rows = [{"epoch": 1, "dev/loss": 5.0}, {"epoch": 2, "dev/loss": 4.0, "dev/kl": 1.0}]
    monkeypatch.setattr(compare_figures.checkpoints, "load", lambda path: {"callbacks": {"History": {"rows": rows}}})
    for directory in (path for path in grid.iterdir() if path.is_dir()):
        (directory / "checkpoints").mkdir()
        (directory / "checkpoints" / "last.ckpt").touch()
    found = compare([grid])
    curve = compare_figures.mean_curve(found.tables[0].rows[0], "dev/loss")
    assert [(epoch, mean.value, mean.seeds) for epoch, mean in curve] == [(1, 5.0, 3), (2, 4.0, 3)]
    files = compare_figures.draw(found, tmp_path)
    assert "learning_curves.png" in {file.name for file in files}
