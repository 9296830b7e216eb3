"""The generalised linear models: their limits, their data, their solvers."""

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from linear import counts, families, glm, targets
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.metrics import d2_tweedie_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.estimators.base import Call
from sklearn_margdrop.noise import NOISE_MODELS

ESTIMATORS = [MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor]
ONLINE = ["sgd", "adagrad", "fisher"]
ignore_max_iter = pytest.mark.filterwarnings("ignore:Training stopped at max_iter")


def rows_of(model, X, y):
    """The rows as the fitted `model` trains on them."""
    call = Call(known=model._target)
    call.device, call.random_state = torch.device("cpu"), np.random.RandomState(0)
    rows, _ = model._rows(call, X, y, None, None)
    return rows


@pytest.mark.parametrize("load", [load_breast_cancer, load_wine])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array, sp.csc_matrix])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_without_noise_equals_logistic_regression(load, container, fit_intercept):
    X, y = load(return_X_y=True)
    X, alpha = StandardScaler().fit_transform(X), 0.01
    peer = LogisticRegression(
        C=1 / (len(y) * alpha),
        tol=1e-9,
        max_iter=1000,
        solver="newton-cg",
        fit_intercept=fit_intercept,
    ).fit(X, y)
    model = MarginalizedDropoutGLMClassifier(
        alpha=alpha, retain_rate=1.0, tol=1e-9, fit_intercept=fit_intercept
    ).fit(container(X), y)
    assert model.coef_.shape == peer.coef_.shape
    assert model.intercept_.shape == peer.intercept_.shape
    assert_allclose(model.coef_, peer.coef_, atol=1e-6)
    # The mean over the classes of their intercepts is free.
    shift = model.intercept_.mean() - peer.intercept_.mean() if len(peer.intercept_) > 1 else 0
    assert_allclose(model.intercept_ - shift, peer.intercept_, atol=1e-6)
    assert_allclose(model.predict_proba(X), peer.predict_proba(X), atol=1e-6)
    if load is load_breast_cancer:
        assert_allclose(model.decision_function(X), peer.decision_function(X), atol=1e-5)


@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_without_noise_equals_poisson_regressor(container, fit_intercept, weighted):
    X, y = counts()
    weight = np.linspace(0.5, 2, len(y)) if weighted else None
    peer = PoissonRegressor(
        alpha=0.1, tol=1e-10, solver="newton-cholesky", fit_intercept=fit_intercept
    ).fit(X, y, weight)
    model = MarginalizedDropoutGLMRegressor(
        family="poisson", alpha=0.1, retain_rate=1.0, tol=1e-10, fit_intercept=fit_intercept
    ).fit(container(X), y, weight)
    assert_allclose(model.coef_, peer.coef_, atol=1e-6)
    assert_allclose(model.intercept_, peer.intercept_, atol=1e-6)
    assert_allclose(model.score(X, y, weight), peer.score(X, y, weight), atol=1e-8)


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("method", ["moments", "quadratic"])
def test_gaussian_noise_on_the_normal_family_is_ridge(columns, method):
    X, y = load_diabetes(return_X_y=True)
    X, std = StandardScaler().fit_transform(X), 0.5
    y = y if columns == 1 else np.column_stack([y, y**0.5, -y])
    peer = Ridge(alpha=len(y) * (std**2 + 0.01)).fit(X, y)
    model = MarginalizedDropoutGLMRegressor(
        noise="gaussian", noise_std=std, alpha=0.01, method=method, tol=1e-10
    ).fit(X, y)
    assert model.coef_.shape == peer.coef_.shape
    assert np.shape(model.intercept_) == np.shape(peer.intercept_)
    assert_allclose(model.coef_, peer.coef_, atol=1e-6)
    assert_allclose(model.intercept_, peer.intercept_, atol=1e-6)
    assert_allclose(model.predict(X), peer.predict(X))


@families
@pytest.mark.parametrize("noise", sorted(NOISE_MODELS))
def test_equals_a_network_without_hidden_layers(family, noise):
    X, y = targets(family)
    options = {"noise": noise, "retain_rate": 0.7, "noise_std": 0.3, "alpha": 0.02}
    model = glm(family, method="quadratic", **options).fit(X, y)
    kind = MarginalizedDropoutClassifier
    if family in ("normal", "poisson"):
        kind, options = MarginalizedDropoutRegressor, options | {"family": family}
    for method in ("quadratic", "diagonal"):
        network = kind((), noise_placement="input", method=method, max_iter=1, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit(X, y)
        network.net_.module_.load_state_dict(model.net_.module_.state_dict())
        assert_allclose(network.coefs_[0].T, np.atleast_2d(model.coef_))
        assert_allclose(network.intercepts_[0], np.atleast_1d(model.intercept_))
        rows = rows_of(network, X, y)
        terms = network.net_.criterion_(network.net_.module_, rows.whole)
        terms.total.backward()
        assert_allclose(terms.total.item(), model.objective_, rtol=1e-10)
        assert_allclose(terms.penalty.item(), model.penalty_, rtol=1e-10)
        model.net_.module_.zero_grad()
        by_glm = model.net_.criterion_(model.net_.module_, rows.whole)
        by_glm.total.backward()
        for ours, theirs in zip(
            model.net_.module_.parameters(), network.net_.module_.parameters(), strict=True
        ):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)
        assert_allclose(network.predict(X), model.predict(X), rtol=1e-10)
        if kind is MarginalizedDropoutClassifier:
            assert_allclose(network.predict_proba(X), model.predict_proba(X), rtol=1e-10)


@ignore_max_iter
@families
@pytest.mark.parametrize("noise", sorted(NOISE_MODELS))
@pytest.mark.parametrize("method", ["moments", "quadratic", "sampling"])
@pytest.mark.parametrize("solver", ["lbfgs", *ONLINE])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_every_combination_learns_or_says_what_to_do(family, noise, method, solver, container):
    X, y = targets(family)
    model = glm(
        family,
        noise=noise,
        retain_rate=0.9,
        method=method,
        solver=solver,
        random_state=0,
        max_iter=20,
        learning_rate_init=0.5 if solver == "adagrad" else "auto",
    )
    if method == "sampling" and solver == "lbfgs":
        with pytest.raises(ValueError, match="method to 'moments'"):
            model.fit(container(X), y)
        return
    if method == "sampling" and noise == "gaussian" and container is sp.csr_array:
        with pytest.raises(ValueError, match="use method='moments'"):
            model.fit(container(X), y)
        return
    model.fit(container(X), y, X_unlabeled=container(X[::3]))
    bound = {"bernoulli": 0.95, "categorical": 0.95, "normal": 0.4, "poisson": 0.15}[family]
    assert model.score(container(X), y) > bound
    assert np.isfinite(model.loss_curve_).all()
    assert model.fisher_diagonal_.shape == model.coef_.shape


@families
@pytest.mark.parametrize("method", ["moments", "quadratic"])
@pytest.mark.parametrize("noise", sorted(NOISE_MODELS))
def test_sparse_equals_dense_and_is_never_made_dense(family, method, noise, monkeypatch):
    X, y = targets(family)
    X = np.where(np.abs(X) < 0.5, 0, X)
    dense = glm(family, method=method, noise=noise, tol=1e-8).fit(X, y, X_unlabeled=X[::2])
    forms = [
        sp.csr_array(X),
        sp.csc_matrix(X),
        with_index_dtype(sp.csr_array(X), np.int64),
        unsorted_with_duplicates(X),
    ]
    predictions = dense.predict(X)

    def refuse(self, *args, **kwargs):
        raise AssertionError("made dense")

    for cls in (sp.csr_array, sp.csc_array, sp.csr_matrix, sp.csc_matrix):
        monkeypatch.setattr(cls, "toarray", refuse)
        monkeypatch.setattr(cls, "todense", refuse)
    for sparse in forms:
        before = sparse.copy()
        model = glm(family, method=method, noise=noise, tol=1e-8)
        model.fit(sparse, y, X_unlabeled=sp.csr_array(X[::2]))
        assert_allclose(model.coef_, dense.coef_, atol=1e-6)
        assert_allclose(model.predict(sparse), predictions, atol=1e-5)
        assert_array_equal(sparse.data, before.data)
        assert_array_equal(sparse.indices, before.indices)
    for solver in ONLINE:
        online = glm(family, solver=solver, random_state=0)
        extra = {} if family in ("normal", "poisson") else {"classes": np.unique(y)}
        online.partial_fit(sp.csr_array(X), y, **extra).predict(sp.csc_array(X))


def with_index_dtype(matrix, dtype):
    matrix.indices, matrix.indptr = matrix.indices.astype(dtype), matrix.indptr.astype(dtype)
    return matrix


def unsorted_with_duplicates(X):
    """A CSR matrix whose entries are stored in halves, and in no order."""
    rows, columns = np.nonzero(X)
    values = X[rows, columns]
    order = np.concatenate([np.random.RandomState(i).permutation(len(rows)) for i in range(2)])
    order = order[np.argsort(rows[order], kind="stable")]
    indptr = np.searchsorted(rows[order], np.arange(len(X) + 1))
    return sp.csr_array((values[order] / 2, columns[order], indptr), shape=X.shape)


@pytest.mark.parametrize("labelled_is_sparse", [True, False])
def test_rows_of_both_kinds(text, labelled_is_sparse):
    X, y, U, *_ = text
    expected = MarginalizedDropoutGLMClassifier().fit(X, y, X_unlabeled=U)
    pair = (X, U.toarray()) if labelled_is_sparse else (X.toarray(), U)
    model = MarginalizedDropoutGLMClassifier().fit(pair[0], y, X_unlabeled=pair[1])
    assert_allclose(model.coef_, expected.coef_, atol=1e-10)


@pytest.mark.parametrize("dtype", [int, np.int8, bool, np.float32])
def test_dtypes_of_sparse_data(text, dtype):
    X, y, _, X_test, _ = text
    expected = MarginalizedDropoutGLMClassifier(tol=1e-6).fit(X, y)
    model = MarginalizedDropoutGLMClassifier(tol=1e-6).fit(X.astype(dtype), y)
    assert model.coef_.dtype == (np.float32 if dtype is np.float32 else np.float64)
    assert_allclose(model.coef_, expected.coef_, atol=3e-3 if dtype is np.float32 else 1e-12)
    assert_array_equal(model.predict(X_test.astype(dtype)), expected.predict(X_test))


def test_float32_converges_as_far_as_it_can(text):
    X, y, *_ = text
    for method in ("moments", "quadratic"):
        model = MarginalizedDropoutGLMClassifier(method=method, tol=0.0)
        with pytest.warns(ConvergenceWarning, match=r"as near .* What may help: pass float64"):
            model.fit(X.astype(np.float32), y)
        assert model.n_iter_ < model.max_iter
        best = MarginalizedDropoutGLMClassifier(method=method, tol=1e-9).fit(X, y).objective_
        assert model.objective_ == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("method", ["moments", "quadratic"])
def test_better_than_logistic_regression_on_rare_features(text, method):
    X, y, U, X_test, y_test = text
    peer = max(
        LogisticRegression(C=C, max_iter=1000).fit(X, y).score(X_test, y_test)
        for C in (0.01, 0.1, 1, 10, 100)
    )
    model = MarginalizedDropoutGLMClassifier(method=method).fit(X, y, X_unlabeled=U)
    assert model.score(X_test, y_test) >= peer


@pytest.mark.parametrize("q", [0.3, 0.8])
def test_penalty_is_scaled_by_the_fisher_information(text, q):
    X, y, U, *_ = text
    for unlabeled in (None, U):
        model = MarginalizedDropoutGLMClassifier(
            method="quadratic", retain_rate=q, unlabeled_discount=1.0
        )
        model.fit(X, y, X_unlabeled=unlabeled)
        scaled = (model.fisher_diagonal_ * model.coef_**2).sum()
        assert_allclose((1 - q) / (2 * q) * scaled, model.penalty_, rtol=1e-10)
    probability = model.predict_proba(sp.vstack([X, U]))[:, 1]
    rows = sp.vstack([X, U]).power(2)
    by_hand = rows.T @ (probability * (1 - probability)) / rows.shape[0]
    assert_allclose(model.fisher_diagonal_[0], by_hand)


def test_objective_and_curve(text):
    X, y, *_ = text
    model = MarginalizedDropoutGLMClassifier(method="quadratic", alpha=0.01).fit(X, y)
    assert model.n_iter_ == len(model.loss_curve_)
    assert model.objective_ == model.loss_curve_[-1]
    assert model.loss_curve_ == sorted(model.loss_curve_, reverse=True)
    p = model.predict_proba(X)[np.arange(len(y)), y]
    by_hand = -np.log(p).mean() + model.penalty_ + 0.005 * (model.coef_**2).sum()
    assert_allclose(model.objective_, by_hand)


def test_tolerance_bounds_the_distance_from_the_minimum(text):
    X, y, *_ = text
    for method in ("moments", "quadratic"):
        best = MarginalizedDropoutGLMClassifier(method=method, tol=1e-9).fit(X, y).objective_
        model = MarginalizedDropoutGLMClassifier(method=method).fit(X, y)
        assert best <= model.objective_ <= best * (1 + 1e-4)


@families
@pytest.mark.parametrize("method", ["moments", "quadratic"])
def test_units_of_the_features_do_not_matter_to_dropout(family, method):
    X, y = targets(family)
    units = np.logspace(-4, 4, X.shape[1])
    options = {"method": method, "alpha": 0.0, "retain_rate": 0.8, "tol": 1e-6, "max_iter": 500}
    plain = glm(family, **options).fit(X, y)
    scaled = glm(family, **options).fit(X * units, y)
    assert_allclose(scaled.coef_ * units, plain.coef_, rtol=1e-2, atol=1e-2)
    assert scaled.n_iter_ < 1.5 * plain.n_iter_


def test_restarts_keep_the_best(text):
    X, y, *_ = text
    model = MarginalizedDropoutGLMClassifier(
        method="quadratic", retain_rate=0.05, n_restarts=3, random_state=0
    ).fit(X, y)
    assert model.restart_objectives_.shape == (4,)
    assert model.objective_ == model.restart_objectives_.min()
    alone = clone(model).set_params(n_restarts=0).fit(X, y)
    assert_allclose(alone.objective_, model.restart_objectives_[0])
    again = clone(model).fit(X, y)
    assert_array_equal(again.coef_, model.coef_)
    # Moments of the bernoulli family are convex: every start ends at the same place.
    convex = clone(model).set_params(method="moments", tol=1e-7).fit(X, y)
    assert np.ptp(convex.restart_objectives_) < 1e-6


def test_restarts_leave_features_alone_that_never_occur(text):
    X, y, *_ = text
    X = sp.hstack([X, sp.csr_array((len(y), 3))]).tocsr()
    for solver in ("lbfgs", "sgd"):
        model = MarginalizedDropoutGLMClassifier(
            alpha=0.0, n_restarts=2, solver=solver, random_state=0, tol=1e-2
        ).fit(X, y)
        assert_array_equal(model.coef_[0, -3:], 0)
        assert model.restart_objectives_.max() < 5


# Unlabelled rows


def test_unlabeled_rows_help(text):
    X, y, U, X_test, y_test = text
    model = MarginalizedDropoutGLMClassifier(method="quadratic")
    gains = []
    for few in (slice(0, 60), slice(60, 120), slice(120, 180)):
        alone, helped = (
            model.set_params(unlabeled_discount=d)
            .fit(X[few], y[few], X_unlabeled=U)
            .score(X_test, y_test)
            for d in (0.0, "auto")
        )
        gains.append(helped - alone)
    assert np.mean(gains) > 0.05
    alone = MarginalizedDropoutGLMClassifier().fit(X[few], y[few])
    none = MarginalizedDropoutGLMClassifier(unlabeled_discount=0.0)
    assert_array_equal(none.fit(X[few], y[few], X_unlabeled=U).coef_, alone.coef_)


def test_a_feature_of_the_unlabeled_rows_alone():
    """Its weight serves confident predictions on those rows, and alpha keeps it small."""
    X = np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]])
    U = np.array([[0.0, 0, 1], [1, 0, 1]])
    for container in (np.asarray, sp.csr_array):
        model = MarginalizedDropoutGLMClassifier(unlabeled_discount=1.0)
        model.fit(container(X), [0, 1, 0, 1], X_unlabeled=container(U))
        assert abs(model.coef_[0, 2]) < 0.5 * abs(model.coef_[0, :2]).min()
        assert model.fisher_diagonal_[0, 2] > 0


def test_unlabeled_texts_in_a_pipeline_and_a_grid_search():
    texts = np.array(["good film", "fine fun film", "bad film", "dull and bad"] * 6)
    labels = np.array([1, 1, 0, 0] * 6)
    unlabeled = np.array(["good fun", "dull film", "fine and good"])
    with config_context(enable_metadata_routing=True):
        model = MarginalizedDropoutGLMClassifier().set_fit_request(X_unlabeled=True)
        pipe = make_pipeline(CountVectorizer(), model, transform_input=["X_unlabeled"])
        pipe.fit(texts, labels, X_unlabeled=unlabeled)
        vectors = pipe[0].transform(texts), pipe[0].transform(unlabeled)
        direct = MarginalizedDropoutGLMClassifier().fit(vectors[0], labels, X_unlabeled=vectors[1])
        assert_allclose(pipe[-1].coef_, direct.coef_)
        grid = {
            "marginalizeddropoutglmclassifier__retain_rate": [0.3, 0.7],
            "marginalizeddropoutglmclassifier__unlabeled_discount": [0.0, 0.5],
        }
        search = GridSearchCV(pipe, grid, cv=2).fit(texts, labels, X_unlabeled=unlabeled)
    assert search.best_score_ == 1
    # The convention that -1 marks a row without a label, in one line.
    y = np.r_[labels, -np.ones(3, int)]
    X = pipe[0].transform(np.r_[texts, unlabeled])
    split = MarginalizedDropoutGLMClassifier().fit(X[y != -1], y[y != -1], X_unlabeled=X[y == -1])
    assert_allclose(split.coef_, direct.coef_)


# Online


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_partial_fit_is_for_online_solvers(cls):
    assert not hasattr(cls(), "partial_fit")
    with pytest.raises(AttributeError, match="partial_fit"):
        cls().partial_fit([[1.0], [2.0]], [0, 1])
    for solver in ONLINE:
        assert hasattr(cls(solver=solver), "partial_fit")


@pytest.mark.parametrize("solver", ONLINE)
def test_a_stream_is_learned(text, solver):
    X, y, U, X_test, y_test = text
    rate = 1.0 if solver == "sgd" else "auto"
    model = MarginalizedDropoutGLMClassifier(
        solver=solver, batch_size=20, learning_rate_init=rate, random_state=0
    )
    with pytest.raises(ValueError, match="classes must be passed"):
        model.partial_fit(X, y)
    for _ in range(15):
        for start in range(0, 200, 50):
            rows = slice(start, start + 50)
            model.partial_fit(X[rows], y[rows], classes=[0, 1], X_unlabeled=U[rows])
    assert model.n_iter_ == 60
    reference = MarginalizedDropoutGLMClassifier().fit(X, y, X_unlabeled=U)
    assert model.score(X_test, y_test) > reference.score(X_test, y_test) - 0.06
    assert model.fisher_diagonal_.shape == (1, 200)


def test_the_fisher_solver_makes_the_update_of_the_paper(text):
    """Beta - lr g / D on batches of one row, with D the sum of A'' x^2."""
    X, y, *_ = text
    X = X[:30].toarray()
    model = MarginalizedDropoutGLMClassifier(
        solver="fisher",
        retain_rate=1.0,
        alpha=0.0,
        learning_rate_init=0.05,
        fit_intercept=False,
    )
    beta, total = np.zeros(200), np.zeros(200)
    for row, label in zip(X, y[:30], strict=True):
        model.partial_fit(row[None], [label], classes=[0, 1])
        o = 1 / (1 + np.exp(-row @ beta))
        total += o * (1 - o) * row**2
        seen = total > 0
        beta[seen] -= 0.05 * (o - label) * row[seen] / total[seen]
        assert_allclose(model.coef_[0], beta, rtol=1e-9)


@pytest.mark.parametrize("solver", ONLINE)
def test_fit_with_an_online_solver_approaches_lbfgs(text, solver):
    X, y, *_ = text
    best = MarginalizedDropoutGLMClassifier(alpha=0.01).fit(X, y)
    rate = {"sgd": 1.0, "adagrad": 0.1, "fisher": "auto"}[solver]
    model = MarginalizedDropoutGLMClassifier(
        alpha=0.01, solver=solver, tol=1e-6, max_iter=500, learning_rate_init=rate, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    assert model.loss_curve_[-1] < best.objective_ + 0.02
    assert np.corrcoef(model.coef_[0], best.coef_[0])[0, 1] > 0.97


@pytest.mark.parametrize("solver", ONLINE)
def test_rare_counts_and_chunks_of_zeros(solver):
    rng = np.random.RandomState(0)
    X = (rng.uniform(size=(2000, 30)) < 0.1).astype(float)
    for rate in (0.01, 0.5, 20.0):
        y = rng.poisson(rate * np.exp(0.3 * X @ rng.normal(size=30)))
        first = 100 if solver == "fisher" else 5  # a wrong start misleads its information
        y[:5] *= rate > 1
        model = MarginalizedDropoutGLMRegressor(family="poisson", solver=solver, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            whole = clone(model).set_params(max_iter=30).fit(sp.csr_array(X), y)
        assert whole.predict(X).mean() == pytest.approx(y.mean(), rel=0.5)
        model.partial_fit(X[:first], y[:first])
        for start in range(first, 2000, 50):
            model.partial_fit(X[start : start + 50], y[start : start + 50])
        assert np.isfinite(model.coef_).all()
        assert model.predict(X).mean() < 10 * y.mean()


@pytest.mark.parametrize("solver", ["lbfgs", *ONLINE])
def test_units_of_the_target_do_not_matter(solver):
    X, y = targets("normal")
    plain, large = (
        MarginalizedDropoutGLMRegressor(solver=solver, random_state=0).fit(X, unit * y)
        for unit in (1.0, 1e4)
    )
    assert plain.score(X, y) > 0.4
    assert_allclose(large.coef_, 1e4 * plain.coef_, rtol=1e-4, atol=1)


@pytest.mark.parametrize("solver", ["lbfgs", *ONLINE])
def test_sparse_and_dense_rows_take_the_same_steps(text, solver):
    X, y, *_ = text
    dense, sparse = (
        MarginalizedDropoutGLMClassifier(solver=solver, random_state=0, tol=1e-2).fit(rows, y)
        for rows in (X.toarray(), X)
    )
    assert_allclose(sparse.coef_, dense.coef_, rtol=1e-6, atol=1e-9)
    assert_allclose(sparse.fisher_diagonal_, dense.fisher_diagonal_, rtol=1e-6)


@pytest.mark.parametrize("solver", ["lbfgs", *ONLINE])
def test_constant_targets_are_fitted_without_a_warning(solver):
    X, _ = counts(60)
    for family, value in (("normal", 3.0), ("poisson", 2.0)):
        model = MarginalizedDropoutGLMRegressor(family=family, solver=solver, random_state=0)
        # Steps of adagrad are as long, whatever the gradient: a first one of rounding alone, too.
        precision = 1e-4 if solver == "adagrad" else 1e-6
        assert_allclose(model.fit(X, np.full(60, value)).predict(X), value, rtol=precision)


# Going on


def test_warm_start_goes_on_from_the_coefficients(text):
    X, y, *_ = text
    model = MarginalizedDropoutGLMClassifier(warm_start=True, max_iter=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(30):
            model.fit(X, y)
            if model.net_.stop_reason_ == "converged":
                break
    cold = MarginalizedDropoutGLMClassifier().fit(X, y)
    assert model.objective_ == pytest.approx(cold.objective_, rel=1e-4)
    model.set_params(max_iter=200).coef_[:] = 0.0
    assert model.fit(X, y).objective_ == pytest.approx(cold.objective_, rel=1e-4)
    few = model.n_iter_
    assert model.fit(X, y).n_iter_ <= few + 5
    with pytest.raises(ValueError, match="features"):
        model.fit(X[:, :50], y)


@pytest.mark.parametrize("solver", ["lbfgs", *ONLINE])
def test_pickles_predict_and_go_on(text, solver):
    X, y, *_ = text
    model = MarginalizedDropoutGLMClassifier(
        solver=solver, warm_start=True, random_state=0, max_iter=5
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
        copy = pickle.loads(pickle.dumps(model))
        assert_array_equal(copy.decision_function(X), model.decision_function(X))
        assert_array_equal(copy.fit(X, y).coef_, model.fit(X, y).coef_)


def test_pickles_hold_neither_the_data_nor_the_history(text):
    X, y, *_ = text
    tall = sp.vstack([X] * 50).tocsr()
    model = MarginalizedDropoutGLMClassifier().fit(tall, np.tile(y, 50))
    assert len(pickle.dumps(model)) < 60_000 < tall.data.nbytes / 10


# Weights


@pytest.mark.parametrize("method", ["moments", "quadratic"])
def test_exposure_is_a_sample_weight(method):
    """Counts over several periods are rates weighted by the periods."""
    X, _ = counts(n=100)
    rng = np.random.RandomState(0)
    exposure = rng.randint(1, 5, len(X))
    periods = [rng.poisson(np.exp(X[:, 0]), size=len(X)) for _ in range(4)]
    total = sum(p * (k < exposure) for k, p in enumerate(periods))
    model = MarginalizedDropoutGLMRegressor(family="poisson", method=method, tol=1e-9)
    as_rates = clone(model).fit(X, total / exposure, sample_weight=exposure)
    rows = np.concatenate([np.flatnonzero(exposure > k) for k in range(4)])
    each = np.concatenate([p[exposure > k] for k, p in enumerate(periods)])
    one_by_one = clone(model).fit(X[rows], each)
    assert_allclose(as_rates.coef_, one_by_one.coef_, atol=1e-7)


def test_class_weights(text):
    X, y, *_ = text
    keep = np.flatnonzero((y == 0) | (np.arange(len(y)) % 4 == 0))
    X, y = X[keep], y[keep]
    share = np.bincount(y) / len(y)
    options = {"tol": 1e-8}
    balanced = MarginalizedDropoutGLMClassifier(class_weight="balanced", **options).fit(X, y)
    by_hand = MarginalizedDropoutGLMClassifier(
        class_weight=dict(enumerate(0.5 / share)), **options
    )
    weighted = MarginalizedDropoutGLMClassifier(**options).fit(X, y, sample_weight=0.5 / share[y])
    for other in (by_hand.fit(X, y), weighted):
        assert_allclose(other.coef_, balanced.coef_, atol=1e-8)


# Faults


def test_separable_data_without_alpha():
    X, y = np.array([[-2.0], [-1.0], [1.0], [2.0]]), [0, 0, 1, 1]
    for retain_rate in (1.0, 0.5):
        for method in ("moments", "quadratic"):
            model = MarginalizedDropoutGLMClassifier(
                alpha=0.0, retain_rate=retain_rate, method=method, tol=0.0
            )
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model.fit(X, y)
            assert np.isfinite(model.coef_).all()
            assert all("increase max_iter, tol or alpha" in str(w.message) for w in caught)
            assert_array_equal(model.predict(X), y)


@pytest.mark.parametrize("cls", ESTIMATORS)
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_rows_and_columns_of_zeros(cls, container):
    X = np.zeros((20, 3))
    X[5:, 1] = np.arange(15) % 4
    model = cls().fit(container(X), (X[:, 1] > 1).astype(int))
    assert model.coef_.ravel()[[0, 2]].tolist() == [0, 0]
    assert np.isfinite(model.coef_).all()
    nothing = cls().fit(container(np.zeros((4, 3))), [0, 1, 1, 1])
    assert_array_equal(nothing.coef_.ravel(), 0)
    assert_allclose(np.exp(nothing.intercept_) / (1 + np.exp(nothing.intercept_)), 0.75, 0.1)


def test_extreme_counts_and_features_end_well():
    X, y = counts(200)
    for scale, factor in ((1e-8, 1.0), (1e6, 1.0), (1.0, 1e6)):
        for method in ("moments", "quadratic"):
            model = MarginalizedDropoutGLMRegressor(
                family="poisson", method=method, retain_rate=0.9, alpha=0.0
            ).fit(X * scale, y * factor)
            assert np.isfinite(model.coef_).all()
            assert d2_tweedie_score(y * factor, model.predict(X * scale), power=1) > 0.05


def test_failed_fits_keep_what_was_there(text):
    X, y, *_ = text
    model = MarginalizedDropoutGLMClassifier().fit(X, y)
    before = vars(model).copy()
    with pytest.raises(ValueError, match="only one class"):
        model.fit(X, np.zeros(len(y)))
    assert vars(model).keys() == before.keys()
    assert model.coef_ is before["coef_"]


def test_interrupts_keep_the_last_iteration(text, monkeypatch):
    from sklearn_margdrop.objective import Objective

    X, y, *_ = text
    whole = MarginalizedDropoutGLMClassifier().fit(X, y)
    calls = []
    backward = Objective.backward

    def interrupted(self, *args):
        calls.append(None)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return backward(self, *args)

    monkeypatch.setattr(Objective, "backward", interrupted)
    with pytest.warns(UserWarning, match="interrupted by the user in iteration"):
        model = MarginalizedDropoutGLMClassifier().fit(X, y)
    assert 0 < model.n_iter_ < whole.n_iter_
    assert model.loss_curve_ == whole.loss_curve_[: model.n_iter_]
    monkeypatch.setattr(Objective, "backward", backward)
    terms = model.net_.criterion_(model.net_.module_, rows_of(model, X, y).whole)
    assert terms.total.item() == model.objective_


@pytest.mark.parametrize("solver", ["lbfgs", *ONLINE])
def test_same_seed_same_bits_and_nothing_global_changes(text, solver):
    X, y, *_ = text
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    model = MarginalizedDropoutGLMClassifier(solver=solver, random_state=5, tol=1e-2)
    if solver != "lbfgs":
        model.set_params(method="sampling")
    first, second = clone(model).fit(X, y), clone(model).fit(X, y)
    assert_array_equal(first.coef_, second.coef_)
    assert first.loss_curve_ == second.loss_curve_
    assert torch.equal(torch.get_rng_state(), before[0])
    assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_verbose_prints_a_line_for_each_iteration(text, capsys):
    X, y, *_ = text
    model = MarginalizedDropoutGLMClassifier(verbose=1).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == model.n_iter_ + 1  # and the heading
    assert "penalty" in lines[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@families
@pytest.mark.parametrize("method", ["moments", "quadratic"])
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_cuda_agrees_with_the_cpu(family, method, container):
    X, y = targets(family)
    cpu, gpu = (
        glm(family, method=method, device=device, tol=1e-8).fit(
            container(X), y, X_unlabeled=container(X[::2])
        )
        for device in ("cpu", "cuda")
    )
    assert_allclose(gpu.coef_, cpu.coef_, atol=1e-6)
    assert_allclose(gpu.predict(container(X)), cpu.predict(container(X)), atol=1e-5)


def test_flat_directions_are_found_where_values_no_longer_tell():
    """Along them the gradient of L-BFGS grows before it shrinks, and differences are rounding."""
    rng = np.random.RandomState(0)
    X = rng.normal(size=(400, 6))
    y = (X @ rng.normal(size=(6, 3)) + rng.normal(size=(400, 3))).argmax(1)
    options = {"tol": 1e-12, "alpha": 1e-5, "max_iter": 500}
    coefs = []
    for step in (1, -1):
        model = MarginalizedDropoutGLMClassifier(**options).fit(X[::step], y[::step])
        assert model.net_.optimizer_.decrement <= 1e-12
        coefs.append(model.coef_)
    assert_allclose(*coefs, rtol=0, atol=1e-8)
