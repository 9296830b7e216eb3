"""Code as users write it, which ``mypy --strict`` accepts with the types that it names.

``assert_type`` does nothing when the code runs, which shows that the code does what it says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor, nn

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.estimators.nets import TargetNet
from sklearn_margdrop.families import FAMILIES, Categorical, Family, Normal
from sklearn_margdrop.inspection import (
    FisherScalingDisplay,
    RegularizationPathDisplay,
    TrainingCurveDisplay,
    effective_penalty,
    penalty_per_sample,
)
from sklearn_margdrop.layers import Elementwise, Jacobian, NoisyInput, linearize
from sklearn_margdrop.networks import NoisyNetwork, Trace, trace
from sklearn_margdrop.noise import NOISE_MODELS, Dropout, Gaussian, Noise
from sklearn_margdrop.numerics.quadrature import logsumexp_gap, softplus_gap
from sklearn_margdrop.numerics.sparse import Matrix, SparseMatrix
from sklearn_margdrop.objective import Objective, Terms
from sklearn_margdrop.penalties import diagonal, moments, moments_by_pairs, quadratic
from sklearn_margdrop.training.lbfgs import FisherLBFGS
from sklearn_margdrop.training.optimizers import Fisher
from sklearn_margdrop.weighting import WeightedRows


class Uniform(Noise):
    """z~ = z + U(-b, b): variance b^2 / 3. A user's own noise model."""

    parameter = "noise_std"

    @property
    def is_null(self) -> bool:
        return self.strength == 0

    def variance(self, z: Tensor) -> Tensor:
        return torch.full_like(z, self.strength**2 / 3)

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        uniform = torch.rand(z.shape, generator=generator, dtype=z.dtype)
        return z + self.strength * (2 * uniform - 1)


class Halved(nn.Module):
    """A user's own layer."""

    def forward(self, z: Tensor) -> Tensor:
        return z / 2


def halved(layer: Halved, z: Tensor) -> tuple[Tensor, Jacobian]:
    return layer(z), Elementwise(torch.full_like(z, 0.5), lambda: torch.zeros_like(z))


def make_batch() -> WeightedRows:
    return WeightedRows.of(torch.ones(4, 3), torch.tensor([0, 1, 1, 0]))


def test_noise_models_and_families() -> None:
    noise = Uniform(1.5)
    assert_type(noise.variance(torch.zeros(2)), Tensor)
    assert_type(noise.variance_slope(torch.zeros(2)), Tensor | None)
    assert_type(noise.draw(torch.zeros(2)), tuple[Tensor, Tensor | None])
    assert_type(Gaussian(0.1).is_null, bool)
    assert_type(NOISE_MODELS["dropout"], type[Noise])
    assert_type(FAMILIES["poisson"], type[Family])
    family = Categorical()
    assert_type(family.mean(torch.zeros(2, 3)), Tensor)
    assert_type(family.curvature_rank(3), int)
    assert_type(family.labels, bool)
    assert noise.variance(torch.zeros(2)).tolist() == [0.75, 0.75]


def test_networks_and_penalties() -> None:
    network = NoisyNetwork([3, 4, 2], noise={0: Dropout(0.8), 1: Uniform(0.1)})
    traced = network.trace(torch.ones(4, 3))
    assert_type(traced, Trace)
    assert_type(traced.eta, Tensor)
    assert_type(traced.jacobians, tuple[Jacobian, ...])
    assert_type(traced.output.weight, Tensor)
    family = Categorical()
    assert_type(quadratic(traced, family), Tensor)
    assert_type(moments_by_pairs(network, family, torch.ones(4, 3)), tuple[Tensor, Tensor])
    assert_type(diagonal(traced, family), Tensor)
    assert_type(softplus_gap(torch.zeros(2), torch.ones(2)), Tensor)
    assert_type(logsumexp_gap(torch.zeros(2, 3), torch.ones(2, 3)), Tensor)
    assert diagonal(traced, family).shape == (4,)


def test_own_layers() -> None:
    linearize.register(Halved, halved)
    layers = nn.Sequential(nn.Linear(3, 4), Halved(), nn.Linear(4, 1))
    traced = trace(layers, torch.ones(2, 3), {0: Dropout(0.5)})
    assert_type(traced, Trace)
    assert quadratic(traced, Normal()).shape == (2,)


def test_sparse_rows() -> None:
    x = SparseMatrix([csr_array([[0.0, 1.0], [2.0, 0.0]])])
    assert_type(x @ torch.ones(2, 1, dtype=x.dtype), Tensor)
    assert_type(x.shape, tuple[int, int])
    network = NoisyNetwork([2, 1], noise={0: Dropout(0.5)}, dtype=x.dtype)
    traced = network.trace(x)
    assert_type(traced.variances, tuple[Matrix | None, ...])
    assert_type(moments(traced, Normal()), Tensor)
    source = traced.sources[0]
    assert source is not None
    noise, z = source
    variance = traced.variances[0]
    assert variance is not None
    assert_type(NoisyInput(noise, z, variance, traced.output.weight).output_variance(), Tensor)


def test_objective_and_optimizers() -> None:
    network = NoisyNetwork([3, 2], noise={0: Dropout(0.8)}, seed=None)
    objective = Objective(Categorical(), "diagonal", alpha=0.1)
    terms = objective.backward(network, make_batch())
    assert_type(terms, Terms)
    assert_type(terms.total, Tensor)
    assert_type(objective.mean_curvature(network, make_batch()), list[Tensor])
    fisher = Fisher(network.parameters(), lr=1.0)
    fisher.accumulate(objective.mean_curvature(network, make_batch()), n_rows=4)
    fisher.step()
    optimizer = FisherLBFGS([{"params": list(network.parameters())}])
    optimizer.precondition(objective.mean_curvature(network, make_batch()))
    assert_type(optimizer.decrement, float)

    def closure() -> Tensor:
        return objective.backward(network, make_batch()).total

    assert_type(optimizer.step(closure), float)
    assert torch.isfinite(terms.total)


def make_data() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    X = np.random.RandomState(0).normal(size=(40, 3))
    return X, (X[:, 0] > 0).astype(np.int64)


def test_classifiers(tmp_path: Path) -> None:
    X, y = make_data()
    clf = MarginalizedDropoutClassifier((8,), retain_rate=[0.9, 0.5], tol=0.1, random_state=0)
    assert_type(clf.fit(X, y), MarginalizedDropoutClassifier)
    assert_type(clf.partial_fit(X, y, sample_weight=y + 1), MarginalizedDropoutClassifier)
    assert_type(clf.predict(X), NDArray[Any])
    assert_type(clf.predict_proba(X), NDArray[Any])
    assert_type(clf.predict_log_proba(X.tolist()), NDArray[Any])
    assert_type(clf.decision_function(csr_array(X)), NDArray[Any])
    assert_type(clf.score(X, y), float)
    assert_type(clf.classes_, NDArray[Any])
    assert_type(clf.coefs_, list[NDArray[Any]])
    assert_type(clf.loss_curve_, list[float])
    assert_type(clf.validation_scores_, list[float] | None)
    assert_type(clf.net_, TargetNet)
    assert_type(clf.net_.module_, NoisyNetwork)
    assert_type(clf.n_iter_, int)
    clf.to_onnx(tmp_path / "model.onnx")
    assert clf.net_.module_.linears[0].in_features == clf.n_features_in_ == 3


def test_regressors() -> None:
    X, y = make_data()
    reg = MarginalizedDropoutRegressor(
        8, family="poisson", learning_rate_init=0.05, tol=1e-2, random_state=0
    )
    assert_type(reg.fit(X, y, X_unlabeled=X), MarginalizedDropoutRegressor)
    assert_type(reg.partial_fit(X, y), MarginalizedDropoutRegressor)
    assert_type(reg.predict(X), NDArray[Any])
    assert_type(reg.score(X, y, sample_weight=y + 1), float)
    assert_type(reg.n_outputs_, int)
    assert reg.predict(X).shape == (40,)


def test_generalised_linear_models() -> None:
    X, y = make_data()
    clf = MarginalizedDropoutGLMClassifier(class_weight={0: 1, 1: 2}, device=torch.device("cpu"))
    assert_type(clf.fit(csr_array(X), y), MarginalizedDropoutGLMClassifier)
    assert_type(clf.sparsify().densify(), MarginalizedDropoutGLMClassifier)
    assert_type(clf.intercept_, NDArray[Any])
    assert_type(clf.fisher_diagonal_, NDArray[Any])
    assert_type(clf.penalty_, float)
    reg = MarginalizedDropoutGLMRegressor(solver="sgd", tol=0.1, random_state=0)
    assert_type(reg.partial_fit(X, y), MarginalizedDropoutGLMRegressor)
    assert_type(reg.predict(X), NDArray[Any])
    assert_type(reg.restart_objectives_, NDArray[np.float64])
    assert clf.coef_.shape == (1, 3)


def test_inspection() -> None:
    X, y = make_data()
    clf = MarginalizedDropoutGLMClassifier().fit(X, y)
    assert_type(penalty_per_sample(clf, X, method="quadratic"), NDArray[Any])
    assert_type(effective_penalty(clf, X), dict[int, NDArray[Any]])
    curve = TrainingCurveDisplay.from_estimator(clf)
    assert_type(curve, TrainingCurveDisplay)
    assert_type(curve.ax_, Axes)
    assert_type(curve.score_ax_, Axes | None)
    scaling = FisherScalingDisplay.from_estimator(clf, feature_names=["a", "b", "c"])
    assert_type(scaling, FisherScalingDisplay)
    assert_type(scaling.shown_, NDArray[np.intp])
    path = RegularizationPathDisplay.from_estimator(clf, X, y, retain_rates=[0.5, 0.9])
    assert_type(path, RegularizationPathDisplay)
    assert_type(path.plot(curve.ax_), RegularizationPathDisplay)
    plt.close("all")
    assert penalty_per_sample(clf, X).shape == (40,)
