"""The short way through a step: to the bit what Lightning's own loop does, in its order, with its counts."""

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, settings_of
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector

from vae.errors import Stopped
from vae.run import settings
from vae.run.build import build
from vae.run.directory import Run
from vae.run.keys import Settings
from vae.run.trainer import prepared_trainer
from vae.training import lightning_insides as insides
from vae.training.history import History
from vae.training.lightning_insides import STEP_HOOKS, StepLoop
from vae.training.lit import LitVAE

STEPS, EPOCHS = 5, 2
SHORT = (
    *SMALL,
    "likelihood=gaussian",
    "threads=1",
    "data.batch_size=20",
    f"trainer.limit_train_batches={STEPS}",
    f"trainer.max_epochs={EPOCHS}",
    "callbacks.figures_every=0",
)


@pytest.fixture(scope="module", autouse=True)
def _undrawn() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae.run.trainer.baselines", lambda *arguments: {})
        yield


def trained(
    folder: Path, loop: type[_TrainingEpochLoop], *overrides: str, kind: type | None = None, more: Any = ()
) -> tuple[LitVAE, Trainer]:
    """A run's own trainer with the given loop; `kind` is a LitVAE with hooks of its own, `more` are callbacks."""

    def install(trainer: Trainer, lit: LightningModule) -> None:
        trainer.fit_loop.epoch_loop = loop(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae.run.trainer.install_fast_loop", install)
        if kind is not None:
            patch.setattr("vae.run.build.LitVAE", kind)
        s = settings_of(*SHORT, *overrides)
        lit, data = build(s)
        run = Run(folder / loop.__name__, s)
        with run.open(), prepared_trainer(run, lit, data) as (trainer, _):
            trainer.callbacks[:0] = more  # type: ignore[attr-defined]  # before those that stop and save
            trainer.fit(lit, datamodule=data, ckpt_path=run.resume_from, weights_only=True)
    return lit, trainer


def loop_of(trainer: Trainer) -> Any:
    return trainer.fit_loop.epoch_loop


def rows_of(trainer: Trainer) -> list[dict[str, float]]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets the list
    (history,) = (callback for callback in callbacks if isinstance(callback, History))
    return history.rows


def require_equal(ours: tuple[LitVAE, Trainer], lightnings: tuple[LitVAE, Trainer]) -> None:
    for (name, one), (_, other) in zip(ours[0].state_dict().items(), lightnings[0].state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    states = [trainer.optimizers[0].state_dict() for _, trainer in (ours, lightnings)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert ours[1].fit_loop.state_dict() == lightnings[1].fit_loop.state_dict()
    assert ours[1].callback_metrics == lightnings[1].callback_metrics
    assert rows_of(ours[1]) == rows_of(lightnings[1])


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("trainer.gradient_clip_val=0.5",),
        ("trainer.gradient_clip_val=0.5", "trainer.precision=bf16-mixed"),
        ("scheduler=one_cycle",),
        ("scheduler=cosine",),
        ("scheduler=plateau", "scheduler.patience=0"),
        ("trainer.precision=bf16-mixed",),
        ("data.binarize=dynamic", "likelihood=bernoulli", "data.num_workers=1"),
    ],
    ids=lambda overrides: ",".join(overrides) or "default",
)
def test_a_fast_run_is_lightnings_to_the_bit(overrides: tuple[str, ...], tmp_path: Path) -> None:
    ours = trained(tmp_path, StepLoop, *overrides)
    assert loop_of(ours[1]).fast
    assert ours[1].global_step == STEPS * EPOCHS
    require_equal(ours, trained(tmp_path, _TrainingEpochLoop, *overrides))


class Clipping(LitVAE):
    """In a way of its own, and whatever `trainer.gradient_clip_val` is."""

    def configure_gradient_clipping(self, *arguments: Any, **more: Any) -> None:
        for p in self.parameters():
            if p.grad is not None:
                p.grad.clamp_(-1e-3, 1e-3)


def test_a_modules_own_clipping_is_called(tmp_path: Path) -> None:
    ours = trained(tmp_path, StepLoop, "optimizer=sgd", kind=Clipping)
    assert loop_of(ours[1]).fast
    require_equal(ours, trained(tmp_path, _TrainingEpochLoop, "optimizer=sgd", kind=Clipping))
    free, _ = trained(tmp_path / "free", StepLoop, "optimizer=sgd")
    assert any(not torch.equal(a, b) for a, b in zip(ours[0].parameters(), free.parameters(), strict=True))


def test_clipping_took_place(tmp_path: Path) -> None:
    """Else the equality above would hold for a value that clips nothing."""
    clipped, _ = trained(tmp_path / "a", StepLoop, "trainer.gradient_clip_val=0.5", "optimizer=sgd")
    free, _ = trained(tmp_path / "b", StepLoop, "optimizer=sgd")
    assert any(not torch.equal(a, b) for a, b in zip(clipped.parameters(), free.parameters(), strict=True))


def noting(base: type, hooks: tuple[str, ...], calls: list[tuple[Any, ...]]) -> type:
    """A LitVAE or a Callback that notes each call of these hooks, with what the counters said then."""

    def note(self: Any, who: str, hook: str, trainer: Trainer) -> None:
        loop = loop_of(trainer)
        optimizer = loop.automatic_optimization.optim_progress.optimizer
        counts = (loop.batch_progress.state_dict(), optimizer.state_dict(), loop._batches_that_stepped)
        calls.append((who, hook, trainer.lightning_module._current_fx_name, str(counts)))

    def noted(hook: str) -> Any:
        def method(self: Any, *arguments: Any) -> Any:
            note(self, base.__name__, hook, arguments[0] if isinstance(self, Callback) else self.trainer)
            return getattr(base, hook)(self, *arguments)

        return method

    return type(base.__name__, (base,), {**{hook: noted(hook) for hook in hooks}, "note": note})


def test_hooks_come_in_lightnings_order_and_find_its_counts(tmp_path: Path) -> None:
    found = {}
    for loop in (StepLoop, _TrainingEpochLoop):
        calls: list[tuple[Any, ...]] = []
        kind = noting(LitVAE, (*STEP_HOOKS, "on_train_batch_end"), calls)
        watch = noting(Callback, ("on_train_batch_start", "on_train_batch_end", "on_train_epoch_end"), calls)()
        end = partial(watch.note, "lambda", "on_train_batch_end")
        given = LambdaCallback(on_train_batch_end=lambda trainer, *_, end=end: end(trainer))  # not its class's hook
        _, trainer = trained(tmp_path, loop, kind=kind, more=[watch, given])
        found[loop] = calls
        assert loop is _TrainingEpochLoop or loop_of(trainer).fast
    assert {hook for _, hook, *_ in found[StepLoop]} >= {*STEP_HOOKS, "on_train_batch_start", "on_train_batch_end"}
    assert ("lambda", "on_train_batch_end") in {(who, hook) for who, hook, *_ in found[StepLoop]}
    assert found[StepLoop] == found[_TrainingEpochLoop]


class Logging(LitVAE):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if batch_idx % 2:  # now and then only
            self.log("mine/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        super().on_before_optimizer_step(optimizer)
        self.log("mine/step", float(self.global_step))

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.log("mine/end", float(self.global_step))


def test_what_a_step_logs_is_kept(tmp_path: Path) -> None:
    ours = trained(tmp_path, StepLoop, kind=Logging)
    assert loop_of(ours[1]).fast
    assert {"mine/loss_epoch", "mine/step", "mine/end"} <= ours[1].callback_metrics.keys()
    assert "mine/loss_step" in ours[1].progress_bar_metrics
    require_equal(ours, trained(tmp_path, _TrainingEpochLoop, kind=Logging))


class Gradients(Callback):
    def __init__(self) -> None:
        self.calls = 0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.calls += 1


class Skipping(LitVAE):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 else None


@pytest.mark.parametrize(
    ("overrides", "kind", "watched", "steps"),
    [
        (("trainer.accumulate_grad_batches=2",), None, False, 3),  # the last of five batches steps too
        (("trainer.precision=64-true",), None, False, 5),
        ((), None, True, 5),
        ((), Skipping, False, 3),
    ],
    ids=["accumulated", "double", "watched", "skipped"],
)
def test_every_other_run_is_left_to_lightning(
    overrides: tuple[str, ...], kind: type | None, watched: bool, steps: int, tmp_path: Path
) -> None:
    watches = [Gradients() for _ in range(2)] if watched else []
    ours = trained(tmp_path, StepLoop, *overrides, kind=kind, more=watches[:1])
    assert not loop_of(ours[1]).fast
    require_equal(ours, trained(tmp_path, _TrainingEpochLoop, *overrides, kind=kind, more=watches[1:]))
    assert [watch.calls for watch in watches] == [STEPS * EPOCHS] * len(watches)
    assert ours[1].global_step == steps * EPOCHS


class Signal(Callback):
    """SIGTERM after a number of batches, as a cluster sends it."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("batch", [2, STEPS + 3])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("scheduler=one_cycle",),  # which asks how many steps there are before the run knows where it stands
        ("scheduler=warmup_cosine",),
        ("scheduler=plateau", "scheduler.patience=0"),
        ("trainer.accumulate_grad_batches=2",),
        ("trainer.gradient_clip_val=0.5", "trainer.precision=bf16-mixed"),
        ("data.num_workers=1", "data.binarize=dynamic", "likelihood=bernoulli"),
    ],
    ids=lambda overrides: ",".join(overrides) or "default",
)
def test_a_run_stopped_in_mid_epoch_goes_on_to_the_bit(overrides: tuple[str, ...], batch: int, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        trained(tmp_path / "a", StepLoop, *overrides, more=[Signal(batch)])
    resumed = trained(tmp_path / "a", StepLoop, *overrides)
    require_equal(resumed, trained(tmp_path / "b", StepLoop, *overrides))
    norms = [row["train/grad_norm"] for row in rows_of(resumed[1])]
    assert len(set(norms)) == EPOCHS  # each epoch's own


class Renamed:
    """An inside that this project no longer finds, while Lightning's own code knows its new name."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if sys._getframe(1).f_globals["__name__"].startswith("vae."):
            raise AttributeError("renamed")
        return self.original.__get__(instance, owner)


def run_to_its_end(folder: Path, *overrides: str) -> tuple[LitVAE, Trainer]:
    """A run's own trainer as it is."""
    s = settings_of(*SHORT, *overrides)
    lit, data = build(s)
    run = Run(folder, s)
    with run.open(), prepared_trainer(run, lit, data) as (trainer, _):
        trainer.fit(lit, datamodule=data)
    return lit, trainer


def warnings_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on the terminal since the last call that speak of Lightning."""
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("lightning")]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (_LoggerConnector, "on_batch_start"),
        (_TrainingEpochLoop, "_num_ready_batches_reached"),
        (_FitLoop, "_load_combined_loader_states"),
        (insides, "_TrainingEpochLoop"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_an_inside_lightnings_loop_gives_the_same_numbers(
    owner: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = trained(tmp_path / "fast", StepLoop)
    monkeypatch.setattr(owner, name, object if owner is insides else Renamed(vars(owner)[name]))
    without = run_to_its_end(tmp_path / "own")
    assert type(loop_of(without[1])) is _TrainingEpochLoop
    (line,) = warnings_of(capsys)
    assert name in line
    require_equal(ours, without)


def test_the_fast_loop_can_be_turned_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = run_to_its_end(tmp_path / "fast")
    assert type(loop_of(ours[1])) is StepLoop
    assert loop_of(ours[1]).fast
    monkeypatch.setattr("conftest.settings.check", partial(with_option, settings.check, fast_step=False))
    without = run_to_its_end(tmp_path / "own")
    assert type(loop_of(without[1])) is _TrainingEpochLoop
    assert warnings_of(capsys) == []
    require_equal(ours, without)


def with_option(check: Any, cfg: Any, **options: Any) -> Settings:
    plain = check(cfg).plain
    return settings.verify(plain | {"trainer": plain["trainer"] | options})
