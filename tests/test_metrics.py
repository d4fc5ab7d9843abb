import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from vae.errors import RunFailed
from vae.evaluation import metrics
from vae.objectives import log_mean_exp


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def with_moments(rng, count, mean, covariance):
    """`count` rows whose sample mean and covariance (ddof 1) are the given ones, up to rounding."""
    x = rng.normal(size=(count, len(mean)))
    x -= x.mean(axis=0)
    whitener = np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False)))
    return x @ whitener.T @ np.linalg.cholesky(covariance).T + mean


def blobs(rng, count, centres):
    """Labelled points around centres that are 10 standard deviations apart."""
    labels = rng.integers(0, centres, count)
    return rng.normal(size=(count, 3)) + 10.0 * np.eye(centres, 3)[labels], labels


# mean_and_error, log_mean_exp, bits_per_dimension


def test_standard_error_by_hand():
    # mean 3, squared deviations 4 + 1 + 0 + 9 = 14 over 3 degrees of freedom, four values
    mean, error = metrics.mean_and_error(np.array([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt(14 / 3) / 2)


def test_standard_error_is_summed_in_double_precision():
    values = torch.full((100_000,), 1e4, dtype=torch.float32)
    values[::2] += 1.0
    mean, error = metrics.mean_and_error(values)
    assert mean == 10_000.5
    assert error == pytest.approx(0.5 / math.sqrt(99_999))


def test_one_value_has_no_error_and_none_is_refused():
    mean, error = metrics.mean_and_error(np.array([2.5]))
    assert mean == 2.5
    assert math.isnan(error)
    with pytest.raises(ValueError, match="at least one"):
        metrics.mean_and_error(np.array([]))


@pytest.mark.parametrize("offset", [0.0, -1e4, 1e4])
def test_log_mean_exp_agrees_with_scipy(offset):
    log_weights = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + offset
    expected = logsumexp(log_weights.numpy(), axis=0) - math.log(7)
    np.testing.assert_allclose(log_mean_exp(log_weights).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(log_mean_exp(log_weights.T, dim=1).numpy(), expected, rtol=1e-12)


def test_log_mean_exp_lies_between_mean_and_maximum():
    log_weights = torch.tensor([[-1e4, 1.0], [-2e4, 1.0], [-3e4, 1.0]])
    bound = log_mean_exp(log_weights)
    assert bound[0] == pytest.approx(-1e4 - math.log(3))
    assert bound[1] == pytest.approx(1.0)


def test_uniform_bytes_cost_eight_bits():
    assert metrics.bits_per_dimension(784 * math.log(256), 784) == pytest.approx(8.0)


# representations


def test_active_units_are_those_whose_mean_moves():
    wave = np.tile([-1.0, 1.0], 10)  # variance 1
    mu = np.stack([wave, 0.11 * wave, 0.09 * wave, 5 + 0 * wave], axis=1)  # variances 1, 0.0121, 0.0081, 0
    assert metrics.active_units(mu).tolist() == [True, True, False, False]
    assert metrics.active_units(torch.tensor(mu), threshold=0.5).tolist() == [True, False, False, False]


@pytest.mark.parametrize("accuracy", [metrics.knn_accuracy, metrics.linear_probe_accuracy])
def test_separable_blobs_are_told_apart_and_permuted_labels_are_not(rng, accuracy):
    train, train_labels = blobs(rng, 400, 3)
    points, labels = blobs(rng, 301, 3)
    assert accuracy(train, train_labels, points, labels) == 1.0
    chance = accuracy(train, rng.permutation(train_labels), points, rng.permutation(labels))
    assert 1 / 3 - 0.12 < chance < 1 / 3 + 0.12  # four standard errors of 301 draws


@pytest.mark.parametrize("accuracy", [metrics.knn_accuracy, metrics.linear_probe_accuracy])
def test_accuracy_takes_tensors(rng, accuracy):
    train, train_labels = blobs(rng, 60, 3)
    tensors = torch.tensor(train, dtype=torch.float32), torch.tensor(train_labels)
    assert accuracy(*tensors, *tensors) == 1.0


def test_knn_counts_the_votes_of_k():
    train, labels = np.array([[0.0], [1.0], [1.1]]), np.array([0, 1, 1])
    assert metrics.knn_accuracy(train, labels, np.array([[0.2]]), np.array([0]), k=1) == 1.0
    assert metrics.knn_accuracy(train, labels, np.array([[0.2]]), np.array([0]), k=3) == 0.0


def test_probe_converges_on_collapsed_collinear_and_tiny_latents(rng):
    """Warnings are errors here, so L-BFGS giving up would fail."""
    points, labels = blobs(rng, 300, 3)
    mu = np.concatenate([points * 1e-6, points * 1e3, np.full((300, 2), 3.0)], axis=1).astype(np.float32)
    assert metrics.linear_probe_accuracy(mu, labels, mu, labels) == 1.0


# frechet_distance


def test_frechet_of_a_shift_is_its_squared_length(rng):
    a = rng.normal(size=(50, 3))
    assert metrics.frechet_distance(a, a + np.array([1.0, -2.0, 0.5])) == pytest.approx(5.25, rel=1e-12)


def test_frechet_of_a_scale(rng):
    """tr(A + s^2 A - 2 s A) = (1 - s)^2 tr(A), about a common mean."""
    a = with_moments(rng, 40, np.zeros(3), np.diag([1.0, 4.0, 0.25]))
    assert metrics.frechet_distance(a, 3 * a) == pytest.approx(4 * 5.25, rel=1e-12)


def test_frechet_of_commuting_covariances(rng):
    """Diagonal covariances: the squared distance of the standard deviations; counts may differ."""
    a = with_moments(rng, 40, np.array([0.0, 1.0]), np.diag([1.0, 9.0]))
    b = with_moments(rng, 25, np.array([2.0, 1.0]), np.diag([4.0, 1.0]))
    assert metrics.frechet_distance(a, b) == pytest.approx(4 + 1 + 4, rel=1e-12)


def test_frechet_of_two_by_two_covariances_that_do_not_commute(rng):
    """tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)) for 2 x 2."""
    cov_a, cov_b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    root = math.sqrt(np.trace(cov_a @ cov_b) + 2 * math.sqrt(np.linalg.det(cov_a) * np.linalg.det(cov_b)))
    a = with_moments(rng, 40, np.array([1.0, 0.0]), cov_a)
    b = with_moments(rng, 30, np.array([0.0, 3.0]), cov_b)
    assert metrics.frechet_distance(a, b) == pytest.approx(1 + 9 + 3 + 4 - 2 * root, rel=1e-12)
    assert metrics.frechet_distance(b, a) == pytest.approx(metrics.frechet_distance(a, b), rel=1e-12)


def test_frechet_of_identical_and_of_singular_sets(rng):
    """Fewer rows than features, a constant feature, a doubled feature: no covariance can be inverted."""
    a = np.concatenate([rng.normal(size=(6, 9)), np.ones((6, 1))], axis=1)
    a[:, 1] = a[:, 0]
    assert metrics.frechet_distance(a, a) < 1e-12
    assert metrics.frechet_distance(a, a[::-1].copy()) < 1e-12
    point = np.zeros((4, 10))
    spread = np.cov(a, rowvar=False).trace() + np.square(a.mean(axis=0)).sum()
    assert metrics.frechet_distance(a, point) == pytest.approx(spread, rel=1e-12)


def test_frechet_is_no_difference_of_large_numbers_in_single_precision(rng):
    a = with_moments(rng, 64, np.full(2, 1000.0), np.eye(2)).astype(np.float32)
    assert metrics.frechet_distance(torch.tensor(a), torch.tensor(a) + 1) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("measure", [metrics.frechet_distance, metrics.precision_recall])
def test_feature_sets_that_cannot_be_measured(rng, measure):
    good, bad = rng.normal(size=(8, 3)), rng.normal(size=(8, 3))
    bad[2, 1] = math.nan
    with pytest.raises(RunFailed, match="1 of 8 feature rows"):
        measure(good, bad)
    with pytest.raises(ValueError, match="feature row"):
        measure(good, good[:1])
    with pytest.raises(ValueError, match="rows of features"):
        measure(good, good[0])


# precision_recall


@pytest.mark.parametrize("chunk", [1, 7, 500])
def test_precision_and_recall_of_identical_and_of_distant_sets(rng, chunk):
    real = rng.normal(size=(40, 5))
    assert metrics.precision_recall(real, rng.permutation(real), chunk=chunk) == (1.0, 1.0)
    assert metrics.precision_recall(real, rng.normal(size=(30, 5)) + 100.0, chunk=chunk) == (0.0, 0.0)


def test_fakes_of_one_mode_are_precise_and_recall_only_that_mode(rng):
    """Two far modes, 20 and 60 of the reals; every fake copies a real of the first."""
    first, second = rng.normal(size=(20, 4)), rng.normal(size=(60, 4)) + 100.0
    real = np.concatenate([first, second])
    assert metrics.precision_recall(real, first, chunk=13) == (1.0, 0.25)
    assert metrics.precision_recall(first, real, chunk=13) == (0.25, 1.0)


def test_balls_reach_to_the_third_neighbour():
    """On a line at 0, 1, 2, 3, 4: radii 3, 2, 2, 2, 3, so the reals cover [-3, 7] and no more."""
    real = np.arange(5.0)[:, None]
    fake = np.array([-3.1, -3.0, 7.0, 7.1])[:, None]
    assert metrics.precision_recall(real, fake, k=3)[0] == 0.5
    assert metrics.precision_recall(real, fake, k=1)[0] == 0.0


def test_copies_lie_inside_balls_of_radius_zero(rng):
    """Each image four times: every third neighbour is a copy."""
    real = np.repeat(rng.normal(size=(5, 64)) * 100, 4, axis=0)
    assert metrics.precision_recall(real, real[::3])[0] == 1.0


# nearest, class_histogram


def test_nearest_equals_brute_force(rng):
    x = rng.random((5, 1, 4, 3))
    pool = rng.integers(0, 256, (11, 1, 4, 3), dtype=np.uint8)
    distances = np.sqrt(np.square(x[:, None] - pool[None] / 255).sum(axis=(2, 3, 4)))
    index, distance = metrics.nearest(torch.tensor(x), torch.tensor(pool))
    assert index.tolist() == distances.argmin(axis=1).tolist()
    np.testing.assert_allclose(distance, distances.min(axis=1), rtol=1e-6)


def test_a_copied_training_image_is_at_distance_zero(rng):
    pool = rng.integers(0, 256, (9, 1, 5, 5), dtype=np.uint8)
    index, distance = metrics.nearest(pool[[7, 2]], pool)
    assert index.tolist() == [7, 2]
    assert distance.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("x", "pool"), [((2, 3), (4, 5)), ((2, 3), (0, 3))])
def test_nearest_refuses_what_cannot_be_compared(x, pool):
    with pytest.raises(ValueError, match=r"dimension|sample"):
        metrics.nearest(np.zeros(x), np.zeros(pool))


def test_class_histogram_counts_absent_classes_too():
    assert metrics.class_histogram(torch.tensor([2, 0, 2, 3]), 6).tolist() == [1, 0, 2, 1, 0, 0]
    with pytest.raises(ValueError, match="0 to 2 is allowed"):
        metrics.class_histogram(np.array([0, 3]), 3)


def test_chunks_are_put_together_and_counted() -> None:
    parts = [torch.arange(6).view(2, 3), torch.arange(3).view(1, 3)]
    assert torch.equal(metrics.gather_chunks(iter(parts), 3), torch.cat(parts))
    for count in (2, 4):
        with pytest.raises(ValueError, match=f"3 rows of {count}"):
            metrics.gather_chunks(iter(parts), count)
