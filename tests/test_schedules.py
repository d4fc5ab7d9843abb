"""Closed forms of the schedules."""

import itertools
import math
from typing import Any

import pytest
import torch

from vae.schedules import constant, cyclic, linear, warmup_cosine


def test_constant_is_constant() -> None:
    assert [constant(step, 0.3) for step in (0, 1, 10**9)] == [0.3] * 3
    assert constant(5) == 1.0


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.2, 4.0), (1.0, 0.25)])
def test_linear_rises_by_equal_steps_and_stays(start: float, end: float) -> None:
    values = [linear(step, start, end, steps=8) for step in range(20)]
    assert values[0] == start
    assert values[4] == pytest.approx((start + end) / 2)
    assert values[8:] == [end] * 12
    differences = [b - a for a, b in itertools.pairwise(values)]
    assert differences[:8] == pytest.approx([(end - start) / 8] * 8)


def test_cyclic_repeats_a_ramp_and_a_plateau() -> None:
    period = [cyclic(step, 0.0, 2.0, period=10, ramp=0.4) for step in range(10)]
    assert period == pytest.approx([0.0, 0.5, 1.0, 1.5, *[2.0] * 6])
    assert [cyclic(step, 0.0, 2.0, period=10, ramp=0.4) for step in range(10, 40)] == period * 3


def test_cyclics_first_period_is_the_linear_warm_up() -> None:
    for step in range(1000):
        assert cyclic(step, period=1000, ramp=0.3) == linear(step, steps=300)


@pytest.mark.parametrize("ramp", [0.0, 1e-9, 1.0])
def test_cyclic_takes_a_ramp_of_nothing_and_of_all(ramp: float) -> None:
    values = [cyclic(step, period=5, ramp=ramp) for step in range(5)]
    assert values == pytest.approx([0, 0.2, 0.4, 0.6, 0.8] if ramp == 1 else [0, 1, 1, 1, 1])


def rates(warmup: int, epochs: int, start_factor: float = 0.01, lr: float = 0.2) -> list[float]:
    """The learning rate of every epoch, and of the one after the last."""
    weights = [torch.zeros(1, requires_grad=True), torch.zeros(2, requires_grad=True)]
    groups: list[dict[str, Any]] = [{"params": weights[:1]}, {"params": weights[1:], "lr": 2 * lr}]
    optimizer = torch.optim.SGD(groups, lr=lr)
    scheduler = warmup_cosine(optimizer, warmup, epochs, start_factor)
    values = []
    for _ in range(epochs + 1):
        values.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == pytest.approx(2 * values[-1])
        optimizer.step()
        scheduler.step()
    return values


def test_warmup_cosine_has_the_values_worked_out_by_hand() -> None:
    rise = [0.2 * factor for factor in (0.1, 0.4, 0.7)]
    half = math.sqrt(0.5)
    fall = [0.2 * factor for factor in (1, (1 + half) / 2, 0.5, (1 - half) / 2, 0)]
    assert rates(warmup=3, epochs=7, start_factor=0.1) == pytest.approx([*rise, *fall], abs=1e-9)


@pytest.mark.parametrize(("warmup", "epochs"), [(0, 4), (1, 4), (5, 40)])
def test_warmup_cosine_rises_to_the_rate_and_falls_to_nothing(warmup: int, epochs: int) -> None:
    values = rates(warmup, epochs)
    assert values[warmup] == pytest.approx(0.2)
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    assert values[epochs] == pytest.approx(0, abs=1e-9)
    assert max(values) == pytest.approx(0.2)


def test_warmup_cosine_resumes_where_it_stopped() -> None:
    def build() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
        return optimizer, warmup_cosine(optimizer, 3, 9)

    def run(optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, n: int) -> list[float]:
        values = []
        for _ in range(n):
            optimizer.step()
            scheduler.step()
            values.append(optimizer.param_groups[0]["lr"])
        return values

    whole = run(*build(), 9)
    for stop in (2, 3, 5):
        first = build()
        head = run(*first, stop)
        second = build()
        second[0].load_state_dict(first[0].state_dict())
        second[1].load_state_dict(first[1].state_dict())
        assert head + run(*second, 9 - stop) == pytest.approx(whole, abs=1e-12)
