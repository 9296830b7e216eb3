"""Random configurations of estimators, data and calls: documented errors, or finite fits."""

import random
import tempfile

import invariances
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import HealthCheck, given, settings
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import BernoulliRBM
from skorch.callbacks import EpochScoring
from strategies import ESTIMATORS, configurations, invalid_configurations

import sklearn_margdrop
from sklearn_margdrop.numerics.csr import CPUKernel


@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(configurations(wide=False))
def test_a_configuration_fits_or_says_why_not(configuration):
    bits = []
    with invariances.time_limit():
        for context in invariances.contexts_of(configuration):
            with tempfile.TemporaryDirectory() as folder, context():
                bits.append(invariances.fit_and_check(configuration, folder)[1])
    assert bits[0] == bits[-1]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_whatever_is_invalid_is_refused_before_training(estimator, tmp_path):
    for configuration in invalid_configurations(random.Random(0), estimator):
        seen, _ = invariances.fit_and_check(configuration, tmp_path)
        wrong = configuration.wrong or configuration.data.wrong
        assert seen[f"error: refused, {wrong}"] == 1, (configuration, seen)


# What was found like this.


def make(estimator):
    solver = {"solver": "sgd"} if "GLM" in estimator else {"hidden_layer_sizes": (2,)}
    return getattr(sklearn_margdrop, estimator)(max_iter=1, random_state=0, **solver)


@pytest.mark.filterwarnings("ignore:Training stopped at max_iter")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_single_row_or_column_may_be_reversed(estimator):
    """Such arrays are contiguous to numpy, whatever their strides are."""
    values = np.arange(1.0, 5.0)
    for X in (values.reshape(1, 4)[::-1], values.reshape(4, 1)[:, ::-1]):
        assert min(X.strides) < 0
        assert X.flags.c_contiguous
        y = (np.arange(len(X)) % 2)[::-1]
        classes = {"classes": [0, 1]} if "Classifier" in estimator else {}
        model = make(estimator).partial_fit(X, y, **classes)
        same = make(estimator).partial_fit(X.copy(), y.copy(), **classes)
        assert invariances.fitted_bits(model) == invariances.fitted_bits(same)
        assert_array_equal(model.predict(X), same.predict(X.copy()))
        assert_array_equal(model.score(X, y), same.score(X.copy(), y.copy()))


@pytest.mark.filterwarnings("ignore:Training stopped at max_iter")
@pytest.mark.filterwarnings("ignore:BernoulliRBM takes its inputs")
@pytest.mark.parametrize("pretrainer", [None, BernoulliRBM(n_iter=1)])
def test_entries_that_are_stored_twice_are_added_up_elsewhere(pretrainer):
    dense = np.random.RandomState(0).normal(size=(6, 3))
    rows, columns = np.indices(dense.shape).reshape(2, -1)
    halves = np.tile(dense.ravel() / 2, 2)
    order = np.argsort(np.tile(rows, 2), kind="stable")
    indptr = np.arange(0, 2 * dense.size + 1, 6)
    X = sp.csr_array((halves[order], np.tile(columns, 2)[order], indptr), shape=dense.shape)
    before = [each.copy() for each in (X.data, X.indices, X.indptr)]
    model, same = (
        make("MarginalizedDropoutRegressor")
        .set_params(pretrainer=pretrainer)
        .fit(given, dense[:, 0])
        for given in (X, sp.csr_array(dense))
    )
    for array, was in zip((X.data, X.indices, X.indptr), before, strict=True):
        assert_array_equal(array, was)
    assert invariances.fitted_bits(model) == invariances.fitted_bits(same)


@pytest.mark.filterwarnings("ignore:Training stopped at max_iter")
@pytest.mark.parametrize("unlabeled", [False, True])
def test_hidden_layers_are_pretrained_on_a_memory_map_of_booleans(unlabeled, tmp_path):
    X = np.random.RandomState(0).normal(size=(8, 3)) > 0
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    model = make("MarginalizedDropoutRegressor")
    model.set_params(hidden_layer_sizes=(4, 3), pretrainer=BernoulliRBM(n_iter=1))
    there, here = (
        model.fit(given, X[:, 0], X_unlabeled=given if unlabeled else None).coefs_[0]
        for given in (mapped, X)
    )
    assert_array_equal(there, here)


@pytest.mark.filterwarnings("ignore:The L-BFGS|Training stopped|.*max_iter")
def test_unlabelled_rows_are_sparse_beside_a_memory_map_of_small_integers(tmp_path):
    X = np.random.RandomState(0).randint(-3, 4, size=(9, 4)).astype(np.int8)
    np.save(tmp_path / "X.npy", X)
    model = sklearn_margdrop.MarginalizedDropoutGLMRegressor(max_iter=5)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    model.fit(mapped, X[:, 0] + 0.5, X_unlabeled=sp.csr_array(X))
    coef = model.coef_
    assert_array_equal(model.fit(sp.csr_array(X), X[:, 0] + 0.5, X_unlabeled=X).coef_, coef)


@pytest.mark.parametrize("estimator", [each for each in ESTIMATORS if "Regressor" in each])
def test_a_step_after_which_the_mean_overflows_is_an_error(estimator):
    X = np.c_[np.ones(6), np.arange(6.0)]
    model = make(estimator).set_params(family="poisson", learning_rate_init=1e4)
    with pytest.raises(ValueError, match=r"(?i)became non-finite in .*lower learning_rate_init"):
        model.partial_fit(X, [0, 1, 2, 30, 4, 500])
    assert not model.__sklearn_is_fitted__()


def test_weights_that_validate_but_overflow_on_the_training_rows_are_an_error():
    X, y = np.r_[np.arange(39.0), 1e6][:, None], np.r_[np.zeros(39), 10]
    model = sklearn_margdrop.MarginalizedDropoutRegressor((), family="poisson", max_iter=1)
    model.set_params(early_stopping=True, learning_rate_init=200.0, random_state=0)
    with pytest.raises(ValueError, match="became non-finite"):
        model.fit(X, y)


@pytest.mark.filterwarnings("ignore:Training stopped at max_iter")
def test_an_epoch_explodes_where_the_means_that_a_callback_scores_overflow():
    """It is repeated at a lower rate, and the callback never sees what it led to."""
    X = np.c_[np.ones(6), np.arange(6.0)]
    scores = EpochScoring("neg_mean_absolute_error", on_train=True)
    model = sklearn_margdrop.MarginalizedDropoutRegressor(
        (), family="poisson", learning_rate_init=10.0, solver="sgd", batch_size=3, max_iter=20
    ).set_params(callbacks=[("scores", scores)], retain_rate=1.0, random_state=0)
    with pytest.warns(ConvergenceWarning, match="exploded"):
        model.fit(X, [0, 1, 2, 3, 4, 50])
    assert np.isfinite(model.net_.history[:, "neg_mean_absolute_error"]).all()


def test_sparse_products_that_overflow_do_not_warn(recwarn):
    matrix = sp.csr_array(np.array([[1e300, 1.0], [-1e300, 1.0]]))
    kernel = CPUKernel([matrix[:1], matrix[1:]], 1.0, torch.device("cpu"))
    kernel.transposed = [(rows, sp.csc_array(block.T)) for rows, block in kernel.blocks]
    assert len(kernel.transposed) == 2
    product = kernel.transposed_matmul(torch.full((2, 1), 1e300, dtype=torch.float64))
    assert product[:, 0].isnan().tolist() == [True, False]
    assert not recwarn
