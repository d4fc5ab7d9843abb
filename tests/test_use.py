"""A trained model in use: what the verbs of the `vae` command write, and what `load_run` gives."""

import base64
import csv
import gzip
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, RUNS, train
from pandas import DataFrame
from PIL import Image
from test_vae_command import vae

from vae.commands import images, output, runs
from vae.data.photographs import fit_image
from vae.errors import InputError
from vae.evaluation import draws, estimates, figures
from vae.evaluation.explorer import explorer
from vae.evaluation.gallery import FIGURES, Subject
from vae.pixels import as_floats
from vae.run.load import TrainedRun, load_run

COMMAND = (
    "data=digits", "dropout=0", "latent_dim=3", "model.encoder.hidden=[20]", "model.decoder.hidden=[20]", "threads=1",
    "likelihood=gaussian", "evaluation=none", "trainer.max_epochs=3", "callbacks.figures_every=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("use") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae.run.results.draw", lambda *arguments: {})
        train(*COMMAND, f"run_dir={directory}")
    return directory


@pytest.fixture(scope="module")
def run(trained: Path) -> TrainedRun:
    return load_run(trained)


@pytest.fixture
def numbers(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a verb with --out x.npz and reads what it wrote."""

    def read(verb: str, *arguments: str, code: int = 0) -> dict[str, np.ndarray]:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        assert vae(monkeypatch, verb, str(trained), *arguments, "--out", str(out)) == code
        with np.load(out) as found:
            return dict(found)

    return read


# --- draws ------------------------------------------------------------------------------------------------------------


def test_samples_are_the_images_of_their_latents_and_the_first_are_the_same_for_any_number(
    numbers: Any, run: TrainedRun
) -> None:
    few, more, other = numbers("sample", "-n", "5"), numbers("sample", "-n", "9"), numbers("sample", "--seed", "1")
    assert few["x"].shape == (5, 1, 28, 28)
    assert np.array_equal(few["z"], more["z"][:5])
    np.testing.assert_allclose(few["x"], more["x"][:5], atol=1e-6)
    assert not np.array_equal(few["z"], other["z"][:5])
    with torch.no_grad():
        images = run.vae.sample(torch.from_numpy(few["z"])).clamp(0, 1)
    np.testing.assert_allclose(few["x"], images, atol=1e-6)
    drawn = numbers("sample", "-n", "5", "--x", "sample")
    assert np.array_equal(drawn["z"], few["z"])
    assert not np.array_equal(drawn["x"], few["x"])


def test_temperature_draws_latents_to_the_mean(numbers: Any) -> None:
    warm, cold = numbers("sample", "-n", "6"), numbers("sample", "-n", "6", "--temperature", "0.25")
    np.testing.assert_allclose(cold["z"], 0.25 * warm["z"], rtol=1e-6)
    zero = numbers("sample", "-n", "50", "--from", "posterior", "--temperature", "0")
    assert 1 < len(np.unique(zero["z"].round(6), axis=0)) <= draws.MIXTURE  # the components' means


def test_the_mixture_follows_the_aggregate_posterior(run: TrainedRun) -> None:
    images = run.data.train.images
    with torch.no_grad():
        q = run.vae.encode(as_floats(images))
    z = draws.posterior_latents(run.vae, images, 20_000, seed=0)
    np.testing.assert_allclose(z.mean(0), q.mean.mean(0), atol=0.05)
    spread = (q.mean.var(0) + q.variance.mean(0)).sqrt()  # the law of total variance
    np.testing.assert_allclose(z.std(0), spread, rtol=0.05)


def test_interpolations_end_in_the_two_images(numbers: Any, run: TrainedRun) -> None:
    found = numbers("interpolate", "--between", "3", "test:7", "--steps", "5")
    assert found["z"].shape == (2, 5, 3)
    test = run.data.test
    first = [int((test.labels == 3).nonzero()[0]), 7]
    ends = draws.encode(run.vae, test.images[first])["mean"]
    for way in found["z"]:
        np.testing.assert_allclose(way[[0, -1]], ends, atol=1e-5)
    np.testing.assert_allclose(found["z"][0][2], ends.mean(0), atol=1e-5)  # the middle of the straight line


def test_a_table_of_points_has_a_line_for_each(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    assert vae(monkeypatch, "traverse", str(trained), "--steps", "4", "--out", str(out)) == 0
    header, *lines = [line.split(",") for line in out.read_text().splitlines()]
    assert header == ["row", "step", "latent", "z_0", "z_1", "z_2"]
    assert len(lines) % 4 == 0
    assert [line[:2] for line in lines[:5]] == [["0", "0"], ["0", "1"], ["0", "2"], ["0", "3"], ["1", "0"]][
        : len(lines)
    ]
    assert len({line[3 + int(lines[0][2])] for line in lines[:4]}) == 4  # the latent of the row moves


def test_bytes_are_no_images_of_a_model(run: TrainedRun) -> None:
    x = run.data.test.images[:2]
    for method in (run.vae.encode, run.vae.reconstruct):
        with pytest.raises(InputError, match=r"images of torch\.uint8: a model takes floats in \[0, 1\]"):
            method(x)


def test_a_great_circle_keeps_the_length_that_a_straight_line_loses() -> None:
    a, b = torch.tensor([3.0, 0, 0]), torch.tensor([0, 0, 3.0])
    circle = draws.spherical(a, b, 7)
    torch.testing.assert_close(circle.norm(dim=1), torch.full((7,), 3.0))
    torch.testing.assert_close(circle[3], torch.tensor([1.0, 0, 1.0]) * 3 / 2**0.5)
    assert draws.linear(a, b, 7)[3].norm() < 2.2
    torch.testing.assert_close(draws.spherical(a, 2 * a, 3), draws.linear(a, 2 * a, 3))
    torch.testing.assert_close(draws.spherical(a, -a, 3), draws.linear(a, -a, 3))


def test_a_traversal_moves_one_latent_a_row_through_the_prior(numbers: Any) -> None:
    found = numbers("traverse", "--from", "4", "--steps", "5")
    for row, latent in enumerate(found["latent"]):
        moved = np.ptp(found["z"][row], axis=0)
        assert set(np.flatnonzero(moved)) == {latent}
        normal = torch.distributions.Normal(0, 1)
        expected = normal.icdf(draws.quantile_levels(5))
        np.testing.assert_allclose(found["z"][row, :, latent], expected, atol=1e-5)


def test_the_manifold_lies_as_a_map_does(
    numbers: Any, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = numbers("manifold", "--latents", "2", "0", "--steps", "4")
    z = found["z"]  # row, column, latent
    assert (np.diff(z[:, :, 2], axis=1) > 0).all()  # the first to the right
    assert (np.diff(z[:, :, 0], axis=0) < 0).all()  # the second upwards
    assert not z[:, :, 1].any()
    for arguments, said in (((), "has 3 latents"), (("--latents", "0", "3"), "from 0 to 2")):
        assert vae(monkeypatch, "manifold", str(trained), *arguments) == 2
        assert said in capsys.readouterr().err


# --- images -----------------------------------------------------------------------------------------------------------


def test_reconstructions_and_latents_are_those_of_the_model(numbers: Any, run: TrainedRun) -> None:
    test = run.data.test
    found = numbers("reconstruct", "-n", "30")
    with torch.no_grad():
        x_hat = run.vae.reconstruct(as_floats(test.images[:30])).clamp(0, 1)
    np.testing.assert_allclose(found["x_hat"], x_hat, atol=1e-6)
    error = (found["x"] - found["x_hat"]).reshape(30, -1)
    np.testing.assert_allclose(found["squared_error"], (error**2).sum(1), rtol=1e-4)
    encoded = numbers("encode")
    assert len(encoded["mean"]) == len(test)
    assert np.array_equal(encoded["label"], test.labels)
    with torch.no_grad():
        q = run.vae.encode(as_floats(test.images))
    np.testing.assert_allclose(encoded["mean"], q.mean, atol=1e-5)
    np.testing.assert_allclose(encoded["stddev"], q.stddev, rtol=1e-4)


def test_scores_are_log_p_with_its_error_most_unusual_first(numbers: Any, run: TrainedRun) -> None:
    found = numbers("score", "-n", "25", "--samples", "40")
    assert (np.diff(found["score"]) >= 0).all()
    rows = [int(name.removeprefix("test ")) for name in found["name"].tolist()]
    expected = run.log_prob(run.data.test.images[rows], samples=40)
    by_place = np.empty(25)
    by_place[rows] = found["score"]
    np.testing.assert_allclose(by_place, run.log_prob(run.data.test.images[:25], samples=40), rtol=1e-6)
    assert expected.shape == (25,)


def test_the_error_of_a_score_is_that_of_a_mean_of_weights(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-normal weights: log E[w] = s^2 / 2, and the log of their mean has the variance (exp(s^2) - 1) / K."""
    generator, s, samples = torch.Generator().manual_seed(0), 0.7, 2000
    monkeypatch.setattr(estimates, "log_weights", lambda vae, x, k, y: s * torch.randn(k, len(x), generator=generator))
    score, error = estimates.image_scores(run.vae, run.data.test.images[:100], samples, 0)
    expected = ((np.exp(s**2) - 1) / samples) ** 0.5
    np.testing.assert_allclose(error, np.full(100, expected), rtol=0.15)
    off = (score - s**2 / 2) / error
    assert off.abs().max() < 4
    assert 0.8 < off.std() < 1.2
    found = estimates.bounds(run.vae, run.data.test.images[:100], samples, 0)
    np.testing.assert_allclose(found.ess, np.full(100, samples / np.exp(s**2)), rtol=0.2)
    assert found.half_gap.mean().item() == pytest.approx((np.exp(s**2) - 1) / (2 * samples), rel=0.4)
    assert (found.half_gap >= 0).all()


def test_noise_is_told_from_digits_and_an_area_is_a_probability(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = ("--out", str(tmp_path / "scores.csv"))
    few = ("-n", "60", "--samples", "20", *out)
    assert vae(monkeypatch, "score", str(trained), *few, "--against", "noise", "--against", "upside-down") == 0
    printed = capsys.readouterr().out
    assert "against noise: area under the ROC curve 1.0000 (60 images)" in printed
    assert "against upside-down: area under the ROC curve 0." in printed
    with open(tmp_path / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "label", "score", "error"]
    assert len(rows) == 60
    assert images.area(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0])) == 0.75


def test_a_model_without_nats_scores_by_its_loss_and_has_no_log_p(sweep: Path) -> None:
    from vae.likelihoods import SquaredErrorHead

    run = load_run(sweep / RUNS[0])
    run.vae.likelihood = SquaredErrorHead("mean")
    x = run.data.test.images[:3]
    with pytest.raises(InputError, match="SquaredErrorHead is not normalised"):
        run.log_prob(x)
    score, error = estimates.image_scores(run.vae, x, 2000, 0)
    elbo = estimates.bounds(run.vae, x, 2000, 1).elbo
    assert ((score - elbo).abs() < 6 * error).all()


def test_one_seed_gives_the_command_the_figure_and_the_page_the_same_draws(
    numbers: Any, run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, drawn = numbers("sample", "-n", "100", "--seed", "3"), []
    monkeypatch.setattr(figures, "grid", lambda images, *rest: drawn.append(images))
    FIGURES["samples"].draw(Subject(run.vae, run.data, lambda name: [], "", 3))
    np.testing.assert_array_equal(drawn[0], shown["x"])
    packed = explorer(run.vae, None, None, 3, False)["prior"]
    z = np.frombuffer(gzip.decompress(base64.b64decode(packed["gzip"])), packed["type"]).reshape(packed["shape"])
    np.testing.assert_array_equal(z[:100], shown["z"])


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(5, 28, 28),
        torch.zeros(5, 28, 28, 1),
        torch.zeros(5, 1, 28, 27),
        torch.zeros(5, 1, 28, 28, dtype=torch.int64),
        torch.zeros(5, 1, 28, 28, dtype=torch.bool),
        torch.full((5, 1, 28, 28), -1.0),
        torch.full((5, 1, 28, 28), 255.0),
        torch.full((5, 1, 28, 28), math.nan),
    ],
    ids=lambda x: f"{x.dtype} {tuple(x.shape)} {x.flatten()[0].item():g}",
)
def test_log_prob_and_scores_refuse_what_are_no_images_of_the_model(run: TrainedRun, images: torch.Tensor) -> None:
    for call in (
        run.log_prob,
        lambda x: estimates.image_scores(run.vae, x, 2, 0),
        lambda x: draws.reconstruct(run.vae, x),
    ):
        with pytest.raises(InputError, match=r"^images "):
            call(images)


def test_few_effective_samples_are_said(run: TrainedRun, caplog: pytest.LogCaptureFixture) -> None:
    run.log_prob(run.data.test.images[:5], samples=4)
    assert "effective sample size" in caplog.text
    assert "take more samples" in caplog.text


# --- what is written --------------------------------------------------------------------------------------------------


def test_pictures_come_in_three_kinds_and_go_to_the_run_by_default(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    for suffix, head in heads.items():
        assert vae(monkeypatch, "sample", str(trained), "-n", "2", "--out", str(tmp_path / f"x{suffix}")) == 0
        assert (tmp_path / f"x{suffix}").read_bytes().startswith(head)
    assert vae(monkeypatch, "sample", str(trained), "-n", "2") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(trained / "figures" / "my_samples.png")
    assert (trained / "figures" / "my_samples.png").exists()


@pytest.mark.parametrize(
    ("out", "said"), [("x.txt", "must end in .png"), ("there.png", "already exists"), ("no/x.png", "")]
)
def test_a_place_that_cannot_be_is_refused(out: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(b"old")
    if said:
        with pytest.raises(InputError, match=rf"^--out=.*{said}"):
            output.check_out(str(tmp_path / out), force=False)
    else:
        assert output.check_out(str(tmp_path / out), force=False) == tmp_path / out  # folders on the way are made
    assert (tmp_path / "there.png").read_bytes() == b"old"
    assert output.check_out(str(tmp_path / "there.png"), force=True) == tmp_path / "there.png"


def test_a_table_has_a_column_for_each_latent_and_none_for_pixels() -> None:
    values = {"name": ["a", "b"], "mean": np.array([[1.5, 2], [3, 4]]), "x": np.zeros((2, 1, 3, 4))}
    assert list(csv.reader(io.StringIO(output.as_csv(values)))) == [
        ["name", "mean_0", "mean_1"], ["a", "1.5", "2"], ["b", "3", "4"],
    ]  # fmt: skip


# --- a person's own images --------------------------------------------------------------------------------------------


def test_a_photograph_of_a_digit_is_met_as_the_digit(
    run: TrainedRun, trained: Path, tmp_path: Path, numbers: Any
) -> None:
    """Larger, dark on light, in colour, under uneven light, turned as a camera's EXIF says."""
    digit = run.data.test.images[2, 0].numpy()
    ink = np.asarray(Image.fromarray(digit).resize((224, 224), Image.Resampling.BICUBIC)) / 255
    page = np.ones((400, 300))
    page[90:314, 40:264] -= 0.8 * ink
    page *= 1 - 0.3 * np.linspace(0, 1, 300)
    photo = Image.fromarray((page[..., None] * [240, 230, 205]).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.jpg", exif=exif)
    found = numbers("reconstruct", str(tmp_path / "photo.jpg"))
    assert found["name"].tolist() == [str(tmp_path / "photo.jpg")]
    best = max(
        np.corrcoef(np.roll(found["x"][0, 0], shift, (0, 1)).ravel(), digit.ravel())[0, 1]
        for shift in np.ndindex(3, 3)
        for shift in [(shift[0] - 1, shift[1] - 1)]
    )
    assert best > 0.8
    turned = np.corrcoef(np.rot90(found["x"][0, 0]).ravel(), digit.ravel())[0, 1]
    assert turned < best - 0.2


@pytest.mark.parametrize("digit", range(6))
def test_a_clean_digit_of_another_size_keeps_its_strokes(run: TrainedRun, tmp_path: Path, digit: int) -> None:
    """White on black, filling the picture: its bars and loops are wide, and there is no paper to take away."""
    image = run.data.test.images[digit, 0].numpy()
    rows, columns = np.flatnonzero(image.max(1) > 60), np.flatnonzero(image.max(0) > 60)
    tight = Image.fromarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    high, wide = tight.height * 8, tight.width * 8
    page = Image.new("L", (wide + 4, high + 4))
    page.paste(tight.resize((wide, high), Image.Resampling.BICUBIC), (2, 2))
    page.save(tmp_path / "digit.png")
    (found,), said = fit_image(tmp_path / "digit.png", (1, 28, 28), dark=True)
    assert said == "cropped to what is drawn, resized"
    high, wide = (round(n * 20 / max(tight.size)) for n in tight.size[::-1])
    kept = found[found.max(1) > 60][:, found.max(0) > 60]
    assert abs(kept.shape[0] - high) <= 2
    assert abs(kept.shape[1] - wide) <= 2
    same = np.asarray(tight.resize(kept.shape[::-1], Image.Resampling.BICUBIC))
    assert np.corrcoef(kept.ravel(), same.ravel())[0, 1] > 0.95


def test_a_page_without_a_drawing_is_refused(tmp_path: Path) -> None:
    Image.new("L", (200, 200), 255).save(tmp_path / "blank.png")
    with pytest.raises(InputError, match=r"blank\.png: nothing is drawn in it"):
        fit_image(tmp_path / "blank.png", (1, 28, 28), dark=True)


@pytest.mark.parametrize("content", ["text", "empty folder", "nothing"])
def test_what_is_no_image_is_refused_in_one_line(
    content: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.png"
    if content == "text":
        path.write_text("hello")
    elif content == "empty folder":
        path.mkdir()
    for verb in ("reconstruct", "encode", "score"):
        assert vae(monkeypatch, verb, str(trained), str(path)) == 2
        line = capsys.readouterr().err
        assert line.startswith(str(path))
        assert line.count("\n") == 1


# --- runs -------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_sorted_and_written_as_a_table(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vae(monkeypatch, "runs", str(sweep), "--sort", "dev/loss", "--metric", "dev/loss") == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(str(sweep))]
    losses = {str(f.parent): json.loads(f.read_text())["dev/loss"] for f in sweep.glob("*/metrics.json")}
    assert len(losses) == 4
    assert [line[0] for line in shown] == sorted(losses, key=losses.__getitem__)
    assert [float(line[-1]) for line in shown] == pytest.approx(sorted(losses.values()), rel=1e-3)
    assert vae(monkeypatch, "runs", str(sweep), "--out", str(tmp_path / "runs.csv")) == 0
    with open(tmp_path / "runs.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["latent_dim"] for row in table] == ["2", "2", "3", "3"]
    assert vae(monkeypatch, "runs", str(sweep), "--sort", "dev/los") == 2
    assert "did you mean dev/loss?" in capsys.readouterr().err


def test_runs_without_a_value_are_sorted_last_either_way() -> None:
    table = DataFrame({"run": list("abcde"), "m": [None, 2.0, 1.0, float("nan"), "text"]})
    for reverse, expected in ((False, "cbead"), (True, "bcead")):
        assert "".join(table["run"].iloc[runs.order_of(table, "m", reverse)]) == expected


def test_runs_and_their_history_are_tables_of_pandas(sweep: Path, trained: Path) -> None:
    import vae as package

    table = package.runs(sweep)
    assert table["latent_dim"].tolist() == [2, 2, 3, 3]
    assert set(table["status"]) == {"finished"}
    history = load_run(trained).history
    assert history["epoch"].tolist() == [1, 2, 3]
    best = json.loads((trained / "metrics.json").read_text())["dev/loss"]
    assert history["dev/loss"].min() == pytest.approx(best, rel=1e-6)


def test_a_checkpoint_alone_is_a_model_too(trained: Path, tmp_path: Path, run: TrainedRun) -> None:
    alone = tmp_path / "taken.ckpt"
    alone.write_bytes((trained / "checkpoints" / "best.ckpt").read_bytes())
    z = torch.zeros(1, 3)
    with torch.no_grad():
        assert torch.equal(load_run(alone).vae.sample(z), run.vae.sample(z))


def test_shells_are_offered_runs_and_metrics(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae.commands import completion

    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").symlink_to(trained.parent)
    assert completion.runs("") == ["latest", "outputs/run"]
    assert completion.runs("outputs/r") == ["outputs/run"]
    assert completion.metrics("dev/lo") == ["dev/loss", "dev/loss_error"]
    ended = subprocess.run(
        [sys.executable, "-m", "vae.commands.cli"], capture_output=True, text=True, timeout=60,
        env={"PYTHONPATH": str(ROOT), "_VAE_COMPLETE": "complete_bash", "COMP_WORDS": "vae sam", "COMP_CWORD": "1"},
    )  # fmt: skip
    assert ended.stdout.split() == ["sample"]
