import numpy as np
import pytest
import scipy.linalg
import torch

from gankernels.errors import InputError
from gankernels.metrics import FeatureStatistics, frechet_distance


def spd(rng, size, rank=None):
    factor = rng.standard_normal((size, rank or 2 * size))
    return factor @ factor.T / factor.shape[1]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_equal_gaussians_are_at_zero(rng):
    mean, cov = rng.standard_normal(50), spd(rng, 50)
    assert frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-11)


def test_shifted_mean_gives_the_squared_distance(rng):
    mean, shift, cov = rng.standard_normal(50), rng.standard_normal(50), spd(rng, 50)
    assert frechet_distance(mean, cov, mean + shift, cov) == pytest.approx(shift @ shift, rel=1e-12)


def test_diagonal_covariances_have_a_closed_form(rng):
    a, b, zero = rng.random(30), rng.random(30), np.zeros(30)
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(zero, np.diag(a), zero, np.diag(b)) == pytest.approx(expected, rel=1e-11)


def test_commuting_covariances_have_a_closed_form(rng):
    basis = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    a, b, zero = rng.random(30), rng.random(30), np.zeros(30)
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    got = frechet_distance(zero, basis @ np.diag(a) @ basis.T, zero, basis @ np.diag(b) @ basis.T)
    assert got == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("size", [1, 2, 17, 64])
def test_equals_the_general_matrix_square_root(rng, size):
    mu1, mu2, cov1, cov2 = rng.standard_normal(size), rng.standard_normal(size), spd(rng, size), spd(rng, size)
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * root)
    assert frechet_distance(mu1, cov1, mu2, cov2) == pytest.approx(expected, rel=1e-9)


def test_one_dimension_by_hand():
    assert frechet_distance([1.0], [[4.0]], [3.0], [[9.0]]) == pytest.approx(4 + 1)


def test_rank_deficient_covariances_are_exact(rng):
    """Both covariances live in one subspace, where the distance has a closed form."""
    basis = np.linalg.qr(rng.standard_normal((200, 200)))[0][:, :5]
    a, b, zero = rng.random(5), rng.random(5), np.zeros(200)
    got = frechet_distance(zero, basis @ np.diag(a) @ basis.T, zero, basis @ np.diag(b) @ basis.T)
    assert got == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-10)


def test_degenerate_covariances_are_finite_and_not_negative(rng):
    zero, none = np.zeros(100), np.zeros((100, 100))
    low = spd(rng, 100, rank=3)
    assert frechet_distance(zero, none, zero, none) == 0
    assert frechet_distance(zero, low, zero, none) == pytest.approx(np.trace(low))
    assert 0 <= frechet_distance(zero, low, zero, low) < 1e-10
    assert 0 <= frechet_distance(zero, low, zero, spd(rng, 100, rank=7)) < np.inf


def test_is_symmetric_and_takes_tensors_of_any_float(rng):
    mu1, mu2, cov1, cov2 = rng.standard_normal(9), rng.standard_normal(9), spd(rng, 9), spd(rng, 9)
    forth, back = frechet_distance(mu1, cov1, mu2, cov2), frechet_distance(mu2, cov2, mu1, cov1)
    assert forth == pytest.approx(back, rel=1e-12)
    single = [torch.tensor(value, dtype=torch.float32) for value in (mu1, cov1, mu2, cov2)]
    assert frechet_distance(*single) == pytest.approx(forth, rel=1e-5)


def test_bad_arguments_are_named():
    eye, zero = np.eye(3), np.zeros(3)
    with pytest.raises(InputError, match=r"cov2: got shape \(2, 2\), expected \(3, 3\)"):
        frechet_distance(zero, eye, zero, np.eye(2))
    with pytest.raises(InputError, match="mu2: got shape"):
        frechet_distance(zero, eye, np.zeros(4), eye)
    with pytest.raises(InputError, match="cov1: got values that are not finite"):
        frechet_distance(zero, eye * np.nan, zero, eye)


@pytest.mark.parametrize("splits", [[40], [1] * 40, [0, 3, 0, 30, 7], [39, 1]])
def test_statistics_do_not_depend_on_the_split(rng, splits):
    features = rng.standard_normal((40, 6)) * 3 + 1
    statistics = FeatureStatistics(6)
    for part in np.split(features, np.cumsum(splits)[:-1]):
        statistics.update(torch.from_numpy(part))
    assert statistics.count == 40
    np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-13)
    np.testing.assert_allclose(statistics.covariance(), np.cov(features, rowvar=False), rtol=1e-12, atol=1e-13)


def test_statistics_merge(rng):
    features = torch.from_numpy(rng.standard_normal((50, 4)))
    whole, left, right, empty = (FeatureStatistics(4) for _ in range(4))
    whole.update(features)
    left.update(features[:20])
    right.update(features[20:])
    left.merge(right)
    left.merge(empty)
    empty.merge(left)
    for merged in (left, empty):
        torch.testing.assert_close(merged.covariance(), whole.covariance(), rtol=1e-12, atol=1e-14)
    again = FeatureStatistics.from_state_dict(left.state_dict())
    assert again.count == 50
    assert torch.equal(again.covariance(), left.covariance())


def test_a_large_mean_costs_no_precision(rng):
    features = rng.standard_normal((1000, 3))
    statistics = FeatureStatistics(3)
    for part in np.split(features + 1e7, 10):
        statistics.update(torch.from_numpy(part))
    np.testing.assert_allclose(statistics.covariance(), np.cov(features, rowvar=False), atol=1e-8)


def test_statistics_refuse_what_they_cannot_use():
    statistics = FeatureStatistics(3)
    with pytest.raises(InputError, match=r"features: got shape \(2, 4\), expected \[N, 3\]"):
        statistics.update(torch.zeros(2, 4))
    with pytest.raises(InputError, match="other: got 4 features, expected 3"):
        statistics.merge(FeatureStatistics(4))
    statistics.update(torch.zeros(1, 3))
    with pytest.raises(InputError, match="got 1 feature vectors, expected at least 2"):
        statistics.covariance()
