"""Warnings point at the line of the user that led to them, whatever stands between."""

import pickle
import threading
import warnings
from functools import partial
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, UndefinedMetricWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback

import sklearn_margdrop
from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)

X = np.random.RandomState(0).randn(30, 3)
Y = X[:, 0] + 0.1 * X[:, 1]
NETWORK = {"hidden_layer_sizes": (2,), "learning_rate": "constant", "max_iter": 1}
SHORT = MarginalizedDropoutRegressor(random_state=0, **NETWORK)
FOUR = [
    SHORT,
    MarginalizedDropoutClassifier(random_state=0, **NETWORK),
    MarginalizedDropoutGLMRegressor(solver="sgd", max_iter=1),
    MarginalizedDropoutGLMClassifier(solver="sgd", max_iter=1),
]


def caught(call):
    """The warnings of a call, under Python's default filter."""
    with warnings.catch_warnings(record=True) as found:
        warnings.resetwarnings()
        warnings.simplefilter("default")
        call()
    return found


def assert_points_here(call, category, at_least=1):
    found = [each for each in caught(call) if issubclass(each.category, category)]
    assert len(found) >= at_least
    # The line of the lambda, whose file is this one.
    lines = {(each.filename, each.lineno) for each in found}
    assert lines == {(__file__, call.__code__.co_firstlineno)}


@pytest.fixture
def named():
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(X, columns=list("abc"))


@pytest.mark.parametrize("model", FOUR, ids=lambda model: type(model).__name__)
def test_of_a_fit(model):
    y = Y > 0 if hasattr(model, "predict_proba") else Y
    assert_points_here(lambda: clone(model).fit(X, y), ConvergenceWarning)
    assert_points_here(lambda: clone(model).fit(X, y[:, None]), DataConversionWarning)
    classes = {"classes": [False, True]} if hasattr(model, "predict_proba") else {}
    column = y[:, None]
    assert_points_here(
        lambda: clone(model).partial_fit(X, column, **classes), DataConversionWarning
    )


@pytest.mark.parametrize("model", FOUR, ids=lambda model: type(model).__name__)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_of_names_of_features(model, named):
    y = Y > 0 if hasattr(model, "predict_proba") else Y
    with_names, without = clone(model).fit(named, y), clone(model).fit(X, y)
    for call in (
        lambda: with_names.predict(X),
        lambda: with_names.score(X, y),
        lambda: with_names.partial_fit(X, y),
        lambda: without.predict(named),
        lambda: without.partial_fit(named, y),
    ):
        assert_points_here(call, UserWarning)
    with pytest.raises(ValueError, match="3 features"), pytest.warns(UserWarning, match="names"):
        with_names.predict(X[:, :2])


def test_of_a_score():
    model = MarginalizedDropoutGLMRegressor().fit(X, Y)
    assert_points_here(lambda: model.score(X[:1], Y[:1]), UndefinedMetricWarning)


def test_below_what_scikit_learn_wraps_around_a_fit():
    grid = {"alpha": [1e-4, 1e-3]}
    for call in (
        lambda: make_pipeline(StandardScaler(), SHORT).fit(X, Y),
        lambda: GridSearchCV(SHORT, grid, n_jobs=1).fit(X, Y),
        lambda: cross_val_score(SHORT, X, Y),
        lambda: MultiOutputRegressor(SHORT).fit(X, np.column_stack([Y, -Y])),
        lambda: GridSearchCV(make_pipeline(StandardScaler(), SHORT), {}, cv=2).fit(X, Y),
    ):
        assert_points_here(call, ConvergenceWarning)


def test_of_a_pretrainer():
    model = SHORT.__class__((2,), pretrainer=BernoulliRBM(), random_state=0)
    assert_points_here(lambda: model.fit(10 * X, Y), UserWarning)


def test_of_unpickling():
    model = MarginalizedDropoutGLMRegressor().fit(X, Y)
    model.net_.device = "mtia"  # which few machines have
    saved = pickle.dumps(model)
    assert_points_here(lambda: pickle.loads(saved), UserWarning)


class Fits(Callback):
    def on_train_begin(self, net, **kwargs):
        SHORT.fit(X, Y)


def test_of_a_fit_in_a_callback_and_the_one_around_it():
    found = caught(lambda: clone(SHORT).set_params(callbacks=[Fits()]).fit(X, Y))
    inner = Fits.on_train_begin.__code__.co_firstlineno + 1
    here = test_of_a_fit_in_a_callback_and_the_one_around_it.__code__.co_firstlineno + 1
    assert [(w.filename, w.lineno) for w in found] == [(__file__, inner), (__file__, here)]


def test_each_line_warns():
    def call():
        SHORT.fit(X, Y)
        SHORT.fit(X, Y)

    assert len(caught(call)) == 2


def test_where_no_line_is_the_users():
    thread = threading.Thread(target=clone(SHORT).fit, args=(X, Y))
    (warning,) = caught(lambda: (thread.start(), thread.join()))
    assert warning.filename.startswith(sklearn_margdrop.__path__[0])


def test_what_runs_as_a_script_is_known_by_its_specification():
    """The workers of joblib are modules that run as scripts."""

    def run(spec):
        space = {"__name__": "__main__", "__spec__": spec}
        exec(compile("def call(function):\n    function()", "main.py", "exec"), space)
        (found,) = caught(lambda: space["call"](SHORT_FIT))
        return found.filename

    assert run(None) == "main.py"
    assert run(ModuleSpec("joblib.externals.worker", None)) == __file__


SHORT_FIT = partial(clone(SHORT).fit, X, Y)
