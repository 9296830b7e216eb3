"""What every fit does: rows with weights and without labels, seeds, and going on."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutRegressor

ESTIMATORS = [MarginalizedDropoutClassifier, MarginalizedDropoutRegressor]
ignore_ending = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@ignore_ending
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_follows_the_data(small, dtype):
    X, y = small
    model = MarginalizedDropoutClassifier((4,), max_iter=2, random_state=0).fit(X.astype(dtype), y)
    assert model.coefs_[0].dtype == dtype
    assert model.predict_proba(X).dtype == dtype


@ignore_ending
def test_class_weight_multiplies_sample_weight(small):
    X, y = small
    options = {"hidden_layer_sizes": (5,), "max_iter": 5, "random_state": 0}
    balanced = MarginalizedDropoutClassifier(class_weight="balanced", **options).fit(
        X[:40], y[:40]
    )
    counts = np.bincount(y[:40])
    weights = {k: 40 / (3 * count) for k, count in enumerate(counts)}
    by_dict = MarginalizedDropoutClassifier(class_weight=weights, **options).fit(X[:40], y[:40])
    by_sample = MarginalizedDropoutClassifier(**options).fit(
        X[:40], y[:40], sample_weight=[weights[k] for k in y[:40]]
    )
    assert_allclose(balanced.coefs_[0], by_dict.coefs_[0], rtol=1e-6)
    assert_allclose(balanced.coefs_[0], by_sample.coefs_[0], rtol=1e-6)


@ignore_ending
@pytest.mark.parametrize("cls", ESTIMATORS)
def test_warm_start_goes_on(small, cls):
    X, y = small
    options = {"hidden_layer_sizes": (5,), "method": "sampling", "batch_size": 20}
    options |= {"learning_rate": "constant"}
    model = cls(warm_start=True, max_iter=3, random_state=0, **options).fit(X, y).fit(X, y)
    assert model.n_iter_ == 6 == len(model.loss_curve_)
    at_once = cls(max_iter=6, random_state=0, **options).fit(X, y)
    assert_array_equal(model.coefs_[0], at_once.coefs_[0])
    assert model.loss_curve_ == at_once.loss_curve_
    with pytest.raises(ValueError, match="hidden_layer_sizes"):
        model.set_params(hidden_layer_sizes=(6,)).fit(X, y)


@ignore_ending
@pytest.mark.parametrize("method", ["diagonal", "moments", "quadratic", "sampling"])
def test_unlabeled_rows_enter_the_penalty(small, method):
    X, y = small
    options = {
        "hidden_layer_sizes": (5,),
        "method": method,
        "retain_rate": 0.8,
        "max_iter": 5,
        "batch_size": 100,
        "random_state": 0,
    }
    plain = MarginalizedDropoutClassifier(**options).fit(X, y)
    sharpened = MarginalizedDropoutClassifier(**options).fit(X, y, X_unlabeled=5 * X[:30])
    assert sharpened.penalty_curve_[0] > 0
    assert not np.array_equal(plain.coefs_[0], sharpened.coefs_[0])
    ignored = MarginalizedDropoutClassifier(unlabeled_discount=0, **options)
    ignored.fit(X, y, X_unlabeled=5 * X[:30])
    assert_array_equal(plain.coefs_[0], ignored.coefs_[0])


@ignore_ending
@pytest.mark.parametrize("method", ["diagonal", "moments", "quadratic"])
def test_unlabeled_copies_of_the_data_change_nothing(small, method):
    """Where no signs are drawn."""
    X, y = small
    options = {"hidden_layer_sizes": (5,), "max_iter": 5, "batch_size": 100, "shuffle": False}
    options |= {"method": method, "n_probes": None}
    plain = MarginalizedDropoutClassifier(random_state=0, **options).fit(X, y)
    doubled = MarginalizedDropoutClassifier(random_state=0, **options).fit(X, y, X_unlabeled=X)
    assert_allclose(plain.coefs_[0], doubled.coefs_[0], rtol=1e-7)


@ignore_ending
@pytest.mark.parametrize("cls", ESTIMATORS)
@pytest.mark.parametrize("options", [{}, {"method": "sampling"}, {"early_stopping": True}])
def test_same_seed_same_bits_and_nothing_global_changes(data, cls, options):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    settings = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    model = cls((6,), max_iter=4, batch_size=16, random_state=5, **options)
    first, second = clone(model).fit(*data), clone(model).fit(*data)
    assert_array_equal(first.coefs_[0], second.coefs_[0])
    assert first.loss_curve_ == second.loss_curve_
    other = clone(model).set_params(random_state=6).fit(*data)
    assert not np.array_equal(other.coefs_[0], first.coefs_[0])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert settings == (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    )


@ignore_ending
def test_no_seed_is_a_new_seed_and_leaves_numpys_state(data):
    before = np.random.get_state()[1:3]  # noqa: NPY002
    first, second = (
        MarginalizedDropoutClassifier((5,), max_iter=1).fit(*data).coefs_[0] for _ in range(2)
    )
    after = np.random.get_state()[1:3]  # noqa: NPY002
    assert not np.array_equal(first, second)
    assert_array_equal(before[0], after[0])
    assert before[1] == after[1]


@ignore_ending
def test_fit_changes_neither_parameters_nor_data(data):
    X, y = data
    model = MarginalizedDropoutClassifier(
        hidden_layer_sizes=[4, 3], retain_rate=[0.9, 0.8, 0.7], max_iter=2
    )
    parameters, copies = model.get_params(), (X.copy(), y.copy())
    model.fit(X, y, X_unlabeled=X)
    assert model.get_params() == parameters
    assert_array_equal(X, copies[0])
    assert_array_equal(y, copies[1])
