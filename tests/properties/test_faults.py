"""Bad input and bad luck: clear errors before any work, and nothing lost."""

import re
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils._param_validation import make_constraint
from skorch.callbacks import Callback

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.training.net import MarginalizedNet

ignore_max_iter = pytest.mark.filterwarnings("ignore:Training stopped at max_iter")
ESTIMATORS = [MarginalizedDropoutClassifier, MarginalizedDropoutRegressor]


@pytest.fixture
def data():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(60, 4))
    return X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)


@ignore_max_iter
@pytest.mark.parametrize("cls", ESTIMATORS)
@pytest.mark.parametrize("early_stopping", [False, True])
def test_infinite_patience_runs_all_epochs(data, cls, early_stopping):
    options = {"tol": 10.0, "max_iter": 15, "random_state": 0, "early_stopping": early_stopping}
    options |= {"learning_rate": "constant"}
    patient = cls((3,), n_iter_no_change=np.inf, **options).fit(*data)
    assert patient.n_iter_ == 15
    assert cls((3,), n_iter_no_change=2, **options).fit(*data).n_iter_ < 15


def accepts(constraints, value):
    return any(make_constraint(each).is_satisfied_by(value) for each in constraints)


PEERS = [
    (MarginalizedDropoutClassifier, MLPClassifier),
    (MarginalizedDropoutRegressor, MLPRegressor),
    (MarginalizedDropoutGLMClassifier, LogisticRegression),
]


@pytest.mark.parametrize(("ours", "theirs"), PEERS)
def test_parameters_take_what_those_of_the_same_name_do_in_scikit_learn(
    data, no_training, ours, theirs
):
    """Or say what else to do: of the optimisers, which others are."""
    by_class = {0: 2.0}
    values = [0, 1, 2, 10, 0.0, 0.1, 0.5, 1.0, 1.5, np.inf, np.int64(3), np.float32(0.5), True]
    values += [np.bool_(False), None, "auto", "balanced", by_class, [5], (5, 4), np.array([3]), []]
    values += ["relu", "tanh", "logistic", "identity", "adam", "sgd", "lbfgs", 7, RandomState(0)]
    refused = {"solver": ["lbfgs"], "hidden_layer_sizes": [True, by_class]}
    if theirs is LogisticRegression:
        refused = {"max_iter": [0]}
    mine, others = ours._parameter_constraints, theirs._parameter_constraints
    short = {"hidden_layer_sizes": (2,)} if "hidden_layer_sizes" in mine else {}
    n_tried = 0
    for name in mine.keys() & others.keys() & ours().get_params().keys():
        for value in values:
            if not accepts(others[name], value):
                continue
            n_tried += 1
            model = ours(**short | {"max_iter": 1} | {name: value})
            is_refused = any(value is each for each in refused.get(name, ()))
            error, words = (ValueError, name) if is_refused else (AssertionError, "has started")
            with pytest.raises(error, match=words):
                model.fit(*data)
    assert n_tried > 20


EXPLOSIVE = {"solver": "sgd", "learning_rate_init": 1e30, "momentum": 0.0, "random_state": 0}


@pytest.mark.filterwarnings("ignore:Training stopped at max_iter")
def test_divergence_is_an_error_that_says_what_to_change(data):
    X, _ = data
    model = MarginalizedDropoutRegressor(**EXPLOSIVE)
    with pytest.raises(ValueError, match=r"non-finite.*learning_rate_init"):
        model.fit(X, X[:, 0])
    assert not hasattr(model, "net_")


class Poison(Callback):
    """Makes the weights non-finite in one epoch, however often it is tried."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            with torch.no_grad():
                net.module_.layers[0].weight.fill_(np.nan)


class Poisoned(MarginalizedDropoutClassifier):
    event = Poison(4)

    def _build_net(self, *args, is_trial=False, **kwargs):
        net = super()._build_net(*args, is_trial=is_trial, **kwargs)
        if not is_trial:
            net.callbacks_.insert(0, ("event", self.event))
        return net


def test_divergence_with_early_stopping_keeps_the_best_weights(data):
    with pytest.warns(ConvergenceWarning, match=r"non-finite.*best weights"):
        model = Poisoned((5,), early_stopping=True, random_state=0).fit(*data)
    assert np.isfinite(model.coefs_[0]).all()
    assert model.n_iter_ == 3
    assert np.isfinite(model.loss_curve_).all()


def test_divergence_without_a_validation_score_keeps_the_best_objective(data):
    # Whose objective falls from epoch to epoch, as no signs are drawn.
    options = {"method": "diagonal", "learning_rate": "constant", "random_state": 0}
    with pytest.warns(ConvergenceWarning, match=r"non-finite.*epoch 4.*best weights"):
        model = Poisoned((5,), **options).fit(*data)
    assert model.n_iter_ == 3
    # Those that the best epoch, the third, began with.
    two = MarginalizedDropoutClassifier((5,), max_iter=2, **options)
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        two.fit(*data)
    assert_array_equal(model.coefs_[0], two.coefs_[0])


def test_divergence_in_the_first_epoch_is_an_error(data):
    class Early(Poisoned):
        event = Poison(1)

    with pytest.raises(ValueError, match=r"non-finite.*epoch 1"):
        Early((5,), random_state=0).fit(*data)


@ignore_max_iter
def test_out_of_memory_in_partial_fit_leaves_the_fitted_model(data, monkeypatch):
    model = MarginalizedDropoutRegressor((5,), random_state=0).partial_fit(*data)
    before = model.predict(data[0])

    def no_memory(self, batch, **fit_params):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(MarginalizedNet, "train_step", no_memory)
        with pytest.raises(MemoryError):
            model.partial_fit(*data)
    assert_array_equal(model.predict(data[0]), before)
    assert model.partial_fit(*data).n_iter_ == 2


@ignore_max_iter
def test_partial_fit_that_diverges_leaves_the_weights(data):
    X, _ = data
    options = {"learning_rate": "constant", "max_iter": 1, "random_state": 0}
    model = MarginalizedDropoutRegressor((5,), **options).fit(X, X[:, 0])
    before = model.coefs_[0].copy()
    with pytest.raises(ValueError, match=r"y is up to .* times as far from the mean"):
        model.partial_fit(X, 1e300 * X[:, 0])
    assert_array_equal(model.coefs_[0], before)
    model.partial_fit(X, X[:, 0])
    assert np.isfinite(model.coefs_[0]).all()


class Interrupt(Callback):
    """What Ctrl-C does, in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise KeyboardInterrupt


def test_interrupt_never_leaves_weights_that_are_not_finite(data):
    class Both(Poisoned):
        event = Poison(1)

        def _build_net(self, *args, is_trial=False, **kwargs):
            net = super()._build_net(*args, is_trial=is_trial, **kwargs)
            if not is_trial:
                net.callbacks_.append(("interrupt", Interrupt(1)))
            return net

    with pytest.raises(ValueError, match="non-finite"):
        Both((5,), random_state=0).fit(*data)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_overflowing_validation_score_is_a_divergence(data, dtype):
    X = data[0].astype(dtype)
    options = EXPLOSIVE | {"learning_rate_init": 1e20, "batch_size": 1000}
    model = MarginalizedDropoutRegressor((5,), early_stopping=True, **options)
    # An error, or the warning that an epoch of finite weights was kept.
    with pytest.raises((ValueError, ConvergenceWarning), match="non-finite"):
        model.fit(X, X[:, 0])


@pytest.mark.parametrize("epoch", [1, 4])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_interrupt_leaves_a_usable_model(data, epoch, early_stopping):
    class Interrupted(Poisoned):
        event = Interrupt(epoch)

    with pytest.warns(UserWarning, match=f"interrupted by the user in epoch {epoch}"):
        model = Interrupted((5,), early_stopping=early_stopping, random_state=0).fit(*data)
    assert model.n_iter_ == epoch - 1 == len(model.loss_curve_)
    assert np.isfinite(model.predict_proba(data[0])).all()
    model.set_params(early_stopping=False)
    with pytest.warns(UserWarning, match="interrupted"):
        model.partial_fit(*data)
    Interrupted.event = Callback()
    assert model.partial_fit(*data).n_iter_ == epoch


def test_a_fit_worse_than_a_constant_says_so(data):
    X, y = data
    model = MarginalizedDropoutClassifier(solver="sgd", learning_rate_init=1e-12, random_state=0)
    with pytest.warns(ConvergenceWarning, match=r"worse than a constant.*Scale the features"):
        model.fit(1000 * X, y)


class Ends(Callback):
    """What interrupts a training after two epochs."""

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 3:
            raise KeyboardInterrupt


#: Steps that change nothing, and a method that draws nothing, whose objective would scatter.
TINY = {"solver": "sgd", "learning_rate_init": 1e-9, "method": "diagonal"}


@pytest.mark.parametrize(
    "end",
    [{}, {"max_iter": 3}, {"early_stopping": True}, {"callbacks": [Ends()]}],
    ids=["converged", "max_iter", "early_stopping", "interrupted"],
)
@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (TINY, "Raise learning_rate_init"),
        (TINY | {"X": np.array([1e3, 1.0, 1.0])}, "Scale the features"),
        (TINY | {"X": 100.0}, "Scale the features"),
        (TINY | {"solver": "adam"}, "Raise learning_rate_init"),
    ],
)
def test_however_it_ends_it_says_what_is_wrong(end, change, advice):
    rng = np.random.RandomState(0)
    X, change = rng.normal(size=(200, 3)), dict(change)
    y = 5 + X[:, 0]
    X *= change.pop("X", 1.0)
    model = MarginalizedDropoutRegressor((8,), random_state=1, **end, **change)
    with pytest.warns(UserWarning, match=f"(?s)worse than a constant prediction.*{advice}"):
        model.fit(X, y)
    assert model.score(X, y) < 0.1


@ignore_max_iter
def test_outliers_are_named():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(2000, 3))
    y = np.where(np.arange(2000) == 7, 1e6, X[:, 0])
    model = MarginalizedDropoutRegressor((8,), random_state=1, **TINY)
    with pytest.warns(
        ConvergenceWarning, match=r"Leave out outliers or transform y.* 45 standard"
    ):
        model.fit(X, y)


@pytest.mark.parametrize("seed", range(3))
def test_what_cannot_be_learned_is_no_fault(seed):
    rng = np.random.RandomState(seed)
    X = rng.normal(size=(100, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (
            MarginalizedDropoutRegressor(8, random_state=0),
            MarginalizedDropoutGLMRegressor(solver="adagrad", random_state=0),
            MarginalizedDropoutRegressor(16, family="poisson", random_state=0),
        ):
            model.fit(X, rng.poisson(3, size=100))


def test_max_iter_warning_says_what_to_change(data):
    with pytest.warns(ConvergenceWarning, match=re.escape("max_iter=2")):
        MarginalizedDropoutClassifier((3,), learning_rate="constant", max_iter=2).fit(*data)


@pytest.mark.parametrize("fitted", [False, True])
def test_a_full_gpu_says_what_to_change(data, fitted, monkeypatch):
    model = MarginalizedDropoutClassifier(learning_rate="constant", max_iter=1, warm_start=True)
    if fitted:
        with pytest.warns(ConvergenceWarning):
            model.fit(*data)
    before = vars(model).copy()

    def step(self, batch, **fit_params):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(MarginalizedNet, "train_step", step)
    with pytest.raises(torch.OutOfMemoryError, match=r"batch_size.*n_jobs.*'cpu'.*2 GiB"):
        model.fit(*data)
    assert vars(model) == before


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_an_error_after_the_training_leaves_what_was(data, monkeypatch, solver):
    X, y = data
    model = MarginalizedDropoutGLMClassifier(solver=solver, max_iter=2, random_state=0)
    call = model.fit if solver == "lbfgs" else model.partial_fit
    with warnings.catch_warnings(action="ignore"):
        for _ in range(2):
            given = {} if solver == "lbfgs" else {"classes": np.unique(y)}
            before = vars(model).copy(), list(getattr(model, "loss_curve_", []))
            with monkeypatch.context() as patch:
                fails = mock.Mock(side_effect=MemoryError)
                patch.setattr("sklearn_margdrop.estimators.glm.information", fails)
                with pytest.raises(MemoryError):
                    call(X, y, **given)
            assert (vars(model), list(getattr(model, "loss_curve_", []))) == before
            call(X, y, **given)


def test_a_failed_refit_leaves_the_fitted_model(data):
    X, _ = data
    model = MarginalizedDropoutRegressor((5,), max_iter=3, n_iter_no_change=1, tol=10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, X[:, 0])
    before = model.predict(X)
    with pytest.raises(ValueError, match="non-finite"):
        model.set_params(**EXPLOSIVE).fit(X, X[:, 0])
    assert_array_equal(model.predict(X), before)


@ignore_max_iter
def test_a_failed_refit_on_other_data_leaves_the_fitted_model(data):
    X, y = data
    options = {"learning_rate": "constant", "max_iter": 2, "random_state": 0}
    model = MarginalizedDropoutClassifier((5,), **options).fit(X, y)
    before = model.predict_proba(X)
    model.set_params(early_stopping=True, validation_fraction=0.001)
    with pytest.raises(ValueError, match="early_stopping"):
        model.fit(X[:, :2], y > 0)
    assert_array_equal(model.classes_, [0, 1, 2])
    assert_array_equal(model.predict_proba(X), before)
