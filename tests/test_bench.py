"""The benchmark runs and its figures fit together. No test here asserts a time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from faults_tools import SCREEN

from vae.commands import bench, cli
from vae.errors import InputError
from vae.run.compose import compose
from vae.run.keys import CONF

TINY = [
    "data=digits", "latent_dim=3", "model.encoder.hidden=[7]", "model.decoder.hidden=[5]", "threads=1",
    "trainer.limit_train_batches=4", "data.batch_size=50", "likelihood=bernoulli", "data.binarize=dynamic",
]  # fmt: skip
PARTS = {
    "data", "forward", "bare", "bare, validated", "train.py", "bare, denormals kept",
    "bare, validated, denormals kept", "train.py, denormals kept",
}  # fmt: skip


@pytest.fixture(scope="module")
def bare() -> bench.Bare:
    s = compose(TINY)
    return bench.Bare(s, bench.build_data(s))


def test_bench_prints_figures_that_fit_together(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SCREEN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["vae", "bench", *TINY, "--json", "--denormals", "--epochs", "1"])
    cli.main()
    printed = capsys.readouterr()
    assert "it/s" not in printed.err  # a bar is for terminals
    found: dict[str, Any] = json.loads(printed.out)
    parts = found["parts"]
    assert parts.keys() == PARTS
    for part in parts.values():
        assert part["images_per_second"] == pytest.approx(4 * 50 / part["seconds"])
        assert part["to_bare"] > 0
    assert parts["bare"]["to_bare"] == 1
    assert parts["bare, validated"]["seconds"] > parts["bare"]["seconds"]
    assert all(part["first"] > 0 and part["last"] > 0 for part in parts.values())
    assert sum(found["step_shares"].values()) == pytest.approx(1)
    assert found["step_shares"]["arithmetic"] > 0
    assert found["step_shares"]["random numbers"] > 0
    assert 0 < found["share_of_arithmetic"] < 1
    assert found["seconds_to_first_step"] > 0
    assert found["importance_samples_per_second"] > 0
    bench.show(found)
    out = capsys.readouterr().out
    assert all(part in out for part in PARTS)


def test_flops_of_a_step_are_those_of_its_products(bare: bench.Bare) -> None:
    """Forward, the gradient of the weights, and that of the inputs for all layers but the first, which has none."""
    products = [(784, 7), (7, 6), (3, 5), (5, 784)]
    sizes = [inputs * outputs for inputs, outputs in products]
    assert bench.flops(bare) == 2 * 50 * (3 * sum(sizes) - sizes[0])


def test_an_epoch_of_the_bare_loop_learns_from_every_image_once(bare: bench.Bare) -> None:
    seen = torch.cat([x for x, _ in bare.batches()])
    assert seen.shape == bare.images.shape
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    before = [p.detach().clone() for p in bare.vae.parameters()]
    bench.timed(bare.epoch(), 2)
    assert any((p != q).any() for p, q in zip(bare.vae.parameters(), before, strict=True))
    kept = [p.detach().clone() for p in bare.vae.parameters()]
    bare.validate()
    bench.timed(bare.forward(), 2)
    assert all((p == q).all() for p, q in zip(bare.vae.parameters(), kept, strict=True))
    assert bare.vae.training


def test_each_option_of_a_group_is_measured_or_says_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    bench.main_each("prior", [*TINY, "trainer.limit_train_batches=2"], 1)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert sorted(lines) == sorted(path.stem for path in Path(CONF, "prior").glob("*.yaml") if path.stem != "own")
    assert all("ms per step" in line for line in lines.values())
    assert "1.00 of standard" in lines["standard"]
    bench.main_each("objective", ["data=digits", "threads=1"], 1)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "importance weights need a likelihood in nats" in lines["iwae"]
    assert "1.00 of elbo" in lines["elbo"]


@pytest.mark.parametrize(
    ("group", "overrides", "line"),
    [
        ("priors", [], "--each=priors: must be one of prior, posterior, "),
        ("data", [], "--each=data: must be one of "),
        ("prior", ["prior=vamp"], "prior=vamp: --each=prior takes all of them"),
    ],
)
def test_a_group_that_cannot_be_measured_is_refused(group: str, overrides: list[str], line: str) -> None:
    with pytest.raises(InputError) as refused:
        bench.main_each(group, overrides, 1)
    assert str(refused.value).startswith(line)


@pytest.mark.slow
def test_a_schedule_of_the_whole_run_follows_the_turns(capsys: pytest.CaptureFixture[str]) -> None:
    bench.main([*TINY, "scheduler=one_cycle", "trainer.max_epochs=1"], 1, False, True)
    assert json.loads(capsys.readouterr().out)["epochs"] == 1


def test_epochs_that_become_slower_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    flat, rising = [3.0, 3.1, 3.0, 2.9], [3.0, 4.0, 9.0, 17.0]
    names = ("bare", "bare, validated", "train.py")
    seconds = {f"{name}{kept}": rising if kept else flat for name in names for kept in ("", bench.UNFLUSHED)}
    parts = bench.summarise(seconds, 100)
    assert (parts["train.py"]["first"], parts["train.py"]["last"]) == (3.0, 2.9)
    assert parts["train.py, denormals kept"]["to_bare"] == 1  # each beside the bare loop of its kind
    bench.warn_of_slowing(parts)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == "bare, denormals kept: epochs become slower, from 3 to 17 s; likely denormal numbers"
