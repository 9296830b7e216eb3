"""How far a column lies from zero makes no difference, where noise does not depend on it."""

import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge

from sklearn_margdrop import MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor
from sklearn_margdrop.families import FAMILIES
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.numerics.sparse import SparseMatrix
from sklearn_margdrop.objective import Objective
from sklearn_margdrop.training.batches import Features, Rows
from sklearn_margdrop.weighting import WeightedRows

FAMILY_NAMES = ["bernoulli", "categorical", "normal", "poisson"]
ONLINE = ["sgd", "adagrad", "fisher"]
NOISES = [{"retain_rate": 1.0}, {"noise": "gaussian", "noise_std": 0.2}]
families = pytest.mark.parametrize("family", FAMILY_NAMES)


def glm(family, **options):
    options = {"random_state": 0, "alpha": 1e-4, **options}
    if family in ("normal", "poisson"):
        return MarginalizedDropoutGLMRegressor(family=family, **options)
    return MarginalizedDropoutGLMClassifier(**options)


def problem(family, seed=0, n=120, p=3):
    """Rows of about unit spread, a zero-one column among them, and a target."""
    rng = np.random.RandomState(seed)
    X = rng.standard_normal((n, p))
    X[:, -1] = X[:, -1] > 0.5
    eta = X @ rng.standard_normal((p, 3)) / 2
    y = {
        "bernoulli": (eta[:, 0] + rng.logistic(size=n) > 0).astype(int),
        "categorical": (eta + rng.gumbel(size=eta.shape)).argmax(1),
        "normal": eta[:, 0] + rng.standard_normal(n),
        "poisson": rng.poisson(np.exp(eta[:, 0])).astype(float),
    }[family]
    return X, y


def shifts(X, seed, least=-3.0, most=6.0):
    """From 1e-3 to 1e6 of the spread of each column, up or down."""
    rng = np.random.RandomState(seed)
    return X.std(0) * 10 ** rng.uniform(least, most, X.shape[1]) * rng.choice([-1, 1], X.shape[1])


def output(model, X):
    return model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)


def in_file(X, path):
    np.save(path, X)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("noise", NOISES, ids=["none", "gaussian"])
@pytest.mark.parametrize("method", ["moments", "quadratic"])
@families
def test_lbfgs(family, method, noise, seed, tmp_path):
    X, y = problem(family, seed)
    by, options = shifts(X, seed), {"method": method, "alpha": [0.0, 0.01][seed], **noise}
    weight = np.random.RandomState(seed).uniform(0.2, 2, len(y))
    data = {"y": y, "sample_weight": weight}
    expected = output(glm(family, **options).fit(X, X_unlabeled=X[::3], **data), X)
    forms = [np.asarray, sp.csr_array, lambda Z: in_file(Z, tmp_path / f"{len(Z)}.npy")]
    for form in forms:
        Z, U = form(X + by), form(X[::3] + by)
        model = glm(family, **options).fit(Z, X_unlabeled=U, **data)
        assert_allclose(output(model, Z), expected, rtol=1e-5, atol=1e-5)


@families
def test_float32(family):
    """Features that float32 products do not resolve are multiplied in float64."""
    X, y = problem(family)
    plain = glm(family, retain_rate=1.0).fit(X.astype(np.float32), y)
    assert plain.coef_.dtype == np.float32
    for most in (1.5, 3.0, 5.0):
        Z = (X + shifts(X, 0, 1.0, most)).astype(np.float32)
        rounded = Z.astype(np.float64)
        centred = glm(family, retain_rate=1.0).fit(rounded - rounded.mean(0), y)
        expected = output(centred, rounded - rounded.mean(0))
        for form in (np.asarray, sp.csr_array):
            model = glm(family, retain_rate=1.0).fit(form(Z), y, X_unlabeled=form(Z[:9]))
            assert model.coef_.dtype == (np.float32 if most < 2 else np.float64)
            assert_allclose(output(model, form(Z)), expected, atol=1e-3)


@pytest.mark.parametrize("noise", NOISES, ids=["none", "gaussian"])
@pytest.mark.parametrize("solver", ONLINE)
@families
def test_online_solvers(family, solver, noise):
    X, y = problem(family)
    X[:, -1] -= 0.3  # "fisher" begins with the number of rows in which a feature is not zero
    outputs = []
    for form, by in ((np.asarray, 0), (np.asarray, shifts(X, 1)), (sp.csr_array, shifts(X, 2))):
        model = glm(family, solver=solver, batch_size=40, max_iter=300, tol=1e-2, **noise)
        outputs.append(output(model.fit(form(X + by), y), form(X + by)))
    assert_allclose(outputs[1], outputs[0], atol=1e-6)
    assert_allclose(outputs[2], outputs[0], atol=1e-6)
    assert np.ptp(outputs[0], axis=0).min() > 0.05


@pytest.mark.parametrize("solver", ONLINE)
def test_streams_keep_the_centre_of_their_first_chunk(solver):
    X, y = problem("bernoulli")
    X[:, -1] -= 0.3
    by, first = np.array([1e3, -1e5, 10.0]), slice(0, 40)
    models = []
    for Z in (X, X + by):
        model = glm("bernoulli", solver=solver, retain_rate=1.0)
        model.partial_fit(Z[first], y[first], classes=[0, 1])
        assert_allclose(model.net_.module_.centre, Z[first].mean(0), rtol=1e-12)
        for start in (40, 80, 0, 40, 80):
            model = pickle.loads(pickle.dumps(model))
            model.partial_fit(Z[start : start + 40], y[start : start + 40])
        assert_allclose(model.net_.module_.centre, Z[first].mean(0), rtol=1e-12)
        models.append(model)
    assert_allclose(output(models[1], X + by), output(models[0], X), atol=1e-8)


@pytest.mark.parametrize("solver", ONLINE)
def test_a_stream_may_begin_with_a_single_row(solver):
    X, y = problem("bernoulli", n=200)
    X[:, -1] -= 0.3
    models = []
    for by in (0.0, 1e4):
        model = glm("bernoulli", solver=solver, retain_rate=1.0)
        for start, stop in pairwise([0, 1, 2, 3, *range(10, 200, 10)]):
            model.partial_fit(X[start:stop] + by, y[start:stop], classes=[0, 1])
        models.append(model)
    assert_allclose(output(models[1], X + by), output(models[0], X), atol=1e-6)
    best = glm("bernoulli", retain_rate=1.0).fit(X, y).score(X, y)
    assert models[0].score(X, y) > best - 0.1


@pytest.mark.parametrize("solver", ["lbfgs", *ONLINE])
def test_warm_starts(solver):
    X, y = problem("poisson")
    X[:, -1] -= 0.3
    by, outputs = shifts(X, 3), []
    for Z in (X, X + by):
        model = glm("poisson", solver=solver, warm_start=True, retain_rate=1.0, tol=1e-2)
        model.fit(Z[:80], y[:80])
        model.coef_ *= 0.9  # about the mean: in the coordinates of the rows
        model.intercept_ += 0.1 * Z.mean(0) @ model.coef_ / 0.9
        tol = 1e-6 if solver == "lbfgs" else 1e-5
        outputs.append(output(model.set_params(tol=tol, max_iter=2000).fit(Z, y), Z))
    assert_allclose(outputs[1], outputs[0], rtol=1e-4)
    assert_allclose(
        outputs[0],
        output(glm("poisson", retain_rate=1.0, tol=1e-6).fit(X, y), X),
        rtol=0.1 if solver == "fisher" else 0.03,
    )


@families
@pytest.mark.parametrize("sparse", [False, True])
def test_dask(family, sparse):
    da = pytest.importorskip("dask.array")
    X, y = problem(family)
    by = shifts(X, 4)
    expected = output(glm(family, retain_rate=1.0).fit(X, y), X)
    rows = da.from_array(X + by, chunks=((50, 0, 70), 3))
    if sparse:
        rows = rows.map_blocks(sp.csr_array)
    model = glm(family, retain_rate=1.0)
    model.fit(rows, da.from_array(y, chunks=((50, 0, 70),)))
    assert_allclose(output(model, X + by), expected, rtol=1e-5, atol=1e-5)


def test_what_float32_cannot_resolve_on_a_cluster_is_said():
    da = pytest.importorskip("dask.array")
    X, y = problem("bernoulli")
    rows = da.from_array((X + np.array([0, 500.0, 0])).astype(np.float32), chunks=(60, 3))
    with pytest.warns(ConvergenceWarning, match=r"columns 1\) .* or pass float64"):
        glm("bernoulli", retain_rate=1.0, tol=0.1).fit(rows, da.from_array(y, chunks=60))


def test_what_float64_cannot_resolve_is_said():
    X, y = problem("bernoulli")
    X[:, 1] = 1e13 + X[:, 1].round()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        glm("bernoulli", retain_rate=1.0).fit(X, y)
    assert any("columns 1)" in str(each.message) for each in caught)


def test_a_small_difference_far_from_zero():
    """Half the rows of each side; ridge regression finds it."""
    rng = np.random.RandomState(0)
    x = 52.52 + 0.01 * rng.standard_normal((2000, 1))
    t = (x[:, 0] > 52.52).astype(float)
    expected = Ridge(alpha=1e-9).fit(x, t).score(x, t)
    assert expected > 0.6
    for form in (np.asarray, sp.csr_matrix, np.float32):
        model = MarginalizedDropoutGLMRegressor(retain_rate=1, alpha=0).fit(form(x), t)
        assert model.score(form(x), t) == pytest.approx(expected, abs=1e-4)
    # Noise so weak that it hardly matters is no reason to find nothing either.
    model = MarginalizedDropoutGLMRegressor(retain_rate=1 - 1e-12, alpha=0).fit(x, t)
    assert model.score(x, t) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [0.0, 1e-4, 1e-2])
def test_constant_columns_are_nothing_special(alpha, dtype):
    X, y = problem("bernoulli")
    Z = np.column_stack([np.full(len(y), 1e5), X, np.ones(len(y)), np.zeros(len(y))])
    for solver, form in (("lbfgs", np.asarray), ("lbfgs", sp.csr_array), ("sgd", np.asarray)):
        options = {"solver": solver, "alpha": alpha, "retain_rate": 1.0}
        model = glm("bernoulli", **options).fit(form(Z.astype(dtype)), y)
        assert model.coef_.dtype == dtype
        expected = output(glm("bernoulli", **options).fit(X.astype(dtype), y), X)
        assert_allclose(output(model, Z), expected, atol=0.02)


@families
@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_the_fisher_information_is_that_of_the_columns_as_they_are(family, form):
    X, y = problem(family)
    Z = X + np.array([0.0, 3.0, -20.0])
    model = glm(family, retain_rate=1.0).fit(form(Z), y)
    eta = Z @ np.atleast_2d(model.coef_).T + model.intercept_
    curvature = FAMILIES[family]().curvature(torch.from_numpy(eta)).numpy()
    expected = curvature.T @ Z**2 / len(Z)
    assert_allclose(np.atleast_2d(model.fisher_diagonal_), expected, rtol=1e-9)


def test_only_what_has_an_intercept_is_centred():
    X, y = problem("bernoulli")
    for solver in ("lbfgs", *ONLINE):
        options = {"solver": solver, "retain_rate": 1.0, "tol": 0.1}
        net = glm("bernoulli", fit_intercept=False, **options).fit(X, y).net_
        assert net.module_.centre is None
        net = glm("bernoulli", **options).fit(X, y).net_
        # L-BFGS finds another one in each fit, and models are not to carry it.
        assert (net.module_.centre is None) == (solver == "lbfgs")
    dropout = glm("bernoulli", solver="fisher", tol=0.1).fit(X, y)
    assert dropout.net_.module_.centre is None  # W's update as it stands


def far_rows(seed, sparse):
    """A binary, a rare, a dense, a constant and two far columns."""
    rng = np.random.RandomState(seed)
    x = rng.standard_normal((40, 6))
    x[:, 0] = x[:, 0] > 0
    x[:, 1] *= rng.uniform(size=40) < 0.1
    x[:, 3] = 0.1
    x[:, 4:] += [1e6, -1e3]
    return x, SparseMatrix(
        [sp.csr_array(x[:15]), sp.csr_array(x[15:])]
    ) if sparse else torch.from_numpy(x)


@pytest.mark.parametrize("sparse", [False, True])
@families
def test_centred_curvature(family, sparse):
    """Against a loop over rows, with unlabelled ones."""
    x, matrix = far_rows(0, sparse)
    rng = np.random.RandomState(1)
    K = 3 if family == "categorical" else 1
    y = torch.from_numpy(rng.randint(3, size=30) if K == 3 else rng.randint(2, size=(30, 1)) * 1.0)
    weight, share = rng.uniform(0.5, 2, 30), 0.3
    batch = WeightedRows.of(matrix, y, torch.from_numpy(weight), share)
    network = NoisyNetwork([6, K], dtype=torch.float64)
    with torch.no_grad():
        network.linears[0].weight.mul_(1e-3)
    centre = x.mean(0)
    objective = Objective(FAMILIES[family](), "quadratic")
    eta = network(torch.from_numpy(x)).detach()
    h = objective.family.curvature(eta).numpy()
    for penalty in (False, True):
        rows = np.concatenate(
            [weight / 30 * (1 - share if penalty else 1), np.full(10, share / 10 * penalty)]
        )
        expected = sum(
            r * np.outer(k, (z - centre) ** 2) for r, k, z in zip(rows, h, x, strict=True)
        )
        found, intercept = objective.mean_curvature(
            network, batch, penalty=penalty, centre=torch.from_numpy(centre)
        )
        assert_allclose(found, expected, rtol=1e-6, atol=1e-30)
        assert_allclose(intercept, rows @ h)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sparse", [False, True])
def test_moments(sparse, dtype):
    x, _ = far_rows(2, False)
    x = x.astype(dtype)
    weight = np.random.RandomState(3).uniform(0.5, 2, 25).astype(dtype)
    index = np.arange(10, 35)
    features = Features(sp.csr_array(x) if sparse else x, "cpu", keep_sparse=True)
    rows = Rows(features, torch.zeros(25), torch.from_numpy(weight), torch.from_numpy(index))
    mean, deviation = rows.moments
    z = x[index].astype(np.longdouble)
    expected = np.average(z, axis=0, weights=weight)
    assert mean.dtype == torch.float64
    assert_allclose(mean, expected.astype(float), rtol=1e-7, atol=1e-7)
    spread = np.average((z - expected) ** 2, axis=0, weights=weight) ** 0.5
    assert_allclose(deviation, spread.astype(float), rtol=1e-5, atol=1e-15)
    assert (mean[3], deviation[3]) == (x[0, 3], 0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_centred_gradients_are_those_of_centred_data(momentum):
    """Steps of an optimiser on rows far from zero, and on the same rows without their mean."""
    x = np.random.RandomState(0).standard_normal((30, 3)) + np.array([5.0, -300, 0])
    x = torch.from_numpy(x)
    y = torch.from_numpy(np.random.RandomState(1).randint(3, size=30))
    far, near = (
        NoisyNetwork([3, 3], seed=None, dtype=torch.float64, centre_input=far)
        for far in (True, False)
    )
    far.linears[0].centre.copy_(x.mean(0))
    for network, rows in ((far, x), (near, x - x.mean(0))):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=momentum)
        for _ in range(5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(rows), y).backward()
            network.centre_gradients()
            with network.centred():
                with network.uncentred():
                    torch.testing.assert_close(network(rows), network(rows))
                optimizer.step()
    torch.testing.assert_close(far.linears[0].weight, near.linears[0].weight)
    torch.testing.assert_close(far(x), near(x - x.mean(0)))


def test_evaluations_within_a_step_leave_the_coordinates():
    x = torch.from_numpy(np.random.RandomState(0).standard_normal((5, 3)) + 100)
    network = NoisyNetwork([3, 1], dtype=torch.float64, centre_input=True)
    network.linears[0].centre.copy_(x.mean(0))
    before = network(x)
    before.sum().backward()
    with network.centred():
        bias = network.linears[0].bias.detach().clone()
        with network.uncentred():
            torch.testing.assert_close(network(x), before)
        with pytest.raises(KeyboardInterrupt), network.uncentred():
            raise KeyboardInterrupt
        assert_array_equal(network.linears[0].bias.detach(), bias)
        assert abs(float(bias[0] - before.mean())) < 1e-10
    torch.testing.assert_close(network(x), before)


def test_bags_of_words_take_no_more_iterations_for_it():
    """As many as with the mean left in, found by a fit that is not centred, or fewer."""
    rng = np.random.RandomState(0)
    y = np.repeat([0, 1], 150)
    topics = rng.dirichlet(np.full(300, 0.1), 2)
    X = sp.csr_array(
        [rng.multinomial(60, 0.4 * topics[c] + 0.6 / 300) > 0 for c in y], dtype=float
    )

    class AsItIs(MarginalizedDropoutGLMClassifier):
        def _centres(self):
            return False

    for options in ({}, {"retain_rate": 0.9}, {"retain_rate": 1.0}):
        centred = MarginalizedDropoutGLMClassifier(**options).fit(X, y)
        plain = AsItIs(**options).fit(X, y)
        assert centred.n_iter_ <= plain.n_iter_ + 1
        assert centred.objective_ == pytest.approx(plain.objective_, abs=1e-5)


@pytest.mark.parametrize("solver", ["lbfgs", "sgd", "adagrad", "fisher"])
def test_columns_that_are_zero_in_most_rows(solver):
    """What is zero and what is stored is a question of the shift."""
    rng = np.random.RandomState(0)
    rare = (rng.uniform(size=(400, 3)) < 0.02) * 1.0
    y = rng.uniform(size=400) < 0.2 + 0.7 * rare[:, 0]
    options = {"retain_rate": 1, "alpha": 1e-4, "random_state": 0}
    model = MarginalizedDropoutGLMClassifier(solver=solver, **options)
    expected = model.fit(rare, y).predict_proba(rare)
    for other in (1 - rare, rare + 3):
        np.testing.assert_allclose(model.fit(other, y).predict_proba(other), expected, atol=1e-4)


@pytest.mark.parametrize("solver", ["adagrad", "fisher"])
def test_a_float32_stream_that_begins_with_a_single_row(solver):
    rng = np.random.RandomState(0)
    X = rng.normal(size=(400, 3))
    y, far = X @ [1, -1, 0.5], (X + 1e6).astype(np.float32)
    narrow, wide = (
        MarginalizedDropoutGLMRegressor(solver=solver, retain_rate=1, random_state=0)
        for _ in range(2)
    )
    for start, end in ((0, 1), (1, 20), (20, 200), (200, 400)):
        narrow.partial_fit(far[start:end], y[start:end])
        wide.partial_fit(far[start:end].astype(float), y[start:end])
    np.testing.assert_allclose(narrow.score(far, y), wide.score(far.astype(float), y), atol=1e-3)
