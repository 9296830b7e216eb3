"""Units of the target: ``a * y + b`` is predicted as ``a * prediction + b``, on all ways."""

import copy
import pickle
import warnings
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import skops.io
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_regression
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EpochScoring

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.families import FAMILIES, Normal
from sklearn_margdrop.inspection import effective_penalty, penalty_per_sample
from sklearn_margdrop.training.units import Units, standardised

REGRESSORS = [MarginalizedDropoutRegressor, MarginalizedDropoutGLMRegressor]
QUICK = {"max_iter": 4, "random_state": 0}

rng = np.random.RandomState(0)
X = rng.normal(size=(150, 5))
Z = X[:, :3] @ rng.normal(size=(3, 3)) + X[:, 3:4] ** 2 + 0.3 * rng.normal(size=(150, 3))
z = Z[:, 0]

#: Units (a, b): powers of ten and not, far from zero and not.
UNITS = [(1e-6, 1.0), (1e6, 0.0), (10.0, 1998.0), (1e-3, 1998.0), (1e5, -1e11)]
MANY = (np.array([1e-6, 7.0, 1e6]), np.array([1.0, -1998.0, 1e11]))
all_units = pytest.mark.parametrize("units", [*UNITS, MANY], ids=lambda u: f"{u[0]} {u[1]}")


def quiet(call, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **kwargs)


def in_units(units):
    """A target in the plain units, and the same in `units`."""
    a, b = units
    plain = z if np.ndim(a) == 0 else Z
    return plain, a * plain + b


def assert_same_in(units, plain, other, rtol=1e-6):
    """Predictions, which vary by about one, but for the units."""
    a, b = units
    assert_allclose((other - b) / a, plain, atol=rtol)


MODELS = {
    "adam": MarginalizedDropoutRegressor(8, **QUICK),
    "sgd": MarginalizedDropoutRegressor((6, 4), solver="sgd", learning_rate_init=0.01, **QUICK),
    "logistic": MarginalizedDropoutRegressor(8, activation="logistic", solver="sgd", **QUICK),
    "quadratic": MarginalizedDropoutRegressor(8, method="quadratic", n_probes=1, **QUICK),
    "diagonal": MarginalizedDropoutRegressor(8, method="diagonal", **QUICK),
    "sampling": MarginalizedDropoutRegressor(8, method="sampling", **QUICK),
    "early stopping": MarginalizedDropoutRegressor(8, early_stopping=True, **QUICK),
    "no hidden layer": MarginalizedDropoutRegressor((), noise="gaussian", alpha=0.1, **QUICK),
    "lbfgs": MarginalizedDropoutGLMRegressor(alpha=0.1),
    "lbfgs, restarts": MarginalizedDropoutGLMRegressor(n_restarts=1, random_state=0),
    "lbfgs, quadratic": MarginalizedDropoutGLMRegressor(method="quadratic", noise="gaussian"),
} | {
    f"{solver}, {method}": MarginalizedDropoutGLMRegressor(solver=solver, method=method, **QUICK)
    for solver in ("sgd", "adagrad", "fisher")
    for method in ("moments", "quadratic", "sampling")
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
ONLINE = {name: model for name, model in MODELS.items() if model.solver != "lbfgs"}
ONLINE.pop("early stopping")


def fitted(model, X, y, **kwargs):
    return quiet(copy.deepcopy(model).fit, X, y, **kwargs)


@all_units
@every_model
def test_units_of_the_target_make_no_difference(model, units):
    plain, other = in_units(units)
    first, second = fitted(model, X, plain), fitted(model, X, other)
    assert_same_in(units, first.predict(X), second.predict(X))
    assert_allclose(second.loss_curve_, first.loss_curve_, rtol=1e-6)
    assert_allclose(second.score(X, other), first.score(X, plain), atol=1e-6)
    assert first.n_iter_ == second.n_iter_


@pytest.mark.parametrize("make", [sparse.csr_array, np.asfortranarray])
@pytest.mark.parametrize("name", ["adam", "lbfgs", "adagrad, moments"])
def test_with_weights_unlabelled_rows_and_other_containers(name, make):
    data = make(np.where(np.abs(X) > 0.5, X, 0))
    extra = {"sample_weight": rng.randint(3, size=150), "X_unlabeled": make(X[:20])}
    plain, other = in_units(MANY)
    predictions = [fitted(MODELS[name], data, y, **extra).predict(data) for y in (plain, other)]
    assert_same_in(MANY, *predictions)


def test_a_memory_map(tmp_path):
    np.save(tmp_path / "X.npy", X)
    data = np.load(tmp_path / "X.npy", mmap_mode="r")
    for model in (MODELS["adam"], MODELS["lbfgs"]):
        assert_same_in(
            (10, 1998), *(fitted(model, data, y).predict(data) for y in (z, 1998 + 10 * z))
        )


# Streams and warm starts


@pytest.mark.parametrize("units", [UNITS[4], MANY], ids=str)
@pytest.mark.parametrize("model", ONLINE.values(), ids=ONLINE.keys())
def test_streams_of_chunks_of_any_size(model, units):
    plain, other = in_units(units)
    streams = [copy.deepcopy(model), copy.deepcopy(model)]
    ends = [0, 1, 2, 5, 30, 90, 140, 150]
    for start, end in pairwise(ends):
        for stream, y in zip(streams, (plain, other), strict=True):
            quiet(stream.partial_fit, X[start:end], y[start:end])
            assert np.isfinite(stream.predict(X)).all()
        assert_same_in(units, *(stream.predict(X) for stream in streams))


@pytest.mark.parametrize("cls", REGRESSORS)
def test_predictions_stay_where_the_units_of_a_stream_change(cls):
    still = {"learning_rate_init": 1e-30, "random_state": 0}
    model = cls(solver="sgd", **still)
    model.partial_fit(X[:3], z[:3])
    if cls is MarginalizedDropoutGLMRegressor:
        model.coef_ = np.arange(5.0)
    for start, end in ((3, 60), (60, 99)):
        before, location = model.predict(X), model._target.units.location.copy()
        model.partial_fit(X[start:end], 100 + 20 * z[start:end])
        assert abs(model._target.units.location - location) > 1
        assert_allclose(model.predict(X), before, rtol=1e-10)
    model.partial_fit(X[:60], z[:60])
    settled = model._target.units.location
    assert_allclose(settled, (z[:3].sum() + (100 + 20 * z[3:99]).sum() + z[:60].sum()) / 159)
    model.partial_fit(X, 120 * z)
    assert_array_equal(model._target.units.location, settled)
    before = model.predict(X)
    model.partial_fit(X, 1e5 * z)  # to which they do not suit
    assert model._target.units.spread > 1e4
    assert_allclose(model.predict(X), before, rtol=1e-10)


@pytest.mark.parametrize("name", ["adam", "quadratic", "sampling", "logistic"])
def test_once_settled_chunks_are_the_batches_of_an_epoch(name):
    """To the last bit: a first chunk of 100 rows fixes the units as `fit` does."""
    model = copy.deepcopy(MODELS[name]).set_params(shuffle=False, batch_size=50)
    model.set_params(learning_rate="constant")
    start = model.partial_fit(X[:100], 7 + z[:100])
    whole, stream = copy.deepcopy(start), copy.deepcopy(start)
    quiet(whole.set_params(warm_start=True, max_iter=1).fit, X, 7 + z)
    for chunk in (slice(0, 50), slice(50, 100), slice(100, 150)):
        stream.partial_fit(X[chunk], 7 + z[chunk])
    for left, right in zip(whole.coefs_, stream.coefs_, strict=True):
        assert_array_equal(left, right)


@pytest.mark.parametrize("cls", REGRESSORS)
def test_a_column_that_varies_late_is_learned(cls):
    model = cls(solver="sgd", random_state=0, learning_rate_init=0.02)
    y = np.column_stack([z, np.full(150, 5.0)])
    for _ in range(2):
        model.partial_fit(X, y)
        assert_array_equal(model.predict(X)[:, 1], 5.0)
    y[:, 1] += 1e-3 * X[:, 1]
    for _ in range(60):
        model.partial_fit(X, y)
    assert r2_score(y[:, 1], model.predict(X)[:, 1]) > 0.3


@every_model
def test_a_warm_start_keeps_the_units(model):
    y = 1998 + 10 * z
    warm = fitted(model, X, y).set_params(warm_start=True)
    units, loss = warm._target.units, warm.loss_curve_[-1]
    quiet(warm.fit, X[:60], y[:60] + 5)
    assert_array_equal(warm._target.units.location, units.location)
    assert_array_equal(warm._target.units.scale, units.scale)
    assert warm.loss_curve_[-1] < 3 * loss
    plain = quiet(fitted(model, X, z).set_params(warm_start=True).fit, X[:60], z[:60] + 0.5)
    assert_same_in((10, 1998), plain.predict(X), warm.predict(X))


@every_model
@all_units
def test_a_warm_start_with_a_target_in_other_units(model, units):
    """It goes on with the predictions in these units."""
    plain, other = in_units(units)
    first = fitted(model, X, plain).set_params(warm_start=True)
    again, moved = (quiet(copy.deepcopy(first).fit, X, y) for y in (plain, other))
    assert_same_in(units, again.predict(X), moved.predict(X))


@pytest.mark.parametrize("cls", REGRESSORS)
def test_a_warm_start_with_another_family_is_an_error(cls):
    model = cls(max_iter=3, warm_start=True, random_state=0)
    quiet(model.set_params(family="poisson").fit, X, np.abs(z))
    with pytest.raises(ValueError, match="family was 'poisson' in the previous call"):
        model.set_params(family="normal").fit(X, z)


@pytest.mark.parametrize(
    "model",
    [
        MarginalizedDropoutRegressor(20, random_state=0),
        MarginalizedDropoutGLMRegressor(solver="adagrad", retain_rate=0.9, random_state=0),
        MarginalizedDropoutGLMRegressor(solver="fisher", retain_rate=0.9, random_state=0),
    ],
    ids=lambda model: model.solver,
)
def test_a_stream_that_begins_nearly_constant(model):
    y = np.tile(1000 * z, 3)
    y[:100], y[50] = 0.0, 1.0
    rows, model = np.tile(X, (3, 1)), clone(model)
    for _ in range(20):
        for start in range(0, 450, 50):
            model.partial_fit(rows[start : start + 50], y[start : start + 50])
    assert r2_score(y[100:], model.predict(rows[100:])) > 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_warm_start_begins_at_the_last_bit_unless_coefficients_are_set(dtype):
    model = MarginalizedDropoutGLMRegressor(tol=1e-3).fit(X.astype(dtype), 1998 + 1e-2 * z)
    weight = model.net_.module_.linears[0].weight.clone()
    again = copy.deepcopy(model).set_params(warm_start=True, tol=1e3)
    assert torch.equal(again.fit(X, 1998 + 1e-2 * z).net_.module_.linears[0].weight, weight) or (
        again.n_iter_ == model.n_iter_ + 1
    )
    truth = MarginalizedDropoutGLMRegressor(solver="sgd", learning_rate_init=1e-30)
    truth.fit(X, 1998 + 10 * z)
    truth.coef_, truth.intercept_ = np.arange(5.0), 1990.0
    truth.partial_fit(X, 1998 + 10 * z)
    assert_allclose(truth.coef_, np.arange(5.0), atol=1e-12)
    assert_allclose(truth.intercept_, 1990.0)


# Copies, files, graphs, clusters


@pytest.mark.parametrize("name", ["adam", "early stopping", "lbfgs", "adagrad, moments"])
def test_in_copies_and_files(name, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    for units in (UNITS[2], MANY):
        _, y = in_units(units)
        model = fitted(MODELS[name], X, y)
        expected = model.predict(X)
        data = skops.io.dumps(model)
        names = skops.io.get_untrusted_types(data=data)
        for other in (
            pickle.loads(pickle.dumps(model)),
            copy.deepcopy(model),
            skops.io.loads(data, trusted=names),
        ):
            assert_array_equal(other.predict(X), expected)
            if name != "early stopping" and "lbfgs" not in name:
                quiet(other.partial_fit, X, y)
                twin = quiet(copy.deepcopy(model).partial_fit, X, y)
                assert_array_equal(other.predict(X), twin.predict(X))
        model.to_onnx(tmp_path / "model.onnx")
        (found,) = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"X": X})
        assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["adam", "early stopping", "lbfgs", "fisher, moments"])
def test_checkpoints_go_on_in_the_same_units(name, tmp_path):
    y = 1998 + 10 * z
    model = copy.deepcopy(MODELS[name]).set_params(tol=0 if name != "lbfgs" else 1e-12)
    if hasattr(model, "learning_rate"):
        model.set_params(learning_rate="constant")  # a schedule has one length
    whole = fitted(model, X, y)
    model.set_params(checkpoint=tmp_path)
    fitted(model.set_params(max_iter=2), X, y)
    model.set_params(max_iter=MODELS[name].max_iter)
    assert_array_equal(fitted(model, X, y).predict(X), whole.predict(X))
    with pytest.raises(ValueError, match="of another fit; these differ: data"):
        fitted(model, X, y / 10)


@pytest.mark.parametrize("sizes", [(150,), (1, 1, 40, 108)])
@pytest.mark.parametrize("intercept", [True, False])
def test_dask_collections(sizes, intercept):
    da = pytest.importorskip("dask.array")
    weight = rng.randint(3, size=150)
    model = MarginalizedDropoutGLMRegressor(fit_intercept=intercept, tol=1e-8)
    for units in (UNITS[3], MANY) if intercept else [(1e5, 0.0)]:
        _, y = in_units(units)
        whole = fitted(model, X, y, sample_weight=weight)
        chunks = [da.from_array(each, chunks=(sizes, *each.shape[1:])) for each in (X, y, weight)]
        other = copy.deepcopy(model).fit(*chunks)
        assert_same_in(units, (whole.predict(X) - units[1]) / units[0], other.predict(X))
        assert_allclose(other.objective_, whole.objective_, rtol=1e-6)
        assert_allclose(other._target.units.scale, whole._target.units.scale, rtol=1e-9)
        location = other._target.units.location
        other.set_params(warm_start=True).fit(*(each[50:] for each in chunks))
        assert_array_equal(other._target.units.location, location)


# What users read


@pytest.mark.parametrize("y", [z, Z], ids=["one output", "three"])
def test_a_forward_pass_by_hand_gives_the_predictions(y):
    model = fitted(MODELS["sgd"], X, 1998 + 10 * y)
    found = X
    for position, (coef, intercept) in enumerate(
        zip(model.coefs_, model.intercepts_, strict=True)
    ):
        found = (np.maximum(found, 0) if position else found) @ coef + intercept
    assert_allclose(found.squeeze(), model.predict(X))
    glm = fitted(MODELS["lbfgs"], X, 1998 + 10 * y)
    assert_allclose((X @ np.atleast_2d(glm.coef_).T + glm.intercept_).squeeze(), glm.predict(X))


@pytest.mark.parametrize("units", [UNITS[2], MANY], ids=str)
def test_the_net_speaks_the_units_of_the_user(units):
    _, y = in_units(units)
    scores = [
        EpochScoring("r2", lower_is_better=False),
        EpochScoring("neg_mean_squared_error", name="mse", lower_is_better=False),
        EpochScoring("r2", name="again", lower_is_better=False, use_caching=False),
        EpochScoring("neg_mean_squared_error", name="on_train", on_train=True),
    ]
    model = copy.deepcopy(MODELS["early stopping"]).set_params(callbacks=scores)
    net = quiet(model.fit, X, y).net_
    assert_allclose(net.predict(X), model.predict(X))
    assert_allclose(net.forward(X).squeeze(), model.predict(X))
    assert_allclose(net.score(X, y), r2_score(y, model.predict(X)))
    assert_allclose(net.history[:, "r2"], model.validation_scores_)
    assert_allclose(net.history[:, "again"], model.validation_scores_)
    worst = np.square(units[0]).mean()
    for name in ("mse", "on_train"):
        assert 1e-3 * worst < -net.history[-1, name] < 100 * worst
    y_there_and_back = net.decode(net.encode(y)).numpy()
    assert_allclose(y_there_and_back, y)
    draws = torch.stack([net.forward(X, training=True) for _ in range(400)]).mean(0)
    assert_allclose(draws.squeeze(), model.predict(X), atol=np.max(units[0]))


@pytest.mark.parametrize("cls", REGRESSORS)
def test_objectives_are_those_of_the_standardised_target(cls):
    weight = rng.uniform(0.5, 2, size=150)
    y = 1998 + 1e3 * z
    model = fitted(cls(alpha=0.0, retain_rate=0.5), X, y, sample_weight=weight)
    mean = np.average(y, weights=weight)
    variance = np.average((y - mean) ** 2, weights=weight)
    assert_allclose(model._target.units.location, mean)
    assert_allclose(model._target.units.scale**2, variance)
    if cls is MarginalizedDropoutRegressor:
        return
    # By hand, in the units of the user: loss, and the penalty of dropout at 0.5.
    shares = weight / weight.sum()
    loss = shares @ (0.5 * (y - model.predict(X)) ** 2)
    penalty = 0.5 * (shares @ X**2) @ model.coef_**2
    assert_allclose(model.objective_, (loss + penalty) / variance)
    assert_allclose(model.penalty_, penalty / variance)
    assert_allclose(shares @ penalty_per_sample(model, X), model.penalty_)
    total = fitted(cls(alpha=0.0, retain_rate=0.5), X, y)
    assert_allclose(effective_penalty(total, X)[0].sum(), total.penalty_)
    assert_allclose(total.fisher_diagonal_, (X**2).mean(0))


@pytest.mark.parametrize("y", [z, Z], ids=["one output", "three"])
@pytest.mark.parametrize("intercept", [True, False])
def test_the_minimiser_is_that_of_ridge(y, intercept):
    y = 1998 + np.array([10.0, 1e-3, 1e6])[: np.size(y[0])] * y.reshape(150, -1)
    std, alpha = 0.7, 0.3
    peer = Ridge(alpha=150 * (std**2 + alpha), fit_intercept=intercept).fit(X, y)
    model = MarginalizedDropoutGLMRegressor(
        noise="gaussian", noise_std=std, alpha=alpha, fit_intercept=intercept, tol=1e-12
    ).fit(X, y.squeeze())
    scale = np.abs(peer.coef_).max(axis=-1, keepdims=True)
    assert_allclose(model.coef_ / scale, peer.coef_ / scale, atol=1e-6)
    if not intercept:
        assert not np.any(model.intercept_)


# What is constant, in float32, far away


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.float64, 0.0), (np.float64, 1e-9), (np.float32, -0.1), (np.float64, 1e12)],
)
@every_model
def test_a_constant_is_fitted_in_silence(model, dtype, value):
    data, y = X.astype(dtype), np.full(150, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = copy.deepcopy(model).set_params(max_iter=50).fit(data, y)
    assert_array_equal(model.predict(data), y.astype(dtype))
    both = np.column_stack([z, y])
    model = fitted(model, data, both)
    assert_array_equal(model.predict(data)[:, 1], y.astype(dtype))
    assert model._target.units.settled.tolist() == [True, False]


@pytest.mark.parametrize("units", [(1e-3, 1998.0), (1e6, 1e12), (1e-25, 0.0), (1e25, 0.0)])
@pytest.mark.parametrize("name", ["adam", "lbfgs", "adagrad, moments"])
def test_float32_features_with_targets_of_float64(name, units):
    data = X.astype(np.float32)
    plain, other = in_units(units)
    first, second = (fitted(MODELS[name], data, y) for y in (plain, other))
    assert second.predict(data).dtype == np.float32
    assert second.score(data, other) == pytest.approx(first.score(data, plain), abs=5e-3)
    # What is trained is the same: only predictions are rounded, to the distances of float32.
    weights = [model.net_.module_.linears[-1].weight.detach().numpy() for model in (first, second)]
    assert_allclose(*weights, atol=1e-3)


def test_many_targets_of_any_size():
    data, y = make_regression(n_samples=200, n_features=10, n_targets=5, random_state=0)
    for units in (1.0, np.logspace(-6, 6, 5)):
        model = MarginalizedDropoutRegressor(random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.fit(StandardScaler().fit_transform(data), y * units)
        assert model.score(StandardScaler().fit_transform(data), y * units) > 0.9


def test_targets_that_are_no_numbers_in_given_units_are_refused():
    units = Units.of(z[:, None], np.ones(150)).settle(1)
    with pytest.raises(ValueError, match=r"y is up to .* times as far from the mean.*scale y"):
        standardised(1e300 * z[:, None], units, np.float64)


@pytest.mark.parametrize("cls", REGRESSORS)
def test_a_chunk_of_other_targets_is_refused(cls):
    solver = {"solver": "sgd"} if cls is MarginalizedDropoutGLMRegressor else {}
    model = cls(**solver, random_state=0).partial_fit(X, z)
    before = model.predict(X)
    with pytest.raises(ValueError, match=r"y is up to .* times as far from the mean.*scale y"):
        model.partial_fit(X, 1e12 * z)
    assert_array_equal(model.predict(X), before)


# Other families


def test_poisson_counts_in_other_units():
    """Half the deviance and the penalty are both proportional to the rate."""
    y = rng.poisson(np.exp(0.5 * X[:, 0]))
    options = {"family": "poisson", "retain_rate": 0.8, "tol": 1e-10}
    for c in (0.01, 7.0, 300.0):
        free = [MarginalizedDropoutGLMRegressor(alpha=0, **options).fit(X, k * y) for k in (1, c)]
        assert_allclose(free[1].predict(X), c * free[0].predict(X), rtol=1e-6)
        weighted = MarginalizedDropoutGLMRegressor(alpha=0, **options)
        weighted.fit(X, c * y, sample_weight=np.full(150, 1 / c))
        assert_allclose(weighted.predict(X), free[1].predict(X), rtol=1e-6)
        ridged = [
            MarginalizedDropoutGLMRegressor(alpha=alpha, **options).fit(X, k * y)
            for k, alpha in ((c, 0.3), (1, 0.3 / c))
        ]
        assert_allclose(ridged[0].coef_, ridged[1].coef_, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rate", [0.2, 1.0, 300.0, 1e5])
def test_poisson_networks_of_any_rate(rate):
    y = rng.poisson(rate * np.exp(0.3 * X[:, 0]))
    model = MarginalizedDropoutRegressor(16, family="poisson", random_state=0, max_iter=100)
    assert quiet(model.fit, X, y).score(X, y) > -0.05
    assert_allclose(model.predict(X).mean(), y.mean(), rtol=0.3)


@pytest.mark.parametrize("incremental", [False, True])
def test_networks_start_at_the_mean_of_the_target(incremental):
    still = {
        "learning_rate_init": 1e-30,
        "hidden_layer_sizes": 8,
        "max_iter": 1,
        "random_state": 0,
    }
    weight = rng.uniform(0.1, 2, size=150)
    labels = (z > 0.8).astype(int)
    thirds = np.digitize(z, [-1, 1])

    def begun(model, y, classes=None):
        given = {} if classes is None else {"classes": classes}
        if incremental:
            return quiet(model.partial_fit, X, y, sample_weight=weight, **given)
        return quiet(model.fit, X, y, sample_weight=weight)

    bias = begun(MarginalizedDropoutClassifier(**still), labels, [0, 1]).intercepts_[-1]
    share = np.average(labels, weights=weight)
    share = (share * 150 + 1) / 152 if incremental else share
    assert_allclose(bias, np.log(share / (1 - share)), rtol=1e-9)
    bias = begun(MarginalizedDropoutClassifier(**still), thirds, [0, 1, 2]).intercepts_[-1]
    shares = np.array([np.average(thirds == k, weights=weight) for k in range(3)])
    shares = (shares * 150 + 1) / 153 if incremental else shares
    assert_allclose(np.exp(bias), shares, rtol=1e-9)
    several = (Z > 0).astype(int)
    bias = begun(MarginalizedDropoutClassifier(**still), several, [0, 1, 2]).intercepts_[-1]
    shares = weight @ (Z > 0) / weight.sum()
    shares = (shares * 150 + 1) / 152 if incremental else shares
    assert_allclose(bias, np.log(shares / (1 - shares)), rtol=1e-9)
    counts = rng.poisson(300, size=(150, 2))
    bias = begun(MarginalizedDropoutRegressor(family="poisson", **still), counts).intercepts_[-1]
    mean = weight @ counts / weight.sum()
    mean = (mean * 150 + 1) / 151 if incremental else mean
    assert_allclose(np.exp(bias), mean, rtol=1e-9)
    bias = begun(MarginalizedDropoutRegressor(**still), 1998 + Z).intercepts_[-1]
    assert_allclose(bias, 1998 + weight @ Z / weight.sum())


def test_families_of_ones_own_are_left_in_their_units():
    class Huberish(Normal):
        name = "huberish"

    class Said(Normal):
        name = "said"
        standardised = True

    try:
        for cls in REGRESSORS:
            own = quiet(cls(family="huberish", **QUICK).fit, X, 3 + 2 * z)
            assert own._target.units is None
            assert own.net_.target.units is None
            assert quiet(cls(family="said", **QUICK).fit, X, 3 + 2 * z)._target.units is not None
            with pytest.raises(ValueError, match=r"y has values of up to .*Scale y"):
                cls(family="huberish").fit(X, 1e300 * z)
    finally:
        del FAMILIES["huberish"], FAMILIES["said"]


# The units themselves


@pytest.mark.parametrize("scale", [1e-200, 1e-6, 1.0, 1e200])
@pytest.mark.parametrize("centred", [True, False])
def test_moments_of_chunks_are_those_of_the_whole(scale, centred):
    y = scale * (1e3 * centred + rng.normal(size=(60, 2)))
    weight = rng.uniform(size=60) * 10.0 ** rng.randint(-3, 3, size=60)
    whole = Units.of(y, weight, centred)
    parts = [Units.of(y[s], weight[s], centred) for s in np.split(np.arange(60), [1, 2, 30])]
    merged = parts[0].merged(parts[1]).merged(parts[2].merged(parts[3]))
    exact = np.longdouble(y) / scale
    mean = np.average(exact, axis=0, weights=weight) * centred
    spread = np.sqrt(np.average((exact - mean) ** 2, axis=0, weights=weight))
    for found in (whole, merged):
        assert_allclose(found.location / scale, mean.astype(float), rtol=1e-13)
        assert_allclose(found.spread / scale, spread.astype(float), rtol=1e-9)
        assert_allclose(found.decode(found.encode(y)), y, rtol=1e-13)
        assert found.n_rows == 60
        assert found.weight == pytest.approx(weight.sum())


def test_equal_numbers_have_no_spread():
    for value in (0.1, 1 / 3, 1e300, 1e-300):
        units = Units.of(np.full((7, 1), value), rng.uniform(size=7))
        assert (units.location, units.spread, units.scale) == (value, 0, 1)
        again = units.merged(Units.of(np.full((3, 1), value), np.ones(3))).settle(1)
        assert (again.location, again.spread, again.settled) == (value, 0, False)


@pytest.mark.parametrize("cls", [MarginalizedDropoutClassifier, MarginalizedDropoutGLMClassifier])
def test_classes_have_no_units(cls):
    assert quiet(partial(cls(max_iter=2).fit, X), z > 0).net_.target.units is None
