"""Looking into models: penalties by row, site and unit, and the displays."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, PoissonRegressor
from sklearn.model_selection import GridSearchCV, validation_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.inspection import (
    FisherScalingDisplay,
    RegularizationPathDisplay,
    TrainingCurveDisplay,
    effective_penalty,
    penalty_per_sample,
)

mpl.use("Agg")
import matplotlib.pyplot as plt

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

QUICK = {"hidden_layer_sizes": (6, 5), "max_iter": 5, "random_state": 0}


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def fitted_models(X, y):
    counts = np.random.RandomState(0).poisson(np.exp(X[:, 0] / 2))
    yield MarginalizedDropoutClassifier(**QUICK).fit(X, y)
    yield MarginalizedDropoutClassifier(method="quadratic", activation="tanh", **QUICK).fit(X, y)
    yield MarginalizedDropoutClassifier(method="sampling", **QUICK).fit(X, y > 0)
    yield MarginalizedDropoutClassifier(
        method="quadratic", n_probes=1, noise="gaussian", noise_placement=[0, 2], **QUICK
    ).fit(X, y)
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
    family = model._fitted_family()

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


def test_pipelines_and_searches_transform_the_data(iris):
    X, y = load_iris(return_X_y=True)
    model = MarginalizedDropoutGLMClassifier()
    pipe = make_pipeline(StandardScaler(), model)
    expected = penalty_per_sample(clone(model).fit(*iris), iris[0])
    assert_allclose(penalty_per_sample(pipe.fit(X, y), X), expected)
    nested = make_pipeline("passthrough", pipe)
    grid = {"pipeline__marginalizeddropoutglmclassifier__alpha": [1e-4]}
    search = GridSearchCV(nested, grid, cv=2).fit(X, y)
    assert_allclose(penalty_per_sample(search, X), expected)
    assert_allclose(effective_penalty(search, X)[0].sum(), expected.mean())


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


@pytest.mark.parametrize("function", [penalty_per_sample, effective_penalty])
def test_what_cannot_be_looked_into(iris, function):
    X, y = iris
    network = MarginalizedDropoutClassifier(**QUICK)
    with pytest.raises(NotFittedError):
        function(network, X)
    with pytest.raises(TypeError, match=r"sklearn_margdrop.s.*LogisticRegression"):
        function(LogisticRegression().fit(X, y), X)
    with pytest.raises(TypeError, match="Fit the search first"):
        function(GridSearchCV(network, {}), X)
    network.fit(X, y)
    for method in ("moments", "sampling", "exact"):
        with pytest.raises(ValueError, match=r"\['diagonal', 'quadratic'\]"):
            function(network, X, method=method)
    glm = MarginalizedDropoutGLMClassifier().fit(X, y)
    with pytest.raises(ValueError, match=r"\['moments', 'quadratic'\]"):
        function(glm, X, method="diagonal")
    with pytest.raises(ValueError, match="features"):
        function(network, X[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        function(glm, np.full_like(X, np.nan))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu(iris):
    X, y = iris
    model = MarginalizedDropoutClassifier(device="cuda", **QUICK).fit(X, y)
    total = sum(part.sum() for part in effective_penalty(model, X).values())
    assert_allclose(total, penalty_per_sample(model, X).mean())


def test_training_curve(iris):
    X, y = iris
    model = MarginalizedDropoutClassifier(early_stopping=True, **QUICK)
    pipe = make_pipeline(StandardScaler(), model).fit(X, y)
    display = TrainingCurveDisplay.from_estimator(pipe)
    objective, penalty, score = (line.get_ydata() for line in display.lines_)
    assert_array_equal(objective, pipe[-1].loss_curve_)
    assert_array_equal(penalty, pipe[-1].penalty_curve_)
    assert_array_equal(score, pipe[-1].validation_scores_)
    assert_array_equal(display.lines_[0].get_xdata(), [1, 2, 3, 4, 5])
    assert display.ax_.get_xlabel() == "Epoch"
    assert display.score_ax_.get_ylabel() == "Validation score"
    assert len(display.score_ax_.get_legend().get_texts()) == 3


def test_training_curves_of_other_models(iris):
    X, y = iris
    _, ax = plt.subplots()
    glm = MarginalizedDropoutGLMClassifier().fit(X, y)
    display = TrainingCurveDisplay.from_estimator(glm, ax=ax, linewidth=3)
    assert display.ax_ is ax
    assert display.score_ax_ is None
    assert ax.get_xlabel() == "Iteration"
    assert [line.get_linewidth() for line in display.lines_] == [3, 3]
    assert_array_equal(display.lines_[0].get_ydata(), glm.loss_curve_)
    assert display.lines_[1].get_ydata()[-1] == glm.penalty_
    only = TrainingCurveDisplay.from_estimator(glm.sparsify())
    assert len(only.lines_) == 1
    sampling = MarginalizedDropoutClassifier(method="sampling", **QUICK).fit(X, y)
    assert TrainingCurveDisplay.from_estimator(sampling).penalty is None
    # Validation came later: its curve starts there.
    warm = MarginalizedDropoutClassifier(warm_start=True, **QUICK).fit(X, y)
    warm.set_params(early_stopping=True).fit(X, y)
    score = TrainingCurveDisplay.from_estimator(warm).validation_score
    assert_array_equal(np.isnan(score), [True] * 5 + [False] * 5)
    with pytest.raises(NotFittedError):
        TrainingCurveDisplay.from_estimator(MarginalizedDropoutClassifier())


def test_path_of_coefficients(iris):
    X, y = load_breast_cancer(return_X_y=True)
    names = [f"feature {j}" for j in range(30)]
    frame = pd.DataFrame(X, columns=names)
    pipe = make_pipeline(StandardScaler(), MarginalizedDropoutGLMClassifier())
    display = RegularizationPathDisplay.from_estimator(
        pipe, frame, y, retain_rates=[0.9, 0.3], max_features=12
    )
    assert display.coefs.shape == (2, 30)
    expected = clone(pipe).set_params(marginalizeddropoutglmclassifier__retain_rate=0.3)
    assert_array_equal(display.coefs[1], expected.fit(frame, y)[-1].coef_[0])
    assert len(display.lines_) == 12
    largest = np.abs(display.coefs).max(0).argmax()
    assert display.lines_[0].get_label() == names[largest]
    assert_array_equal(display.lines_[0].get_xdata(), [0.3, 0.9])
    assert_array_equal(display.lines_[0].get_ydata(), display.coefs[::-1, largest])
    with pytest.raises(NotFittedError):
        penalty_per_sample(pipe, X)  # the pipeline itself was not fitted


def test_path_of_one_class_or_output(iris):
    X, y = iris
    labels = np.array(list("abc"))[y]
    model = MarginalizedDropoutGLMClassifier()
    options = {"retain_rates": [0.5]}
    display = RegularizationPathDisplay.from_estimator(model, X, labels, target="b", **options)
    assert_array_equal(display.coefs[0], clone(model).fit(X, labels).coef_[1])
    with pytest.raises(ValueError, match=r"one of the classes \['a', 'b', 'c'\]"):
        RegularizationPathDisplay.from_estimator(model, X, labels, **options)
    with pytest.raises(ValueError, match="None for two classes"):
        RegularizationPathDisplay.from_estimator(model, X, y > 0, target=True, **options)
    regressor = MarginalizedDropoutGLMRegressor()
    display = RegularizationPathDisplay.from_estimator(
        regressor, X[:, 2:], X[:, :2], target=1, **options
    )
    assert_array_equal(display.coefs[0], clone(regressor).fit(X[:, 2:], X[:, :2]).coef_[1])
    with pytest.raises(ValueError, match="position of an output, 0 to 1"):
        RegularizationPathDisplay.from_estimator(regressor, X[:, 2:], X[:, :2], **options)


def test_path_of_scores(iris):
    X, y = iris
    model = MarginalizedDropoutClassifier(**QUICK)
    options = {"cv": 3, "scoring": "neg_log_loss"}
    display = RegularizationPathDisplay.from_estimator(
        model, X, y, retain_rates=[0.5, 0.9], **options
    )
    train, test = validation_curve(
        model, X, y, param_name="retain_rate", param_range=[0.5, 0.9], **options
    )
    assert_array_equal(display.test_scores, test)
    assert_array_equal(display.train_scores, train)
    assert_allclose(display.lines_[0].get_ydata(), test.mean(1))
    assert display.ax_.get_ylabel() == "Negative log loss"
    glm = MarginalizedDropoutGLMClassifier()
    display = RegularizationPathDisplay.from_estimator(
        glm, X, y, kind="score", retain_rates=[0.5], cv=2
    )
    assert display.coefs is None


def test_path_with_unlabeled_rows(iris):
    X, y = iris
    model = MarginalizedDropoutGLMClassifier()
    display = RegularizationPathDisplay.from_estimator(
        model, X, y > 0, retain_rates=[0.5], fit_params={"X_unlabeled": 3 * X}
    )
    expected = clone(model).fit(X, y > 0, X_unlabeled=3 * X).coef_
    assert_array_equal(display.coefs, expected)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (MarginalizedDropoutClassifier(), {"kind": "coef"}, "use kind='score'"),
        (MarginalizedDropoutGLMClassifier(noise="gaussian"), {}, "param_name='noise_std'"),
        (MarginalizedDropoutGLMClassifier(), {"kind": "path"}, "kind must be"),
        (MarginalizedDropoutGLMClassifier(), {"retain_rates": [0, 0.5]}, r"in \(0, 1\]"),
        (MarginalizedDropoutGLMClassifier(), {"retain_rates": []}, r"in \(0, 1\]"),
    ],
)
def test_paths_that_cannot_be_drawn(iris, model, options, message):
    with pytest.raises(ValueError, match=message):
        RegularizationPathDisplay.from_estimator(model, *iris, **options)


TEXTS = ["a good film", "good fun", "fine, and fun", "a bad film", "bad, and dull", "so dull"]


def test_fisher_scaling_of_text():
    y = np.array([1, 1, 1, 0, 0, 0])
    pipe = make_pipeline(CountVectorizer(), MarginalizedDropoutGLMClassifier()).fit(TEXTS, y)
    display = FisherScalingDisplay.from_estimator(pipe, max_features=4)
    model = pipe[-1]
    assert_array_equal(display.coef, model.coef_[0])
    assert_array_equal(display.fisher_diagonal, model.fisher_diagonal_[0])
    assert_array_equal(display.feature_names, pipe[0].get_feature_names_out())
    assert set(display.shown_) == set(np.argsort(-np.abs(model.coef_[0]))[:4])
    left, right = display.axes_
    assert_allclose([bar.get_width() for bar in left.patches], model.coef_[0][display.shown_])
    assert (np.diff(model.coef_[0][display.shown_]) >= 0).all()
    labels = [text.get_text() for text in left.get_yticklabels()]
    assert labels == list(display.feature_names[display.shown_])
    assert_allclose(right.lines[0].get_xdata(), model.fisher_diagonal_[0][display.shown_])
    # From its own predictions comes the same.
    X = pipe[0].transform(TEXTS)
    probability = pipe.predict_proba(TEXTS)[:, 1]
    again = FisherScalingDisplay.from_predictions(X, probability, model.coef_[0])
    assert_allclose(again.fisher_diagonal, display.fisher_diagonal, rtol=1e-6)
    dense = FisherScalingDisplay.from_predictions(X.toarray(), probability, model.coef_[0])
    assert_allclose(dense.fisher_diagonal, again.fisher_diagonal)


def test_fisher_scaling_of_other_models(iris):
    X, y = iris
    frame = pd.DataFrame(X, columns=list("abcd"))
    counts = np.random.RandomState(0).poisson(np.exp(X[:, 0] / 2))
    ours = MarginalizedDropoutGLMRegressor(family="poisson", retain_rate=1, alpha=1).fit(X, counts)
    theirs = PoissonRegressor(alpha=1).fit(X, counts)
    _, axes = plt.subplots(1, 2)
    display = FisherScalingDisplay.from_predictions(
        frame, theirs.predict(X), theirs.coef_, family="poisson", axes=axes
    )
    assert list(display.axes_) == list(axes)
    assert list(display.feature_names) == list("abcd")
    assert_allclose(display.fisher_diagonal, ours.fisher_diagonal_, rtol=1e-3)
    normal = FisherScalingDisplay.from_predictions(X, X[:, 0], np.ones(4), family="normal")
    assert_allclose(normal.fisher_diagonal, (X**2).mean(0))
    glm = MarginalizedDropoutGLMClassifier().fit(frame, y)
    display = FisherScalingDisplay.from_estimator(glm, target=2)
    assert_array_equal(display.coef, glm.coef_[2])
    assert list(display.feature_names) == list("abcd")
    own = FisherScalingDisplay.from_estimator(glm.sparsify(), target=2, feature_names=list("wxyz"))
    assert list(own.feature_names) == list("wxyz")
    assert_array_equal(own.coef, display.coef)


def test_fisher_scaling_that_cannot_be_drawn(iris):
    X, y = iris
    network = MarginalizedDropoutClassifier(**QUICK).fit(X, y)
    with pytest.raises(TypeError, match="effective_penalty"):
        FisherScalingDisplay.from_estimator(network)
    glm = MarginalizedDropoutGLMClassifier().fit(X, y)
    with pytest.raises(ValueError, match="target must be one of"):
        FisherScalingDisplay.from_estimator(glm)
    with pytest.raises(ValueError, match="feature_names has the shape"):
        FisherScalingDisplay.from_estimator(glm, target=0, feature_names=["a"])
    proba, coef = glm.predict_proba(X), glm.coef_
    draw = FisherScalingDisplay.from_predictions
    with pytest.raises(ValueError, match="one-dimensional"):
        draw(X, proba, coef[0])
    with pytest.raises(ValueError, match="one-dimensional"):
        draw(X, proba[:, 0], coef)
    with pytest.raises(ValueError, match="3 values for 4 features"):
        draw(X, proba[:, 0], coef[0, :3])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        draw(X[:5], proba[:, 0], coef[0])
    with pytest.raises(ValueError, match="from 0 to 1"):
        draw(X, 2 + proba[:, 0], coef[0])
    with pytest.raises(ValueError, match="family must be one of"):
        draw(X, proba[:, 0], coef[0], family="categorical")


def test_displays_say_that_matplotlib_is_missing():
    code = """
import sys
sys.modules["matplotlib"] = None
from sklearn_margdrop.inspection import *
from sklearn_margdrop import MarginalizedDropoutGLMClassifier
X, y = [[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1]
model = MarginalizedDropoutGLMClassifier(retain_rate=0.9).fit(X, y)
print(penalty_per_sample(model, X).shape)
for draw in (
    lambda: TrainingCurveDisplay.from_estimator(model),
    lambda: RegularizationPathDisplay.from_estimator(model, X, y),
    lambda: FisherScalingDisplay.from_estimator(model),
    lambda: FisherScalingDisplay.from_predictions(X, model.predict_proba(X)[:, 1], model.coef_[0]),
    lambda: TrainingCurveDisplay(objective=[1]).plot(),
):
    try:
        draw()
    except ImportError as error:
        print("requires matplotlib" in str(error))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split("\n")[:-1] == ["(4,)"] + ["True"] * 5, run.stderr
