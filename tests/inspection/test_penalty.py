"""The penalty of a fitted model by sample and by unit, against autograd's derivatives."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.inspection import (
    effective_penalty,
    penalty_per_sample,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

QUICK = {"hidden_layer_sizes": (6, 5), "retain_rate": 0.5, "max_iter": 5, "random_state": 0}


def fitted_models(X, y):
    counts = np.random.RandomState(0).poisson(np.exp(X[:, 0] / 2))
    yield MarginalizedDropoutClassifier(**QUICK).fit(X, y)
    yield MarginalizedDropoutClassifier(method="quadratic", activation="tanh", **QUICK).fit(X, y)
    yield MarginalizedDropoutClassifier(method="sampling", **QUICK).fit(X, y > 0)
    yield MarginalizedDropoutClassifier(
        method="quadratic", n_probes=None, noise="gaussian", noise_placement=[0, 2], **QUICK
    ).fit(X, y)
    yield MarginalizedDropoutClassifier(method="diagonal", **QUICK).fit(X, y > 0)
    yield MarginalizedDropoutRegressor(family="poisson", **QUICK).fit(X, counts)
    yield MarginalizedDropoutRegressor(**QUICK).fit(X, X[:, :2])
    for method in ("moments", "quadratic"):
        for noise in ("dropout", "gaussian"):
            yield MarginalizedDropoutGLMClassifier(method=method, noise=noise).fit(X, y)
            yield MarginalizedDropoutGLMRegressor(
                method=method, noise=noise, family="poisson", retain_rate=0.8
            ).fit(X, counts)
    yield MarginalizedDropoutGLMClassifier(fit_intercept=False).fit(X, y > 0)
    yield MarginalizedDropoutGLMClassifier(solver="adagrad", method="sampling").fit(X, y > 0)


def by_hand(model, X, site):
    """The second-order penalty of noise at one site, by unit, from autograd's Jacobians."""
    network = model.net_.module_
    split = 2 * site
    noise = network.noise.get(split)
    x = torch.from_numpy(X)
    for layer in network.layers[:split]:
        x = layer(x)
    family = model._target.family

    def head(z):
        for layer in network.layers[split:]:
            z = layer(z)
        return z

    rows = []
    for z in x.detach():
        jacobian = torch.autograd.functional.jacobian(head, z)
        hessian = torch.autograd.functional.hessian(
            lambda eta: family.log_partition(eta[None])[0], head(z).detach()
        )
        rows.append(0.5 * noise.variance(z) * (jacobian.T @ hessian @ jacobian).diagonal())
    return torch.stack(rows).detach().numpy()


def test_parts_are_the_second_order_of_each_unit(iris):
    X, y = iris
    for model in fitted_models(X, y):
        parts = effective_penalty(model, X, method="quadratic")
        network = model.net_.module_
        assert list(parts) == sorted(position // 2 for position in network.noise)
        expected = {site: by_hand(model, X, site) for site in parts}
        for site, values in parts.items():
            assert_allclose(values, expected[site].mean(0), rtol=1e-9, atol=1e-12)
        total = sum(each.sum(1) for each in expected.values())
        assert_allclose(
            penalty_per_sample(model, X, method="quadratic"), total, rtol=1e-9, atol=1e-12
        )


def test_parts_add_up_to_the_penalty_of_the_fit(iris):
    X, y = iris
    for model in fitted_models(X, y):
        R = penalty_per_sample(model, X)
        assert R.shape == (150,)
        assert (R >= 0).all()
        total = sum(part.sum() for part in effective_penalty(model, X).values())
        assert_allclose(total, R.mean(), rtol=1e-9)
        if hasattr(model, "penalty_") and model.solver == "lbfgs":
            assert_allclose(R.mean(), model.penalty_, rtol=1e-6)


def test_moments_are_divided_as_their_variance_is(iris):
    """For one linear predictor R depends on its variance alone, to which features add."""
    X, y = iris
    model = MarginalizedDropoutGLMClassifier(retain_rate=0.3).fit(X, y > 0)
    variances = X**2 * model.coef_[0] ** 2
    R = penalty_per_sample(model, X)
    expected = (R[:, None] * variances / variances.sum(1, keepdims=True)).mean(0)
    assert_allclose(effective_penalty(model, X)[0], expected, rtol=1e-9)


def test_moments_of_a_network_are_divided_as_the_layers_push_their_variance(iris):
    X, y = iris
    model = MarginalizedDropoutClassifier(activation="tanh", **QUICK).fit(X, y > 0)
    R = penalty_per_sample(model, X)
    diagonal = penalty_per_sample(model, X, method="diagonal")
    for site, part in effective_penalty(model, X).items():
        rows = [effective_penalty(model, x[None], method="diagonal")[site] for x in X]
        assert_allclose(part, ((R / diagonal)[:, None] * rows).mean(0), rtol=1e-9)


@pytest.mark.parametrize("labels", [lambda y: y, lambda y: y > 0], ids=["several", "two"])
def test_parts_add_up_where_the_curvature_rounds_to_zero(iris, labels):
    X, y = iris[0].astype(np.float32), labels(iris[1])
    model = MarginalizedDropoutGLMClassifier().fit(X, y)
    model.coef_ = 1000 * model.coef_
    R = penalty_per_sample(model, X).mean()
    assert penalty_per_sample(model, X, method="quadratic").min() == 0
    assert_allclose(effective_penalty(model, X)[0].sum(), R, rtol=1e-5)


def test_blocks_are_invisible(iris, monkeypatch):
    X, y = iris
    model = MarginalizedDropoutClassifier(method="quadratic", **QUICK).fit(X, y)
    whole = penalty_per_sample(model, X), effective_penalty(model, X)
    monkeypatch.setattr("sklearn_margdrop.numerics.memory._BLOCK_ELEMENTS", 100)
    assert_allclose(penalty_per_sample(model, X), whole[0], rtol=1e-12)
    for site, part in effective_penalty(model, X).items():
        assert_allclose(part, whole[1][site], rtol=1e-12)


def test_without_noise_there_is_nothing(iris):
    X, y = iris
    for model in (
        MarginalizedDropoutClassifier(noise_placement="none", **QUICK),
        MarginalizedDropoutGLMClassifier(retain_rate=1.0),
        MarginalizedDropoutGLMClassifier(noise="gaussian", noise_std=0),
    ):
        model.fit(X, y)
        assert_array_equal(penalty_per_sample(model, X), np.zeros(150))
        assert effective_penalty(model, X) == {}


@pytest.mark.parametrize("noise", ["dropout", "gaussian"])
@pytest.mark.parametrize("method", ["moments", "quadratic"])
def test_sparse_rows_are_like_dense_ones(iris, noise, method):
    X, y = iris
    X = np.where(np.abs(X) < 0.5, 0, X)
    glm = MarginalizedDropoutGLMClassifier(method=method, noise=noise).fit(X, y)
    network = MarginalizedDropoutClassifier(noise=noise, **QUICK).fit(X, y)
    for model in (glm, network):
        for container in (sp.csr_array, sp.csc_array, sp.csr_matrix):
            assert_allclose(penalty_per_sample(model, container(X)), penalty_per_sample(model, X))
            for site, part in effective_penalty(model, container(X)).items():
                assert_allclose(part, effective_penalty(model, X)[site], atol=1e-14)


def test_coefficients_set_by_hand_or_sparse_are_what_counts(iris):
    X, y = iris
    model = MarginalizedDropoutGLMClassifier().fit(X, y)
    before = penalty_per_sample(model, X)
    assert_allclose(penalty_per_sample(model.sparsify(), X), before)
    model.densify()
    model.coef_ = 0 * model.coef_
    assert_allclose(penalty_per_sample(model, X), np.zeros(150), atol=1e-15)
    assert effective_penalty(model, X)[0].tolist() == [0] * 4


def test_float32_stays(iris):
    X, y = iris[0].astype(np.float32), iris[1]
    for model in (MarginalizedDropoutClassifier(**QUICK), MarginalizedDropoutGLMClassifier()):
        R = penalty_per_sample(model.fit(X, y), X)
        assert R.dtype == np.float32
        assert {part.dtype for part in effective_penalty(model, X).values()} == {R.dtype}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu(iris):
    X, y = iris
    model = MarginalizedDropoutClassifier(device="cuda", **QUICK).fit(X, y)
    total = sum(part.sum() for part in effective_penalty(model, X).values())
    assert_allclose(total, penalty_per_sample(model, X).mean())
