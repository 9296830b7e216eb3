"""In a notebook an estimator shows its network, the noisy sites and the fitted penalty."""

import re

import pytest
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import estimator_html_repr

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


def table(html):
    """The rows of the network's table and the line below it; None where there is no table."""
    found = re.search(r"<summary>Network</summary>(.*?)</details>", html, re.DOTALL)
    if found is None:
        return None
    rows = re.findall(r"<tr.*?>(.*?)</tr>", found[1], re.DOTALL)[1:]
    return [re.findall("<td>(.*?)</td>", row) for row in rows], re.search(
        "<p>(.*?)</p>", found[1]
    )[1]


def test_before_a_fit_the_parameters_are_shown():
    html = estimator_html_repr(MarginalizedDropoutClassifier((64, 32), noise_placement=[0, 2]))
    assert table(html) == (
        [
            ["input", "", "Dropout(retain_rate=0.95)"],
            ["hidden, relu", "64", ""],
            ["hidden, relu", "32", "Dropout(retain_rate=0.5)"],
            ["output", "", ""],
        ],
        "moments",
    )
    rows, note = table(estimator_html_repr(MarginalizedDropoutGLMRegressor(noise="gaussian")))
    assert rows == [["input", "", "Gaussian(noise_std=0.1)"], ["output", "", ""]]
    assert note == "moments"


def test_after_a_fit_what_was_fitted(iris):
    X, y = iris
    options = {"retain_rate": [0.8, 0.5], "max_iter": 5, "random_state": 0}
    model = MarginalizedDropoutClassifier(8, activation="tanh", **options)
    model.fit(X, y).set_params(hidden_layer_sizes=99, activation="relu", noise_placement="none")
    rows, note = table(estimator_html_repr(model))
    assert rows == [
        ["input", "4", "Dropout(retain_rate=0.8)"],
        ["hidden, tanh", "8", "Dropout(retain_rate=0.5)"],
        ["output categorical", "3", ""],
    ]
    penalty, objective = map(float, re.findall(r"[\d.]+", note))
    assert penalty == pytest.approx(model.penalty_curve_[-1], rel=0.01)
    assert objective == pytest.approx(model.loss_curve_[-1], rel=0.01)


def test_all_kinds_of_models(iris):
    X, y = iris
    sampling = MarginalizedDropoutRegressor(
        8, method="sampling", noise_placement="hidden", max_iter=3, random_state=0
    ).fit(X, X[:, :2])
    rows, note = table(estimator_html_repr(sampling))
    assert rows[0] == ["input", "4", ""]
    assert rows[-1] == ["output normal", "2", ""]
    assert note == "sampling"  # its penalty is not known
    glm = MarginalizedDropoutGLMClassifier(retain_rate=0.5).fit(X, y > 0)
    rows, note = table(estimator_html_repr(glm))
    assert rows == [
        ["input", "4", "Dropout(retain_rate=0.5)"],
        ["output bernoulli", "1", ""],
    ]
    assert table(estimator_html_repr(glm.sparsify())) == (rows, note)
    assert f"penalty of {glm.penalty_:.3g} in an objective of {glm.objective_:.3g}" in note


def test_within_pipelines_and_searches(iris):
    model = MarginalizedDropoutClassifier(8, max_iter=3, random_state=0)
    pipe = make_pipeline(MinMaxScaler(), model).fit(*iris)
    rows, _ = table(estimator_html_repr(pipe))
    assert [row[1] for row in rows] == ["4", "8", "3"]
    search = GridSearchCV(model, {"alpha": [1e-4]}, cv=2).fit(*iris)
    rows, _ = table(estimator_html_repr(search))
    assert [row[1] for row in rows] == ["4", "8", "3"]
    rows, _ = table(
        estimator_html_repr(MarginalizedDropoutClassifier(8, pretrainer=BernoulliRBM()))
    )
    assert len(rows) == 3


@pytest.mark.parametrize(
    "model",
    [
        MarginalizedDropoutClassifier(noise_placement="<nowhere>"),
        MarginalizedDropoutClassifier(hidden_layer_sizes="<b>"),
        MarginalizedDropoutGLMClassifier(retain_rate=-1),
        MarginalizedDropoutGLMClassifier(noise=None),
    ],
)
def test_what_does_not_go_together_is_left_to_fit(model):
    html = estimator_html_repr(model)
    assert table(html) is None
    assert "<summary>Parameters</summary>" in html
    assert "<nowhere>" not in html
