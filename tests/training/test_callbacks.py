"""scikit-learn's callbacks see every epoch and iteration, below meta-estimators too."""

import io

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.datasets import load_iris
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

NETWORK = {"hidden_layer_sizes": 8, "max_iter": 5, "random_state": 0}
MODELS = [
    MarginalizedDropoutClassifier(**NETWORK),
    MarginalizedDropoutRegressor(**NETWORK),
    MarginalizedDropoutGLMClassifier(max_iter=6, random_state=0),
    MarginalizedDropoutGLMClassifier(max_iter=2, n_restarts=2, method="quadratic", random_state=0),
    MarginalizedDropoutGLMRegressor(max_iter=5, solver="adagrad", random_state=0),
]


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), np.array(list("abc"))[y]


def target(model, X, y):
    return y if hasattr(model, "classes_") or "Classifier" in type(model).__name__ else X[:, 0]


class Recorder:
    """A callback that keeps what it is told."""

    def __init__(self, stop_after=None):
        self.calls, self.scores, self.models = [], [], []
        self.stop_after = stop_after

    def setup(self, estimator, context):
        self.calls.append("setup")

    def teardown(self, estimator, context):
        self.calls.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.calls.append(("begin", context.task_name, context.task_id))

    def on_fit_task_end(
        self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None
    ):
        self.calls.append(("end", context.task_name, context.task_id))
        self.data = X, y, metadata
        if fitted_estimator is not None:
            self.scores.append(fitted_estimator.score(X, y))
            self.models.append((fitted_estimator, fitted_estimator.predict(X)))
        return self.stop_after is not None and context.task_id + 1 >= self.stop_after


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_an_epoch_is_a_task(iris, model):
    X, y = iris
    y = target(model, X, y)
    recorder = Recorder()
    fitted = clone(model).set_callbacks(recorder).fit(X, y)
    step = "iteration" if "GLM" in type(model).__name__ else "epoch"
    n_tasks = 6 if getattr(model, "n_restarts", 0) else fitted.n_iter_
    tasks = [(what, step, k) for k in range(n_tasks) for what in ("begin", "end")]
    whole = ["setup", ("begin", "fit", 0), *tasks, ("end", "fit", 0), "teardown"]
    assert recorder.calls == whole
    assert recorder.scores[-1] == fitted.score(X, y)
    for kept, predictions in recorder.models:  # they do not follow the training
        assert np.array_equal(kept.predict(X), predictions)
    alone = clone(model).fit(X, y)
    assert np.array_equal(alone.predict(X), fitted.predict(X))
    assert fitted.net_.callbacks_[-1][0] != "watcher"


@pytest.mark.parametrize("learning_rate", ["constant", "cosine"])
def test_a_length_that_depends_on_the_data_shows_every_epoch(iris, learning_rate, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr("sklearn_margdrop.training.schedules._MOST_EPOCHS", 7)
    monkeypatch.setattr("sklearn_margdrop.estimators.network._AUTO_EPOCHS", 7)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    recorder = Recorder()
    model = MarginalizedDropoutClassifier(8, learning_rate=learning_rate, max_iter="auto")
    model.set_callbacks(recorder, ProgressBar()).fit(*iris)
    tasks = [call[2] for call in recorder.calls if call[:2] == ("end", "epoch")]
    assert tasks == list(range(7))


def test_scores_of_each_epoch_with_weights(iris):
    X, y = iris
    weight = np.arange(len(y)) % 3
    monitor = ScoringMonitor(scoring="accuracy")
    model = MarginalizedDropoutClassifier(**NETWORK).set_callbacks(monitor)
    model.fit(X, y, sample_weight=weight)
    log = monitor.get_logs().data_as_pandas
    epochs = log[log.task_name == "epoch"]
    assert list(epochs.task_id) == list(range(5))
    expected = accuracy_score(y, model.predict(X), sample_weight=weight)
    assert epochs.accuracy.iloc[-1] == expected


def test_validation_rows_are_what_is_scored(iris):
    X, y = iris
    recorder, monitor = Recorder(), ScoringMonitor(scoring="accuracy")
    model = MarginalizedDropoutClassifier(**NETWORK, early_stopping=True)
    model.set_callbacks(recorder, monitor).fit(X, y, sample_weight=np.ones(len(y)))
    X_valid, y_valid, metadata = recorder.data
    assert len(X_valid) == len(y_valid) == len(metadata["sample_weight"]) == 15
    log = monitor.get_logs().data_as_pandas
    epochs = log[log.task_name == "epoch"]
    np.testing.assert_allclose(epochs.accuracy, model.validation_scores_)


@pytest.mark.parametrize("model", MODELS[:3], ids=repr)
def test_a_callback_may_end_the_training(iris, model):
    X, y = iris
    fitted = clone(model).set_callbacks(Recorder(stop_after=2)).fit(X, target(model, X, y))
    assert fitted.n_iter_ == 2


def test_a_failed_fit_tears_down_and_keeps_the_model(iris):
    X, y = iris
    recorder = Recorder()
    model = MarginalizedDropoutClassifier(**NETWORK).fit(X, y)
    before = model.predict_proba(X)
    model.set_callbacks(recorder)
    with pytest.raises(ValueError, match="noise_placement"):
        model.set_params(noise_placement="nowhere").fit(X, y)
    assert recorder.calls[-1] == "teardown"
    assert np.array_equal(model.predict_proba(X), before)
    assert not [name for name in vars(model) if name.startswith("_callback")]


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("model", MODELS[::2][:2], ids=repr)
def test_nested_below_a_search_and_a_pipeline(iris, model, n_jobs, monkeypatch):
    pytest.importorskip("rich")
    X, y = iris
    name = type(model).__name__.lower()
    pipe = make_pipeline(StandardScaler(), model)
    monitor = ScoringMonitor(scoring="accuracy")
    grid = {f"{name}__retain_rate": [0.5, 0.8]}
    search = GridSearchCV(pipe, grid, cv=2, n_jobs=n_jobs)
    model.set_callbacks(monitor)
    search.set_callbacks(ProgressBar())
    output = io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    search.fit(X, y)
    log = monitor.get_logs(include_lineage=True).data_as_pandas
    assert log.filter(like="accuracy").notna().to_numpy().any()
    assert "candidate" in output.getvalue()
