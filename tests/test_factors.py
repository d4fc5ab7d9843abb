"""Scores of disentanglement on representations whose score is known: the factors, a rotation of them, noise."""

from pathlib import Path

import numpy as np
import pytest
from conftest import settings_of
from scipy.linalg import hadamard

from vae.evaluation import factors as scores
from vae.run import results
from vae.run.build import build

SIZES = (3, 4, 5, 6)
ORDERED = [False, True, True, True]
NAMES = {"mig", "modularity", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness"}


def points(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([random.integers(n, size=count) for n in SIZES], 1)


TRAIN, TEST = points(1500, 0), points(1800, 1)


def standard(factors: np.ndarray) -> np.ndarray:
    return (factors - np.mean(TRAIN, 0)) / np.std(TRAIN, 0)


def score(representation) -> dict[str, float]:  # type: ignore[no-untyped-def]
    return scores.factor_scores(representation(TRAIN), TRAIN, representation(TEST), TEST, ORDERED)


def test_the_factors_themselves_score_one() -> None:
    found = score(lambda f: standard(f) * [1, -2, 3, 0.5])
    assert found.keys() == NAMES
    for name in NAMES - {"sap", "modularity"}:
        assert found[name] == pytest.approx(1, abs=0.02), name
    assert found["modularity"] == pytest.approx(1, abs=1e-3)
    # one latent gives a factor away, the next best gives no correlation, or one of three shapes by chance
    assert found["sap"] == pytest.approx((3 * 1 + 2 / 3) / 4, abs=0.03)


def test_the_order_of_the_latents_and_unused_ones_between_them_move_little() -> None:
    noise = np.random.default_rng(2)

    def permuted(f: np.ndarray) -> np.ndarray:
        return np.insert(standard(f)[:, [2, 0, 3, 1]], 2, noise.normal(size=len(f)) * 0.01, 1)

    found = score(permuted)
    assert found["mig"] > 0.97
    assert found["dci_disentanglement"] > 0.97
    assert found["sap"] > 0.88


def test_a_rotation_of_the_factors_keeps_the_information_and_scores_low() -> None:
    turn = hadamard(4) / 2  # each latent has an equal part of every factor
    found = score(lambda f: standard(f) @ turn)
    assert found["mig"] < 0.2
    assert found["sap"] < 0.3
    assert found["dci_disentanglement"] < 0.5
    assert found["dci_completeness"] < 0.5
    assert found["dci_informativeness"] > 0.6  # a forest still reads the factors off


def test_noise_scores_nothing() -> None:
    random = np.random.default_rng(4)
    found = score(lambda f: random.normal(size=(len(f), 6)))
    assert found["mig"] < 0.02
    assert found["sap"] < 0.03
    assert found["dci_disentanglement"] < 0.05
    assert found["dci_completeness"] < 0.05
    assert found["dci_informativeness"] == pytest.approx(np.mean([1 / n for n in SIZES]), abs=0.05)


def test_two_latents_that_share_a_factor_close_its_gap() -> None:
    """MIG asks for one latent a factor, modularity for one factor a latent."""
    found = score(lambda f: standard(f)[:, [0, 1, 2, 3, 3]])
    assert found["mig"] == pytest.approx(3 / 4, abs=0.02)
    assert found["modularity"] > 0.99


def test_a_latent_that_holds_two_factors_is_not_modular() -> None:
    """z tells three shapes and four scales apart: ln 3 and ln 4 nats of two of the four factors."""
    found = score(lambda f: (f[:, :1] + 3 * f[:, 1:2]).astype(float))
    assert found["modularity"] == pytest.approx(1 - (np.log(3) / np.log(4)) ** 2 / 3, abs=0.01)


def test_information_is_in_nats_and_one_latent_has_its_whole_as_gap() -> None:
    fair = np.tile(np.arange(4), 500)[:, None]
    information = scores.mutual_information(fair.astype(float), fair)
    assert information == pytest.approx(np.log(4))
    assert scores.entropies(fair) == pytest.approx(np.log(4))
    assert scores.mig(information, scores.entropies(fair)) == pytest.approx(1)
    assert scores.modularity(np.zeros((3, 2))) == 0


def test_constant_factors_are_left_out_and_one_alone_has_no_score() -> None:
    fixed, other = TRAIN.copy(), TEST.copy()
    fixed[:, 2] = other[:, 2] = 1
    found = scores.factor_scores(standard(TRAIN), fixed, standard(TEST), other, ORDERED)
    assert found["mig"] == pytest.approx(1, abs=0.02)
    assert scores.factor_scores(TRAIN, fixed[:, 2:3], TEST, other[:, 2:3], [True]) == {}


def test_a_run_on_sprites_reports_them_and_one_on_digits_does_not(tmp_path: Path) -> None:
    small = ("model.encoder.hidden=[5]", "model.decoder.hidden=[4]", "latent_dim=2", "evaluation.samples=0")
    off = ("evaluation.features=false", "data.dev_size=30")
    for data, named in (("data=sprites data.size=9 data.count=300 data.test_size=100", NAMES), ("data=digits", set())):
        s = settings_of(*data.split(), *small, *off)
        lit, module = build(s)
        found = results.evaluate(lit.eval(), module, s, 0)[0]
        assert {f"test/{name}" for name in named} == {n for n in found if n.removeprefix("test/") in NAMES}
        assert all(np.isfinite(found[f"test/{name}"]) for name in named)
