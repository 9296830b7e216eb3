"""Layer-wise pretraining: the weights that the hidden layers start from."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.special import expit
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RBM = BernoulliRBM(n_iter=2, learning_rate=0.05)
#: A step so short that the weights stay where they began.
STILL = {"solver": "sgd", "learning_rate_init": 1e-12, "max_iter": 1, "alpha": 0.0}


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:300] / 16, y[:300]


def classifier(**parameters):
    defaults = {"activation": "logistic", "pretrainer": RBM, "random_state": 0}
    return MarginalizedDropoutClassifier(**{"hidden_layer_sizes": (12, 7)} | defaults | parameters)


def fit_rbms(X, seeds, widths):
    """The obvious way: one machine after the other, each on the output of the last."""
    for width, seed in zip(widths, seeds, strict=True):
        rbm = clone(RBM).set_params(n_components=width, random_state=seed).fit(X)
        yield rbm
        X = expit(X @ rbm.components_.T + rbm.intercept_hidden_)


def assert_starts_from(model, X):
    seeds = [rbm.random_state for rbm in model.pretrainers_]
    assert len(set(seeds)) == len(seeds) == 2
    for rbm, weight, intercept in zip(
        fit_rbms(X, seeds, (12, 7)), model.coefs_, model.intercepts_, strict=False
    ):
        np.testing.assert_allclose(weight, rbm.components_.T, atol=1e-8)
        np.testing.assert_allclose(intercept, rbm.intercept_hidden_, atol=1e-8)


def test_hidden_layers_start_from_machines_trained_one_after_the_other(digits):
    assert_starts_from(classifier(**STILL).fit(*digits), digits[0])


def test_output_layer_and_other_random_numbers_stay_as_without(digits):
    with_it = classifier(**STILL).fit(*digits)
    without = classifier(**STILL, pretrainer=None).fit(*digits)
    np.testing.assert_allclose(with_it.coefs_[-1], without.coefs_[-1], atol=1e-8)
    assert not np.allclose(with_it.coefs_[0], without.coefs_[0])
    assert without.pretrainers_ == []


def test_unlabeled_rows_are_pretrained_on(digits):
    X, y = digits
    for discount in (0.1, 0.0):
        model = classifier(**STILL, unlabeled_discount=discount)
        assert_starts_from(model.fit(X[:100], y[:100], X_unlabeled=X[100:]), X)
    options = {"solver": "adam", "learning_rate_init": 0.002, "max_iter": 3, "pretrainer": None}
    alone = classifier(**options, alpha=1e-4).fit(X[:100], y[:100])
    model.set_params(**options, alpha=1e-4, unlabeled_discount=0.0)
    model.fit(X[:100], y[:100], X_unlabeled=X[100:])
    assert np.array_equal(alone.coefs_[0], model.coefs_[0])


def test_validation_rows_and_rows_without_weight_are_not(digits):
    X, y = digits
    weight = np.ones(len(y))
    weight[::2] = 0
    model = classifier(**STILL).fit(X, y, sample_weight=weight)
    assert_starts_from(model, X[1::2])
    seen = []

    class Spy(BernoulliRBM):
        def fit(self, X, y=None):
            seen.append(len(X))
            return super().fit(X)

    classifier(early_stopping=True, validation_fraction=0.2, pretrainer=Spy(n_iter=1)).fit(X, y)
    assert seen == [240, 240]


@pytest.mark.parametrize("unlabeled", [None, "sparse", "dense"])
@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csr_array])
def test_sparse_rows_are_as_good_as_dense_ones(digits, form, unlabeled):
    X, y = digits
    options = {} if unlabeled is None else {"X_unlabeled": X[200:]}
    dense = classifier(max_iter=3).fit(X[:200], y[:200], **options)
    if unlabeled == "sparse":
        options = {"X_unlabeled": form(X[200:])}
    thin = classifier(max_iter=3).fit(form(X[:200]), y[:200], **options)
    for a, b in zip(dense.coefs_, thin.coefs_, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_seed_same_result_and_global_state_untouched(digits, dtype):
    X, y = digits[0].astype(dtype), digits[1]
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    a, b, other = (classifier(max_iter=3, random_state=s).fit(X, y) for s in (0, 0, 1))
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())
    assert all(np.array_equal(v, w) for v, w in zip(a.coefs_, b.coefs_, strict=True))
    assert not np.array_equal(a.coefs_[0], other.coefs_[0])
    assert {w.dtype for w in a.coefs_} == {np.dtype(dtype)}
    assert a.pretrainer is RBM
    assert not hasattr(RBM, "components_")


def test_template_keeps_a_seed_of_its_own(digits):
    rbm = clone(RBM).set_params(random_state=7)
    a, b = (classifier(pretrainer=rbm, **STILL, random_state=s).fit(*digits) for s in (0, 1))
    np.testing.assert_allclose(a.coefs_[0], b.coefs_[0], atol=1e-8)
    assert {p.random_state for p in a.pretrainers_} == {7}


def test_warm_start_and_partial_fit_pretrain_once(digits):
    X, y = digits
    options = {"learning_rate": "constant", "tol": 0}
    whole = classifier(max_iter=6, **options).fit(X, y)
    model = classifier(max_iter=3, warm_start=True, **options).fit(X, y)
    first = model.pretrainers_
    assert model.fit(X, y).pretrainers_ is first
    assert all(np.array_equal(v, w) for v, w in zip(whole.coefs_, model.coefs_, strict=True))
    stream = classifier().partial_fit(X, y, classes=np.arange(10))
    first = stream.pretrainers_
    assert len(first) == 2
    assert stream.partial_fit(X, y).pretrainers_ is first


def test_search_tunes_the_pretrainer_in_a_pipeline(digits):
    X, y = digits
    pipe = make_pipeline(MinMaxScaler(), classifier(max_iter=2))
    name = "marginalizeddropoutclassifier__pretrainer"
    grid = {f"{name}__learning_rate": [0.01, 0.1], f"{name}__n_iter": [1]}
    search = GridSearchCV(pipe, grid, cv=2).fit(X, y)
    assert search.best_estimator_[-1].pretrainers_[0].n_iter == 1
    with_or_without = GridSearchCV(pipe, {name: [None, RBM]}, cv=2).fit(X, y)
    assert np.isfinite(with_or_without.cv_results_["mean_test_score"]).all()


def test_regressor_pickles_with_its_machines(digits):
    X, y = digits
    model = MarginalizedDropoutRegressor(
        9, activation="logistic", pretrainer=RBM, max_iter=3, random_state=0
    ).fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(X), model.predict(X))
    assert again.pretrainers_[0].components_.shape == (9, 64)


def test_a_fitted_machine_is_taken_as_it_is(digits):
    X, y = digits
    rbm = BernoulliRBM(12, n_iter=2, random_state=3).fit(X)
    model = classifier(hidden_layer_sizes=12, pretrainer=FrozenEstimator(rbm), **STILL).fit(X, y)
    np.testing.assert_allclose(model.coefs_[0], rbm.components_.T, atol=1e-8)
    with pytest.raises(ValueError, match=r"shape \(12, 64\).*needs \(11, 64\)"):
        classifier(hidden_layer_sizes=11, pretrainer=FrozenEstimator(rbm)).fit(X, y)


class NotFinite(BernoulliRBM):
    def fit(self, X, y=None):
        super().fit(X)
        self.components_[0, 0] = np.nan
        return self


class NoParameters(BaseEstimator):
    def fit(self, X, y=None):
        return self


@pytest.mark.parametrize(
    ("pretrainer", "hidden", "message"),
    [
        ("rbm", 5, "pretrainer"),
        (BernoulliRBM, 5, "instance"),
        (RBM, (), "needs a hidden layer"),
        (PCA(), 5, "intercept_hidden_"),
        (NoParameters(), 5, "components_"),
        (NotFinite(n_iter=1), 5, "not finite"),
        (BernoulliRBM(learning_rate=-1), 5, "learning_rate.*must be"),
    ],
)
def test_what_is_no_pretrainer_is_refused(digits, pretrainer, hidden, message):
    model = classifier(pretrainer=pretrainer, hidden_layer_sizes=hidden)
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(*digits)
    assert not hasattr(model, "net_")
    assert not hasattr(model, "pretrainers_")


def test_machines_warn_of_what_is_no_probability(digits):
    X, y = digits
    with pytest.warns(UserWarning, match="MinMaxScaler"):
        classifier(**STILL).fit(16 * X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier(**STILL).fit(X, y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pretraining_for_the_gpu_is_that_of_the_cpu(digits):
    on_gpu = classifier(**STILL, device="cuda").fit(*digits)
    assert_starts_from(on_gpu, digits[0])
