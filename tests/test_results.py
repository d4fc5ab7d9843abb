"""After a run: its table, its pictures, its figures anew, and the way back in."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from platform import libc_ver
from typing import Any

import pytest
import torch
import yaml
from conftest import RUNS, settings_of, tree
from filelock import FileLock
from matplotlib.image import imread

from vae.commands import cli
from vae.errors import InputError
from vae.evaluation import estimates, figures
from vae.evaluation.gallery import FIGURES, Subject, draw_figure, lacks, names_of
from vae.run import results
from vae.run.build import build
from vae.run.directory import Run, read_settings
from vae.run.load import load_run
from vae.run.memory import call_glibc
from vae.run.settings import read
from vae.run.table import closing_lines, print_results, show_result, table_rows, warnings, written
from vae.training import checkpoints
from vae.training.history import History


@pytest.fixture
def run(sweep: Path, tmp_path: Path) -> Path:
    """A copy of a finished run: two latents, MLP, a Gaussian likelihood of fixed variance."""
    return Path(shutil.copytree(sweep / RUNS[0], tmp_path / "run"))


def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def vae(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the `vae` command, in this process."""
    monkeypatch.setattr(sys, "argv", ["vae", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def opened(run: Path) -> Run:
    return Run(run, read(read_settings(run / "config.yaml")))


def with_metrics(run: Path, **changed: Any) -> None:
    (run / "metrics.json").write_text(json.dumps(metrics(run) | changed))


# --- the closing table ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("active", "words"), [(0, "collapsed: no latent is active"), (1, "1 of 2 latents are active")])
def test_table_says_in_words_what_the_latents_do(
    run: Path, active: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with_metrics(run, **{"test/active_units": active})
    print_results(opened(run))
    out = capsys.readouterr().out
    assert words in out
    assert ("collapsed" in out) is (active == 0)


def test_latents_that_do_not_move_are_not_active(run: Path) -> None:
    """The figure behind the words, on a model that collapsed: one mean for every image."""
    lit, data = load_run(run).lit, load_run(run).data

    def figures() -> dict[str, float]:
        return estimates.latent_metrics(lit.vae, data.train, data.test, "test", False)

    encoder: Any = lit.vae.encoder
    encoder.out.weight.data.zero_()
    assert figures()["test/active_units"] == 0
    mu, log_var = encoder.out.bias.detach().double().chunk(2)
    nats = 0.5 * (log_var.exp() + mu**2 - 1 - log_var)  # of N(mu, sigma^2) from the prior
    assert [figures()[f"test/kl_per_latent/{i:02d}"] for i in range(2)] == pytest.approx(nats.tolist(), rel=1e-5)
    encoder.out.weight.data[1] = 1
    assert figures()["test/active_units"] == 1


def test_table_returns_the_monitored_figure_and_names_the_places(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = metrics(run)
    assert show_result(opened(run)) == found["dev/loss"]
    out = capsys.readouterr().out
    headline = f"Digits: dev/loss {written(found, 'dev/loss')} in epoch 1 of 1"
    assert headline in " ".join(out.split())
    value, error = found["test/reconstruction"], found["test/reconstruction_error"]
    shown, _, spread = written(found, "test/reconstruction").partition(" ± ")
    assert float(shown.replace("−", "-")) == pytest.approx(value, abs=error)
    assert float(spread) == pytest.approx(1.96 * error, rel=0.1)
    assert f"{shown} ± {spread}" in out
    assert "± is half of the 95 % interval over images" in out
    assert "nats per image" in out
    assert f"run:      {run}\n" in out
    assert f"curves:   tensorboard --logdir {run}\n" in out
    assert "squared error" not in out


def test_squared_error_is_said_to_be_no_nll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = Run(Path("outputs/2026-01-01/x"), settings_of("data=digits"))
    one.directory.mkdir(parents=True)
    (one.directory / "events.out.tfevents.1").touch()
    ended = {"epochs": 9, "best_epoch": 8, "stopped_early": 0, "steps": 1000}
    metrics = {"test/active_units": 4, "dev/unweighted_loss": 36.0, "test/kl_per_latent/00": 1.0}
    lines = closing_lines(one, ended | metrics)
    assert lines[0] == "4 of 4 latents are active"
    assert "the likelihood is not normalised" in lines[1]
    assert lines[-1] == "curves:   tensorboard --logdir outputs"


GOOD = {
    "test/active_units": 4, "epochs": 70, "best_epoch": 60, "stopped_early": 0, "steps": 35_000, "dev/kl": 12.0,
    "dev/loss": 35.0, "train_eval/loss": 34.0, "samples/class_entropy_convnet-1": 2.2, "test/nll_ess": 50.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("metrics", "key"),
    [
        ({"test/active_units": 0}, "objective/beta=linear"),
        ({"test/active_units": 1}, "dropout=0"),
        ({"dev/kl": 0.01}, "objective/beta=linear"),
        ({"steps": 60}, "trainer.max_epochs"),
        ({"best_epoch": 70}, "trainer.max_epochs=140"),
        ({"train_eval/loss": 30.0, "dev/loss_error": 1.0}, "callbacks.early_stopping"),
        ({"samples/class_entropy_convnet-1": 0.2}, "prior=flow"),
        ({"test/nll_ess": 2.8, "test/nll_samples": 500}, "vae evaluate RUN samples=5000"),
    ],
)
def test_what_to_know_before_the_numbers_names_the_key_to_change(metrics: dict[str, float], key: str) -> None:
    plain = settings_of("data=digits").plain
    assert warnings(GOOD, plain) == []
    assert warnings(GOOD | {"train_eval/loss": 30.0, "dev/loss_error": 2.0}, plain) == []  # within the noise of dev
    (line,) = warnings(GOOD | metrics, plain)
    assert key in line
    assert all(f"{value:g}" in line for name, value in metrics.items() if name.startswith("test/nll"))


def test_show_prints_the_table_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(run)
    monkeypatch.setenv("COLUMNS", "80")
    assert vae(monkeypatch, "show", str(run)) == 0
    out = capsys.readouterr().out
    assert "in epoch 1 of 1" in " ".join(out.split())
    assert max(len(line) for line in out.partition("run:")[0].splitlines()) <= 80
    assert tree(run) == before


def test_a_row_that_repeats_the_loss_is_left_out() -> None:
    """With beta 1 the two are the same sum, but for the rounding of each image's loss to float32."""
    found = {"dev/loss": 461.0, "dev/neg_elbo": 461.0 * (1 + 3e-8), "dev/beta": 1.0, "test/kl": -0.0}
    assert [name for name, *_ in table_rows(found, "")] == ["loss", "kl"]
    assert [name for name, *_ in table_rows(found | {"dev/neg_elbo": 470.0}, "")] == ["loss", "neg_elbo", "kl"]
    assert written(found, "test/kl") == "0"


@pytest.mark.parametrize("command", ["show", "evaluate"])
def test_what_is_no_run_is_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vae(monkeypatch, command, str(tmp_path)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(tmp_path) in err
    assert "config.yaml" in err


def test_show_of_an_unfinished_run_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "metrics.json").unlink()
    assert vae(monkeypatch, "show", str(run)) == 2
    assert "not finished" in capsys.readouterr().err


# --- figures anew -----------------------------------------------------------------------------------------------------


def test_evaluate_rewrites_the_figures_and_keeps_training_s(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, files = metrics(run), tree(run)
    assert vae(monkeypatch, "evaluate", str(run), "samples=20", "evaluation.probes=true") == 0
    found, rewritten = metrics(run), tree(run)
    assert found["test/nll_samples"] == 20
    assert {"test/nll", "test/nll_error", "test/elbo", "test/rate", "test/distortion"} <= set(found)
    assert found["test/nll"] <= -found["test/elbo"]
    assert 1 <= found["test/nll_ess"] <= 20
    assert 0 <= found["test/nll_ess_below_2"] <= 1
    assert found["test/nll_half_gap"] >= 0
    assert {"test/knn_accuracy", "test/linear_probe_accuracy"} <= set(found)
    assert {name: found[name] for name in results.TRAINING} == {name: before[name] for name in results.TRAINING}
    for name in ("dev/loss", "dev/kl", "test/loss", "test/reconstruction"):
        assert found[name] == pytest.approx(before[name], rel=1e-6)
    changed = {name for name in files if rewritten[name] != files[name]}
    assert changed == {name for name in files if name.endswith(".png") and "figures" in name} | {"metrics.json"}
    assert "test NLL" in capsys.readouterr().out


def test_evaluating_the_last_epoch_leaves_the_best_one_s_figures(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(run)
    assert vae(monkeypatch, "evaluate", str(run), "--checkpoint", "last") == 0
    after = tree(run)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) >= {"metrics_last.json", "figures_last/losses.png"}
    assert "the last epoch's metrics" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("smaples=20", "did you mean evaluation.samples?"),
        ("latent_dim=3", "there is no such key"),
        ("samples=-1", ">= 0"),
        ("samples=many", ">= 0"),
        ("samples", ">= 0"),
        ("probes=3", "true or false"),
        ("features=true", "evaluation.generated"),  # of which the run has none
    ],
)
def test_evaluate_refuses_what_the_group_does_not_know(
    run: Path, pair: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(run)
    assert vae(monkeypatch, "evaluate", str(run), pair) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert pair.partition("=")[0] in err
    assert said in err
    assert tree(run) == before


def test_evaluate_waits_for_no_other_process(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(run / ".lock"):
        assert vae(monkeypatch, "evaluate", str(run), "samples=2") == 2
    assert "another process" in capsys.readouterr().err


# --- pictures ---------------------------------------------------------------------------------------------------------


def subject(*overrides: str) -> Subject:
    """An untrained model of digits, with a history of one epoch."""
    lit, data = build(settings_of("data=digits", *overrides))
    history = History()
    history.rows = [
        {"epoch": 1, "step": 1, "dev/sigma": 0.3}
        | {f"{split}/{name}": 9.0 for split in ("train", "dev") for name in ("loss", "reconstruction", "kl")}
    ]
    return Subject(lit.eval().vae, data, history.curve, "digits", 0)


@pytest.mark.parametrize(("sigma", "drawn"), [("0.3", False), ("optimal", False), ("pixel", True)])
def test_a_sigma_that_is_the_same_everywhere_is_no_picture(sigma: str, drawn: bool) -> None:
    names = names_of(subject("likelihood=gaussian", f"likelihood.sigma={sigma}"))
    assert ("sigma_image" in names) == drawn
    assert {"sigma_history", "residuals", "samples_drawn"} <= set(names)


def test_every_figure_is_drawn_by_name_or_refused_with_the_reason() -> None:
    """Of two models that have all of them together."""
    small = ("model.encoder.hidden=[5]", "model.decoder.hidden=[4]")
    plane = subject("latent_dim=2", "likelihood=gaussian", "likelihood.sigma=pixel", *small)
    more = subject("latent_dim=3", "likelihood=squared_error", *small)
    drawn = set()
    for one in (plane, more):
        for name in FIGURES:
            if reason := lacks(name, one):
                with pytest.raises(InputError, match=f"^figure={name}: {re.escape(reason)}; this model has losses, "):
                    draw_figure(name, one)
            else:
                text = figures.alternative_text(draw_figure(name, one))
                assert text.startswith(FIGURES[name].shows)
                assert "digits" in text
                drawn.add(name)
    assert set(FIGURES) - drawn == {"neighbours", "class_histogram"}  # which take a classifier
    assert {"manifold", "true_posterior"} <= set(FIGURES) - set(names_of(more))


@torch.no_grad()
def test_traversals_decode_the_prior_s_quantiles_and_nothing_else_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    one, seen = subject("latent_dim=3", "model.decoder.hidden=[4]"), []
    monkeypatch.setattr(one.vae, "sample", lambda z, x, y: seen.append(z) or torch.zeros(len(z), 1, 28, 28))
    one.use = torch.tensor([1.0, 0.0, 2.0])
    (axis,) = draw_figure("traversals", one).axes
    z = seen[0].view(3, 11, 3)
    quantiles = torch.distributions.Normal(0, 1).icdf(torch.linspace(0.02, 0.98, 11))
    assert torch.allclose(z[0, :, 2], quantiles)
    assert torch.allclose(z[1, :, 0], quantiles)
    assert (z[0, :, :2] == 0).all()
    assert (z[1, :, 1:] == 0).all()
    assert [text.get_text() for text in axis.get_yticklabels()] == ["z2", "z0", "z1"]
    across = [text.get_text().replace("\u2212", "-") for text in axis.get_xticklabels()]
    assert across == [f"{value:.2f}" for value in quantiles.tolist()]


def test_every_run_of_the_sweep_has_its_pictures(sweep: Path) -> None:
    """Figures 4 to 8 of the report, and ours; each a PNG in which something is drawn."""
    expected = {
        "losses", "reconstructions", "errors", "error_map", "samples", "samples_drawn", "interpolations",
        "kl_per_latent", "latents", "aggregate_posterior", "rate_distortion", "sigma_history", "residuals",
    }  # fmt: skip
    for name in RUNS:
        drawn = list((sweep / name / "figures").iterdir())
        latents = read_settings(sweep / name / "config.yaml")["latent_dim"]
        plane = "manifold" if latents == 2 else "traversals"
        assert {path.name for path in drawn} == {f"{figure}.png" for figure in {*expected, plane}}
    for path in (sweep / RUNS[0] / "figures").iterdir():
        image = imread(path)
        assert min(image.shape[:2]) > 100, path
        assert image[..., :3].std() > 0.01, path


# --- the way back in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["best", "last"])
def test_run_is_loaded_as_it_was_saved(run: Path, which: str) -> None:
    path = run / "checkpoints" / f"{which}.ckpt"
    if which == "last":  # an epoch's run has one and the same in both
        checkpoint = checkpoints.load(path)
        checkpoint["state_dict"] = {name: value + 1 for name, value in checkpoint["state_dict"].items()}
        checkpoints.DurableCheckpointIO().save_checkpoint(checkpoint, path)
    one = load_run(run, which)
    lit, data = one.lit, one.data
    saved = checkpoints.load(path)["state_dict"]
    assert saved.keys() == lit.state_dict().keys()
    assert all(torch.equal(value, saved[name]) for name, value in lit.state_dict().items())
    assert not lit.training
    assert one.directory == run
    assert (data.place, lit.vae.latent_dim) == ("Digits", 2)


def test_loaded_run_repeats_its_figures(sweep: Path) -> None:
    """Of convolutions with three latents, too."""
    one = load_run(sweep / RUNS[3])
    lit, data = one.lit, one.data
    found = estimates.objective_metrics(lit.vae, lit.objective, data.test.images, "test", one.settings.seed, 12)
    assert found["test/loss"] == pytest.approx(metrics(sweep / RUNS[3])["test/loss"], rel=1e-6)
    assert lit.vae.latent_dim == 3


@pytest.mark.parametrize("which", ["best", "last"])
def test_checkpoint_that_is_gone_is_named(run: Path, which: str) -> None:
    (run / "checkpoints" / f"{which}.ckpt").unlink()
    with pytest.raises(InputError, match=rf"has no {which}\.ckpt \(finished\)"):
        load_run(run, which)


def test_configuration_that_was_damaged_is_refused(run: Path) -> None:
    s = read_settings(run / "config.yaml")
    (run / "config.yaml").write_text(yaml.safe_dump(s | {"latent_dim": "four"}))
    with pytest.raises(InputError, match="latent_dim=four: is not the configuration"):
        load_run(run)


def test_configuration_of_a_stranger_runs_no_code(run: Path, tmp_path: Path) -> None:
    """A run's directory may come from anywhere: its configuration is data, as its checkpoints are."""
    s = read_settings(run / "config.yaml")
    planted = {"likelihood": {"_target_": "os.mkdir", "path": str(tmp_path / "planted")}}
    (run / "config.yaml").write_text(yaml.safe_dump(s | planted))
    with pytest.raises(InputError, match=r"os\.mkdir"):
        load_run(run)
    assert not (tmp_path / "planted").exists()


KEEPS = libc_ver()[0] == "glibc" and tuple(map(int, libc_ver()[1].split("."))) >= (2, 35)


@pytest.mark.skipif(not KEEPS, reason="older malloc libraries do not keep large tensors' pages")
def test_pages_of_large_tensors_are_kept() -> None:
    """Outside, each tensor above glibc's greatest threshold is new pages. In a process with a heap of its own."""
    code = """
import resource, torch
from vae.run.memory import freed_memory_kept

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

outside = page_faults()
with freed_memory_kept():
    page_faults()
    print(outside, page_faults())
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    outside, kept = map(int, said.split())
    assert kept < outside / 10


def test_evaluation_keeps_pages_and_ends_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("vae.run.memory.call_glibc", lambda name, *_: calls.append(name))
    monkeypatch.setattr(estimates, "latent_metrics", lambda *_: calls.append("evaluation") or {})
    one = load_run(run)
    results.evaluate(one.lit, one.data, one.settings, 1)
    assert calls == ["mallopt", "mallopt", "evaluation", "mallopt", "mallopt"]


def test_other_systems_have_no_such_calls() -> None:
    call_glibc("no_such_call", 0)
