"""What "auto" stands for, and that it is in the units of the data."""

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

from sklearn_margdrop import MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor
from sklearn_margdrop.estimators.scales import ColumnSums, auto_alpha, auto_retain_rate


def dense(n=80, p=6):
    rng = np.random.RandomState(0)
    X = rng.normal(size=(n, p)) * np.logspace(-2, 2, p) + 1.0
    return X, (X[:, 0] + 0.01 * rng.normal(size=n) > 1).astype(int)


def words(n=60, p=400):
    rng = np.random.RandomState(0)
    X = (rng.uniform(size=(n, p)) < 0.5 / np.arange(1, p + 1) ** 0.5).astype(float)
    return X, (X[:, :20].sum(1) > np.median(X[:, :20].sum(1))).astype(int)


def of_table(X, n_rows):
    """(1 - q) / q, and the median variance times what dropout leaves to L2."""
    far = ((X**2).mean(0) / X.var(0)).mean()
    variance = X.shape[1] / (2 * n_rows * far)
    return variance, np.median(X.var(0)) * (1 - variance) / n_rows


def test_rates_of_words_and_of_tables():
    X, y = words()
    assert MarginalizedDropoutGLMClassifier().fit(sp.csr_array(X), y).retain_rate_ == 0.5
    X, y = dense()
    model = MarginalizedDropoutGLMClassifier().fit(X, y)
    variance, alpha = of_table(X, 80)
    assert model.retain_rate_ == pytest.approx(1 / (1 + variance))
    assert model.alpha_ == pytest.approx(alpha)


def test_columns_far_from_zero_keep_what_they_tell():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(300, 10))
    y = X @ rng.normal(size=10) + rng.normal(size=300)
    near, far = (MarginalizedDropoutGLMRegressor().fit(Z, y).score(Z, y) for Z in (X, X + 8))
    assert far > near - 0.01


def test_columns_that_hardly_vary_are_no_unit():
    X, y = dense()
    varied = np.c_[X, 1e-12 * np.random.RandomState(2).normal(size=(80, 2))]
    models = [MarginalizedDropoutGLMClassifier().fit(Z, y) for Z in (X, varied)]
    assert models[1].alpha_ == pytest.approx(models[0].alpha_, rel=10)


def test_features_that_never_occur_say_nothing():
    some = ColumnSums(np.array([4.0, 2.0]), np.array([1.0, 2.0]), np.array([1.0, 1.5]))
    more = ColumnSums(*(np.append(each, [0.0, 0.0]) for each in some))
    assert auto_retain_rate(more) == auto_retain_rate(some)
    assert auto_alpha(more, 4, 0.5) == auto_alpha(some, 4, 0.5)
    nothing = ColumnSums(*np.zeros((3, 3)))
    assert auto_retain_rate(nothing) == 0.5
    assert auto_alpha(nothing, 10, 1.0) == 1e-4
    model = MarginalizedDropoutGLMClassifier().fit(np.zeros((10, 3)), [0, 1] * 5)
    assert (model.retain_rate_, model.alpha_) == (0.5, 1e-4)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("data", [dense, words])
def test_units_of_the_features_are_indifferent(data, unit):
    X, y = data()
    options = {"tol": 1e-6}
    expected, found = (
        MarginalizedDropoutGLMClassifier(**options).fit(Z, y).predict_proba(Z)
        for Z in (X, unit * X)
    )
    assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("data", [dense, words])
def test_containers_are_indifferent(data):
    X, y = data()
    expected = MarginalizedDropoutGLMClassifier().fit(X, y)
    for form in (sp.csr_array, sp.csc_array, np.asfortranarray):
        model = MarginalizedDropoutGLMClassifier().fit(form(X), y)
        assert model.retain_rate_ == pytest.approx(expected.retain_rate_, rel=1e-12)
        assert model.alpha_ == pytest.approx(expected.alpha_, rel=1e-9)


def test_weights_are_numbers_of_rows():
    X, y = dense()
    weight = np.random.RandomState(1).randint(0, 4, size=len(y))
    weighted = MarginalizedDropoutGLMClassifier().fit(X, y, sample_weight=weight)
    copied = MarginalizedDropoutGLMClassifier().fit(X.repeat(weight, 0), y.repeat(weight))
    assert weighted.retain_rate_ == pytest.approx(copied.retain_rate_, rel=1e-12)
    assert weighted.alpha_ == pytest.approx(copied.alpha_, rel=1e-9)


def test_numbers_are_what_they_are():
    X, y = dense()
    model = MarginalizedDropoutGLMRegressor(retain_rate=0.7, alpha=0.25).fit(X, y)
    assert (model.retain_rate_, model.alpha_) == (0.7, 0.25)
    model = MarginalizedDropoutGLMRegressor(retain_rate=0.7).fit(X, y)
    assert model.alpha_ == pytest.approx(np.median(X.var(0)) * (1 - 3 / 7) / 80)
    assert MarginalizedDropoutGLMRegressor(noise="gaussian").fit(X, y).retain_rate_ is None


def test_the_first_chunk_of_a_stream_decides():
    X, y = dense()
    model = MarginalizedDropoutGLMClassifier(solver="adagrad", random_state=0)
    model.partial_fit(X[:8], y[:8], classes=[0, 1])
    first = model.retain_rate_, model.alpha_
    assert first[0] == pytest.approx(1 / (1 + of_table(X[:8], 10_000)[0]))
    model.partial_fit(1000 * X[8:], y[8:])
    assert (model.retain_rate_, model.alpha_) == first
    assert MarginalizedDropoutGLMClassifier().fit(X, y).retain_rate_ != first[0]


@pytest.mark.parametrize("n", [1, 4, 16])
def test_streams_of_words_have_their_rate(n):
    X, y = words()
    alphas = []
    for unit in (1.0, 1000.0):
        model = MarginalizedDropoutGLMClassifier(solver="adagrad", random_state=0)
        model.partial_fit(sp.csr_array(unit * X[:n]), y[:n], classes=[0, 1])
        assert model.retain_rate_ == 0.5
        alphas.append(model.alpha_)
    assert alphas[1] == pytest.approx(1e6 * alphas[0])
