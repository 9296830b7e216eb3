"""A call that fails leaves the estimator as it was, and copies share nothing that calls change."""

import copy
import functools
import gc
import pickle
import random
import signal
import sys
import warnings
from pathlib import Path
from types import FunctionType, MethodType, ModuleType

import numpy as np
import pytest
import torch
from sklearn.neural_network import BernoulliRBM
from skorch.callbacks import Callback, EpochScoring, LRScheduler

import sklearn_margdrop
from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.objective import Objective
from sklearn_margdrop.training.net import MarginalizedNet
from sklearn_margdrop.training.solvers import GLM_SOLVERS, NETWORK_SOLVERS
from sklearn_margdrop.training.state import net_state

PACKAGE = str(Path(sklearn_margdrop.__file__).parent)
X = np.random.default_rng(0).normal(size=(12, 3))
LABELS, NUMBERS = np.arange(12) % 3, 3 * X[:, 0] + 1


def falling(epoch):
    return 1 / (1 + epoch)


def network(cls, **settings):
    settings = {"max_iter": 2, "batch_size": 6, "warm_start": True, **settings}
    return cls((4,), random_state=np.random.RandomState(0), **settings)


def glm(cls, solver, **settings):
    settings = {"max_iter": 2, "batch_size": 6, "warm_start": True, **settings}
    return cls(solver=solver, random_state=np.random.RandomState(0), **settings)


def schedules():
    """Some hold dicts and lists, which a scheduler changes in place or puts in another order."""
    return [
        ("steps", LRScheduler("MultiStepLR", milestones=[1, 4, 5])),
        ("falling", LRScheduler("LambdaLR", lr_lambda=falling)),
        EpochScoring("neg_log_loss", on_train=True, use_caching=False),
    ]


CLASSIFIER, REGRESSOR = MarginalizedDropoutClassifier, MarginalizedDropoutRegressor
GLM_CLASSIFIER, GLM_REGRESSOR = MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor
MODELS = {
    "adam": network(CLASSIFIER),
    "adam, sampling": network(REGRESSOR, method="sampling", activation="logistic"),
    "sgd": network(CLASSIFIER, solver="sgd", learning_rate="constant", callbacks=schedules()),
    "sgd, probes": network(REGRESSOR, solver="sgd", method="quadratic", n_probes=1),
    "validated": network(CLASSIFIER, early_stopping=True, validation_fraction=0.5),
    "pretrained": network(REGRESSOR, pretrainer=BernoulliRBM(n_iter=1)),
    "lbfgs": glm(GLM_CLASSIFIER, "lbfgs", tol=1e-9),
    "restarts": glm(GLM_CLASSIFIER, "lbfgs", n_restarts=1, tol=1e-9, method="quadratic"),
    "glm by sgd": glm(GLM_CLASSIFIER, "sgd"),
    "adagrad": glm(GLM_REGRESSOR, "adagrad"),
    "fisher": glm(GLM_CLASSIFIER, "fisher", method="quadratic"),
}
CASES = [
    (name, how)
    for name, model in MODELS.items()
    for how in ("warm fit", "fit", "partial_fit")
    if how != "partial_fit"
    or not (model.solver == "lbfgs" or getattr(model, "early_stopping", False))
]
each_case = pytest.mark.parametrize(("name", "how"), CASES)
each_model = pytest.mark.parametrize("name", MODELS)

#: How many lines of each case fail in turn; some thousands are run.
N_LINES = 3


def target_of(model):
    return LABELS if isinstance(model, CLASSIFIER | GLM_CLASSIFIER) else NUMBERS


def call(model, how, X=X, **given):
    """One call. Warnings, that it ended early for one, do not matter."""
    y = target_of(model)
    with warnings.catch_warnings(action="ignore"):
        if how == "partial_fit":
            given |= {"classes": [0, 1, 2]} if y is LABELS else {}
            return model.partial_fit(X, y, **given)
        return model.fit(X, y, **given)


@functools.cache
def fitted_once(name):
    model = call(copy.deepcopy(MODELS[name]), "fit")
    return call(model, "partial_fit") if (name, "partial_fit") in CASES else model


def fitted(name, how):
    """A model with some calls behind it, for the call to come."""
    return copy.deepcopy(fitted_once(name)).set_params(warm_start=how == "warm fit")


def plain(value):
    """The same made of values that are equal where they have the same bits."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, np.random.RandomState):
        return plain(value.get_state(legacy=False))
    if isinstance(value, dict):
        return [(key, plain(each)) for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return repr(value)


def learned(model):
    """All that later calls depend on, without the seconds that an epoch took."""
    state = copy.deepcopy(vars(model))
    net = net_state(state.pop("net_"))
    for epoch in net["learned"]["fitted"]["history_"]:
        del epoch["dur"]
    del net["callbacks"], net["parameters"]
    parameters = model.get_params(deep=False).keys() - {"random_state"}
    kept = {key: value for key, value in state.items() if key not in parameters}
    return plain([kept, net])


class Check:
    """Says what has to hold of a call that fails."""

    def __init__(self, model):
        self.model, self.twin = model, copy.deepcopy(model)
        self.before = pickle.dumps(model)

    def has_not_changed(self):
        return pickle.dumps(self.model) == self.before

    def goes_on(self, how):
        """Nothing has changed, and the next call gives what it would have given."""
        assert self.has_not_changed()
        assert learned(call(self.model, how)) == learned(call(self.twin, how))


class Fault(BaseException):
    """What nothing knows how to treat."""


FAULTS = [Fault, KeyboardInterrupt, MemoryError, TimeoutError, RuntimeError]


class Tracer:
    """Raises `error` at the n-th line of the package that is run."""

    def __init__(self, n=-1, error=Fault):
        self.left, self.error, self.place = n, error, None
        self.n_lines = 0

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.n_lines += 1
            self.left -= 1
            if self.left == 0:
                self.place = Path(frame.f_code.co_filename).name, frame.f_code.co_name
                raise self.error("on purpose")
        return self

    def __enter__(self):
        self.previous = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *args):
        sys.settrace(self.previous)
        # Python knows no way to leave a context where the error comes as it is being left.
        torch.set_grad_enabled(True)


def run_into_a_fault(model, how, n, error):
    """Where the call was when it ran into the error, and whether it raised it."""
    with Tracer(n, error) as tracer:
        try:
            call(model, how)
        except BaseException:
            return tracer.place, True
    return tracer.place, False


@each_case
def test_an_error_at_any_line(name, how):
    """Of the package: be it of a signal, or of what is called there."""
    model = fitted(name, how)
    done = copy.deepcopy(model)
    with Tracer() as count:
        call(done, how)
    draw = random.Random(f"{name} {how}")
    first = draw.randrange(len(FAULTS))
    for k in range(first, first + N_LINES):
        error, n = FAULTS[k % len(FAULTS)], draw.randint(1, count.n_lines)
        check = Check(model)
        place, was_raised = run_into_a_fault(model, how, n, error)
        if was_raised and check.has_not_changed():
            continue
        if was_raised:  # when all had been done
            assert place == ("atomic.py", "_fit")
            assert learned(model) == learned(done)
        elif error is KeyboardInterrupt:  # what had been reached is kept
            assert model.n_iter_ == len(model.loss_curve_)
            call(model, how)
        else:  # it was expected there
            assert learned(model) == learned(done)
        model = check.twin
    Check(model).goes_on(how)


@pytest.mark.parametrize(("name", "how"), CASES[::4])
def test_an_error_before_and_after_all_is_done(name, how):
    """The attributes change in one line."""
    model = fitted(name, how)
    done = copy.deepcopy(model)
    with Tracer() as count:
        call(done, how)
    outcomes = []
    for n in range(count.n_lines - 6, count.n_lines + 1):
        check = Check(model)
        place, was_raised = run_into_a_fault(model, how, n, Fault)
        assert was_raised
        outcomes.append("old" if check.has_not_changed() else "new")
        if outcomes[-1] == "new":
            assert place == ("atomic.py", "_fit")
            assert learned(model) == learned(done)
        model = check.twin
    assert outcomes == sorted(outcomes, reverse=True)
    assert set(outcomes) == {"old", "new"}


class Raising(Callback):
    """Does something in one of its methods, the n-th time that it is called."""

    def __init__(self, method, action, n):
        self.method, self.action, self.n = method, action, n

    def initialize(self):
        self.left_ = self.n
        return self._see("initialize", self)

    def _see(self, method, net):
        self.left_ -= method == self.method
        if method == self.method and self.left_ == 0:
            self.action(net)
        return self


SKORCH_HOOKS = [
    *("on_train_begin", "on_epoch_begin", "on_batch_begin", "on_grad_computed"),
    *("on_batch_end", "on_epoch_end", "on_train_end"),
]
for hook in SKORCH_HOOKS:
    setattr(Raising, hook, lambda self, net, *args, method=hook, **kwargs: self._see(method, net))


def fail(net):
    raise Fault


def be_timed_out(net):
    """As by a handler of signals."""

    def stop(*args):
        raise TimeoutError

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)


def write_everywhere(net):
    """Into all that a callback can reach, and fail."""
    with torch.no_grad():
        for parameter in net.module_.parameters():
            parameter.fill_(np.nan)
    for state in net.optimizer_.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.fill_(7.0)
    for epoch in net.history:
        epoch["seen"] = True
        epoch["batches"].append({})
        epoch["batches"][0]["seen"] = True
    for _, schedule in net.rates_.schedules.values():
        schedule.clear()
    net.record_.lowest.clear()
    net.generator_.manual_seed(1)
    net.order_generator_.manual_seed(1)
    raise Fault


@pytest.mark.parametrize("how", ["warm fit", "fit", "partial_fit"])
@pytest.mark.parametrize(
    ("name", "action"), [("adam", be_timed_out), ("sgd", fail), ("sgd", write_everywhere)]
)
def test_an_error_in_a_callback(name, how, action):
    model = fitted(name, how)
    check, given = Check(model), model.callbacks
    hooks = SKORCH_HOOKS if action is write_everywhere else ["initialize", *SKORCH_HOOKS]
    for hook in hooks:
        once = how == "partial_fit" or hook in ("initialize", "on_train_begin", "on_train_end")
        for n in (1,) if once else (1, 2):
            model.set_params(callbacks=[*(given or ()), Raising(hook, action, n)])
            with pytest.raises((Fault, TimeoutError)):
                call(model, how)
    model.set_params(callbacks=given)
    check.goes_on(how)


class Watching:
    """A callback of scikit-learn's that fails in one of its methods, the n-th time."""

    def __init__(self, method, n):
        self.method, self.n = method, n

    def _see(self, method):
        self.n -= method == self.method
        if method == self.method and self.n == 0:
            raise RuntimeError("on purpose")

    def setup(self, estimator, context):
        self._see("setup")

    def teardown(self, estimator, context):
        self._see("teardown")

    def on_fit_task_begin(self, estimator, context):
        self._see("begin")

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self._see("end")


@pytest.mark.parametrize("how", ["warm fit", "fit"])
@pytest.mark.parametrize("name", ["adam", "lbfgs", "adagrad"])
def test_an_error_in_a_callback_of_scikit_learn(name, how):
    model = fitted(name, how)
    check = Check(model)
    for method, times in {"setup": [1], "begin": [1, 3], "end": [1, 3], "teardown": [1]}.items():
        for n in times:
            with pytest.raises(RuntimeError, match="on purpose"):
                call(model.set_callbacks(Watching(method, n)), how)
            model.set_callbacks()
            assert check.has_not_changed()
    check.goes_on(how)


SOLVERS = GLM_SOLVERS | NETWORK_SOLVERS


def then_raise(function, error):
    """The same function, which raises when it has done what it does."""

    def raising(*args, **kwargs):
        function(*args, **kwargs)
        raise error

    return raising


@each_case
def test_an_error_after_each_stage(name, how, monkeypatch):
    model = fitted(name, how)
    check = Check(model)
    stages = {
        (SOLVERS[model.solver].optimizer, "step"): [MemoryError, Fault],
        (Objective, "backward"): [MemoryError],
        (MarginalizedNet, "train"): [KeyboardInterrupt, MemoryError],
        (type(model), "_store"): [KeyboardInterrupt, MemoryError],
        (type(model), "_record"): [Fault],
        (type(model), "_warn"): [MemoryError],
    }
    if how != "fit":
        stages[MarginalizedNet, "take_over"] = [KeyboardInterrupt]
    for (owner, method), errors in stages.items():
        for error in errors:
            with monkeypatch.context() as patch:
                patch.setattr(owner, method, then_raise(getattr(owner, method), error))
                with pytest.raises(error):
                    call(model, how)
            assert check.has_not_changed(), method
    check.goes_on(how)


class Unreadable:
    """Rows whose reading fails."""

    def __init__(self, rows):
        self.shape, self.dtype, self.ndim = rows.shape, rows.dtype, rows.ndim

    def __len__(self):
        return self.shape[0]

    def __array__(self, *args, **kwargs):
        raise OSError("on purpose")


BAD = [
    {"X": Unreadable(X)},
    {"sample_weight": Unreadable(X[:, 0])},
    {"X_unlabeled": Unreadable(X)},
    {"X": X[:, :0]},
    {"X": np.where(X > 1, np.nan, X)},
    {"X_unlabeled": X * np.nan},
    {"sample_weight": -np.ones(12)},
    {"X": 1e160 * X},
]


@each_case
def test_data_that_cannot_be_fitted(name, how, monkeypatch):
    model = fitted(name, how)
    check = Check(model)
    for bad in BAD if how == "fit" else [*BAD, {"X": X[:, :2]}]:
        with pytest.raises((OSError, ValueError)):
            call(model, how, **bad)
        assert check.has_not_changed()
    with monkeypatch.context() as patch:  # as after steps that were too long
        patch.setattr(MarginalizedNet, "_predicts_finite", lambda net, rows: False)
        with pytest.raises(ValueError, match=r"non-finite.*What was fitted before is kept"):
            call(model, how)
    check.goes_on(how)


@pytest.mark.parametrize("name", ["sgd", "sgd, probes"])
def test_a_stream_goes_on_after_a_chunk_in_other_units(name):
    model = fitted(name, "partial_fit")
    check = Check(model)
    with pytest.raises(ValueError, match=r"non-finite.*What was fitted before is kept"):
        call(model, "partial_fit", X=1e120 * X)
    check.goes_on("partial_fit")


@each_model
def test_a_first_call_that_fails_fits_nothing(name, monkeypatch):
    model = copy.deepcopy(MODELS[name])
    check = Check(model)
    monkeypatch.setattr(type(model), "_store", then_raise(type(model)._store, MemoryError))
    with pytest.raises(MemoryError):
        call(model, "fit")
    monkeypatch.undo()
    assert not model.__sklearn_is_fitted__()
    check.goes_on("fit")


def interrupt(net):
    raise KeyboardInterrupt


@each_case
def test_a_warning_that_is_an_error_keeps_the_fit(name, how):
    """As in scikit-learn, it is raised when all has been done."""
    model = fitted(name, how)
    if "learning_rate" in model.get_params():  # the end of a schedule is expected
        model.set_params(learning_rate="constant")
    if how == "partial_fit":  # which warns where it is interrupted
        if "callbacks" not in model.get_params():
            return
        model.set_params(callbacks=[Raising("on_batch_end", interrupt, 1)])
    twin = call(copy.deepcopy(model), how)
    with warnings.catch_warnings(action="error"):
        warnings.filterwarnings("ignore", message="BernoulliRBM")
        with pytest.raises(UserWarning, match="Training"):
            getattr(model, how.split()[-1])(X, target_of(model))
    assert learned(model) == learned(twin)
    for each in (model, twin) if how == "partial_fit" else ():
        each.set_params(callbacks=None)
    assert learned(call(model, how)) == learned(call(twin, how))


@pytest.mark.parametrize("method", ["get_dataset", "notify"])
def test_an_interrupt_before_the_first_epoch_is_no_fit(method, monkeypatch):
    """Skorch would take it for the end of the training."""
    model = fitted("adam", "warm fit")
    check = Check(model)
    with monkeypatch.context() as patch:
        patch.setattr(MarginalizedNet, method, lambda *args, **kwargs: interrupt(None))
        with pytest.raises(KeyboardInterrupt):
            call(model, "warm fit")
    check.goes_on("warm fit")


ATOMS = (str, bytes, int, float, bool, type(None), type, FunctionType, MethodType, ModuleType)
ATOMS += (torch.dtype, torch.device, torch.Size, np.dtype, np.generic, slice)


def mutable_parts(value, found=None):
    """The identities of all that `value` is made of and that can be changed, with examples."""
    found = {} if found is None else found
    if isinstance(value, ATOMS) or id(value) in found:
        return found
    if isinstance(value, tuple):
        children = value
    else:
        found[id(value)] = value
        if isinstance(value, torch.Tensor):
            found[value.data_ptr() if value.numel() else id(value)] = value
            children = ()
        elif isinstance(value, dict):
            children = [*value.keys(), *value.values()]
        else:
            children = [*value] if isinstance(value, list | set) else []
            children += vars(value).values() if hasattr(value, "__dict__") else []
    for each in children:
        mutable_parts(each, found)
    return found


def state_of(model):
    """What calls change: fitted attributes and the RandomState."""
    return [model.random_state, *(v for k, v in vars(model).items() if k.endswith("_"))]


@each_model
def test_a_shallow_copy_shares_no_state(name):
    model = fitted(name, "fit")
    twin = copy.copy(model)
    assert learned(twin) == learned(model)
    here, there = mutable_parts(state_of(model)), mutable_parts(state_of(twin))
    assert len(here) > 20
    assert [here[key] for key in here.keys() & there.keys()] == []
    for parameter, value in model.get_params(deep=False).items():
        assert parameter == "random_state" or getattr(twin, parameter) is value


@each_case
def test_calls_of_a_shallow_copy_leave_the_original(name, how):
    model = fitted(name, how)
    check = Check(model)
    call(copy.copy(model), how)
    check.goes_on(how)


@each_case
def test_a_net_that_took_over_shares_no_state(name, how):
    """Neither does one that begins anew."""
    model = fitted(name, how)
    before, bits = model.net_, pickle.dumps(model.net_)
    call(model, how)
    assert pickle.dumps(before) == bits
    here, there = mutable_parts(before), mutable_parts(model.net_)
    if not getattr(model, "callbacks", None):  # only those write into epochs of before
        for part in mutable_parts(list(before.history)):
            here.pop(part, None)
    assert [here[key] for key in here.keys() & there.keys()] == []


def n_nets():
    gc.collect()
    return sum(issubclass(type(each), MarginalizedNet) for each in gc.get_objects())


def test_an_error_that_is_kept_keeps_no_net():
    X = np.random.RandomState(0).normal(size=(30, 3))
    model = MarginalizedDropoutGLMRegressor(solver="sgd", learning_rate_init=1e300, random_state=0)
    before = n_nets()
    with pytest.raises(ValueError, match="non-finite") as kept:
        model.fit(X, X[:, 0])
    assert n_nets() == before
    del kept
