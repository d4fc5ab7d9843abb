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
from vae.evaluation.statistics import holm, interval, p_value
from vae.run.compare import Comparison, compare, effects
from vae.run.compare_text import findings, to_csv, to_latex, to_markdown, to_text

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


def row(found: Comparison, table: int = 0, **keys: str) -> dict[str, Any]:
    """The one row of a table with these values, its columns by name."""
    rows = found.tables[table].rows
    (one,) = rows[(rows[list(keys)] == list(keys.values())).all(axis=1)].to_dict("records")
    return one


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_intervals_and_p_values_are_scipys(count: int) -> None:
    rng = np.random.default_rng(count)
    ours, theirs = rng.normal(3, 2, count), rng.normal(2, 1, count)
    low, high = stats.t.interval(0.95, count - 1, loc=np.mean(ours), scale=stats.sem(ours))
    assert interval(ours.tolist()) == pytest.approx((np.mean(ours), low, high, count))
    test = stats.ttest_rel(ours, theirs)
    gaps = (ours - theirs).tolist()
    assert interval(gaps)[1:3] == pytest.approx(tuple(test.confidence_interval()))
    assert p_value(gaps) == pytest.approx(test.pvalue)


@pytest.mark.parametrize("gaps", [[], [1.0], [2.0, 2.0], [0.0, 0.0, 0.0], [0.3, 0.1 + 0.2], [-2.0] * 5])
def test_gaps_without_a_spread_have_no_p_value(gaps: list[float]) -> None:
    """Two equal gaps prove nothing: counts of active units are often equal."""
    assert math.isnan(p_value(gaps))


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_unknown = holm([0.9, math.nan, 0.8])
    assert math.isnan(with_unknown[1])
    assert with_unknown[0::2] == [1.0, 1.0]


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_row_per_configuration_with_the_keys_that_vary(grid: Path) -> None:
    found = compare([grid])
    assert found.keys == ["dropout", "latent_dim"]  # model.encoder.dropout follows, data.seed is the seed
    (table,) = found.tables
    assert table.metrics == ["dev/loss"]
    for (latents, dropout), losses in LOSSES.items():
        one = row(found, latent_dim=str(latents), dropout=str(dropout))
        assert [one["dev/loss"], one["dev/loss_low"], one["dev/loss_high"]] == pytest.approx(interval(losses)[:3])
    assert table.baseline == "dropout=0.0,latent_dim=4"
    assert not found.left_out


def test_differences_are_to_the_baseline_seed_by_seed_and_corrected_together(grid: Path) -> None:
    found = compare([grid], baseline="latent_dim=2,dropout=0.0")
    theirs = LOSSES[2, 0.0]
    p = {pair: stats.ttest_rel(losses, theirs).pvalue for pair, losses in LOSSES.items() if pair != (2, 0.0)}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    for (latents, dropout), expected in corrected.items():
        one = row(found, latent_dim=str(latents), dropout=str(dropout))
        assert one["dev/loss_p_holm"] == pytest.approx(expected)
        assert one["dev/loss_verdict"] == ("within noise" if expected >= 0.05 else "higher")
    base = row(found, latent_dim="2", dropout="0.0")
    assert math.isnan(base["dev/loss_difference"])


def test_pairs_are_of_one_seed_and_other_seeds_are_left_out(tmp_path: Path) -> None:
    for latents, losses in {2: {3: 10.0, 1: 5.0, 7: 99.0}, 4: {1: 4.0, 3: 8.0, 2: -50.0}, 8: {5: 1.0}}.items():
        for seed, loss in losses.items():
            write_run(tmp_path / f"{latents}_{seed}", f"latent_dim={latents}", f"seed={seed}", dev__loss=loss)
    found = compare([tmp_path], baseline="latent_dim=4")
    assert row(found, latent_dim="2")["dev/loss_difference"] == 1.5
    assert row(found, latent_dim="8")["dev/loss_verdict"] == "no shared seed"
    assert "latent_dim=8: no seed in common with the baseline" in findings(found.tables[0])


def test_equal_gaps_get_no_verdict(tmp_path: Path) -> None:
    for latents in (2, 4):
        for seed in (0, 1):
            metrics = {"dev__loss": 30.0 + latents + seed}
            write_run(tmp_path / f"{latents}_{seed}", f"latent_dim={latents}", f"seed={seed}", **metrics)
    found = compare([tmp_path])
    one = row(found, latent_dim="2")
    assert (one["dev/loss_difference"], one["dev/loss_verdict"]) == (-2.0, "no spread")
    assert math.isnan(one["dev/loss_p"])
    assert "at each of 2 seeds; without a spread there is no test" in " ".join(to_text(found).split())


def test_the_sentences_say_whether_a_difference_is_noise(grid: Path) -> None:
    more, noise = (next(line for line in findings(compare([grid]).tables[0]) if line.startswith(name))
                   for name in ("dropout=0.1:", "latent_dim=2:"))  # fmt: skip
    assert "latent_dim=2: dev/loss is 0.0333 higher" in noise
    assert noise.endswith("not distinguishable from seed noise (3 seeds)")
    assert "dropout=0.1: dev/loss is 3.93 higher" in more
    assert more.endswith("more than seed noise (3 seeds)")


def test_the_effect_of_each_key_is_a_mean_over_pairs_that_differ_in_it_alone(grid: Path) -> None:
    found = effects(compare([grid]).tables[0], "dev/loss").set_index("key")
    losses = {pair: np.array(values) for pair, values in LOSSES.items()}
    gaps = (losses[2, 0.1] - losses[2, 0.0] + losses[4, 0.1] - losses[4, 0.0]) / 2
    assert found.loc["dropout", ["value", "against", "pairs"]].tolist() == ["0.1", "0.0", 2]
    means = found.loc["dropout", ["_difference", "_difference_low", "_difference_high"]].tolist()
    assert means == pytest.approx(interval(gaps.tolist())[:3])
    assert found.loc["latent_dim", "value"] == "2"  # against the baseline's 4
    assert "effect of each key on dev/loss" in to_text(compare([grid]))


def test_where_the_loss_cannot_be_compared_another_metric_answers(tmp_path: Path) -> None:
    for number, beta in enumerate((1.0, 2.0, 4.0)):
        for seed in (0, 1):
            metrics = {"dev__loss": 30.0 * beta, "dev__unweighted_loss": 30.0 + beta * (1 + seed)}
            write_run(tmp_path / f"{number}_{seed}", f"objective.beta={beta}", f"seed={seed}", **metrics)
    found = compare([tmp_path])
    (table,) = found.tables
    assert table.metrics == ["dev/unweighted_loss"]
    assert len(table.rows) == 3
    note = "dev/loss cannot be compared across objective.beta: dev/unweighted_loss is compared instead"
    assert note in " ".join(to_text(found).split())
    assert compare([tmp_path], ["dev/loss"] * 2).tables[0].metrics == ["dev/loss"]


def test_a_baseline_that_a_table_lacks_is_said_and_not_replaced(tmp_path: Path) -> None:
    runs = [("gaussian", 2), ("gaussian", 4), ("squared_error", 2), ("squared_error", 8)]
    for number, (likelihood, latents) in enumerate(runs):
        write_run(tmp_path / str(number), f"likelihood={likelihood}", f"latent_dim={latents}", dev__loss=3.0)
    found = compare([tmp_path], ["dev/loss"], baseline="latent_dim=4")
    with_it, without = sorted(found.tables, key=lambda table: not table.baseline)
    assert "latent_dim=4" in with_it.baseline
    assert not without.baseline
    assert findings(without)[0] == "no run here matches the baseline, so there are no differences"
    assert "verdict" in to_text(found)


def test_a_part_is_named_by_its_option_and_its_own_keys_do_not_count_as_varying(tmp_path: Path) -> None:
    for name, given in {"a": "model=mlp", "b": "model=conv", "c": "optimizer=adagrad"}.items():
        write_run(tmp_path / name, given, dev__loss=3.0)
    found = compare([tmp_path])
    assert found.keys == ["model", "optimizer"]
    assert list(found.tables[0].rows.index) == [
        "model=conv,optimizer=adam", "model=mlp,optimizer=adagrad", "model=mlp,optimizer=adam",
    ]  # fmt: skip


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
    assert table.baseline == "model.encoder.channels=[16,32]"


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
    assert ("cannot be compared" in to_text(found)) == (tables > 1)


def test_other_images_and_other_sample_sizes_are_apart(tmp_path: Path) -> None:
    nll = {"dev__loss": 3.0, "test__nll": 80.0}
    write_run(tmp_path / "a", "likelihood=gaussian", **nll, test__nll_samples=50)
    write_run(tmp_path / "b", "likelihood=gaussian", "seed=1", **nll, test__nll_samples=500)
    by_metric = {table.metrics[0]: table for table in compare([tmp_path]).tables}
    assert by_metric["dev/loss"].rows["seeds"].tolist() == [2]
    assert [len(table.runs) for table in compare([tmp_path], ["test/nll"]).tables] == [1, 1]
    file = tmp_path / "b" / "metrics.json"
    file.write_text(file.read_text().replace("1a2b3c4d", "00000000"))
    assert "fingerprint" in compare([tmp_path], ["dev/loss"]).reasons[0]


# --- runs that are not there ------------------------------------------------------------------------------------------


def test_unfinished_damaged_and_repeated_runs_are_listed(grid: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "more" / "half", "latent_dim=9")
    write_run(tmp_path / "more" / "again", "latent_dim=2", "dropout=0.0", "seed=0", dev__loss=0.0)
    write_run(tmp_path / "more" / "bad", dev__loss=1.0).joinpath("config.yaml").write_text("}{")
    found = compare([grid, tmp_path / "more"])
    assert row(found, latent_dim="2", dropout="0.0")["dev/loss"] == pytest.approx(np.mean(LOSSES[2, 0.0]))
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
        (lambda: compare([grid], baseline="width=7"), "does not vary; these keys do: dropout, latent_dim"),
    ]:
        with pytest.raises(InputError, match=words):
            bad()


# --- in writing -------------------------------------------------------------------------------------------------------


def test_csv_holds_the_unrounded_numbers_and_the_frame_the_same(grid: Path) -> None:
    found = compare([grid])
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert [float(one["dev/loss"]) for one in rows] == found.tables[0].rows["dev/loss"].tolist()
    frame = vae.sweep(str(grid))
    assert list(frame.columns) == list(rows[0])
    assert frame["dev/loss"].tolist() == [float(one["dev/loss"]) for one in rows]
    assert frame["latent_dim"].tolist() == [one["latent_dim"] for one in rows]


def test_markdown_has_a_row_per_configuration_and_per_effect(grid: Path) -> None:
    lines = [line for line in to_markdown(compare([grid])).splitlines() if line.startswith("|")]
    table, effect = lines[:6], lines[6:]
    assert len(effect) == 2 + 2
    assert {line.count("|") for line in table} == {8}


def test_latex_is_ready_for_a_paper(grid: Path) -> None:
    text = to_latex(compare([grid], ["dev/loss", "test/active_units"]))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 4
    assert r"\begin{tabular}{llrrrrrl}" in text
    assert r"latent\_dim" in rows[0]
    assert r"$\mathbf{31.7 \pm 2.3}$" in text  # the lowest loss
    assert text.count(r"$\mathbf{4}$") == 1  # most active units are best
    assert r"\caption{" in text
    assert not {"−", "±"} & set(text)


def test_a_narrow_terminal_drops_columns_and_says_so_but_never_cuts_a_name(grid: Path) -> None:
    found = compare([grid], ["dev/loss", "test/active_units"])
    narrow, wide = to_text(found, 72), to_text(found, 200)
    assert max(len(line) for line in narrow.splitlines()[:8]) <= 72
    assert "p (Holm)" in wide
    assert "(no room for p (Holm), difference)" in narrow
    for text in (narrow, wide):
        assert {"latent_dim", "dropout", "dev/loss"} <= set(text.splitlines()[2].split())


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
    from vae.run.compare_figures import draw, runs_by_value

    found = compare([grid], ["dev/loss", "test/active_units"])
    files = draw(found, tmp_path)
    assert sorted(file.name for file in files) == ["front.png", "main_effects.png", "pairs.png"]
    assert all(file.stat().st_size > 5000 for file in files)
    both = [value for (latents, _), losses in LOSSES.items() if latents == 2 for value in losses]
    assert sorted(runs_by_value(found.tables[0], "latent_dim", "dev/loss")["2"]) == sorted(both)


def test_learning_curves_are_the_checkpoints(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae.run import compare_figures

    rows = [{"epoch": 1, "dev/loss": 5.0}, {"epoch": 2, "dev/loss": 4.0, "dev/kl": 1.0}]
    monkeypatch.setattr(compare_figures.checkpoints, "load", lambda path: {"callbacks": {"History": {"rows": rows}}})
    for directory in (path for path in grid.iterdir() if path.is_dir()):
        (directory / "checkpoints").mkdir()
        (directory / "checkpoints" / "last.ckpt").touch()
    found = compare([grid])
    curve = compare_figures.curves_of(found.tables[0], "dropout=0.0,latent_dim=4", "dev/loss")
    assert curve.to_dict("index") == {1: dict.fromkeys(range(3), 5.0), 2: dict.fromkeys(range(3), 4.0)}
    files = compare_figures.draw(found, tmp_path)
    assert "learning_curves.png" in {file.name for file in files}
