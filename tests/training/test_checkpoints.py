"""A fit that was killed goes on, and ends at the same bits; a bad checkpoint is refused."""

import collections
import copy
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.callback import ScoringMonitor
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, Freezer, LRScheduler

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.estimators import glm as glm_module
from sklearn_margdrop.estimators import network as network_module
from sklearn_margdrop.training import checkpoints as module
from sklearn_margdrop.training.checkpoints import Checkpoints
from sklearn_margdrop.training.net import MarginalizedNet

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


class Killed(BaseException):
    """Ends a fit as abruptly as a signal would."""


class Counting(Callback):
    """Halves the rate in the fourth epoch that it counts itself."""

    def __init__(self, count=0):
        self.count = count

    def on_epoch_begin(self, net, **kwargs):
        self.count += 1
        for group in net.optimizer_.param_groups:
            group["lr"] *= 0.5 if self.count == 4 else 1.0


def network(kind=MarginalizedDropoutClassifier, **options):
    defaults = {"hidden_layer_sizes": 6, "max_iter": 7, "batch_size": 25, "random_state": 0}
    # Steps are counted, and not those of the short trainings that "auto" would take.
    defaults |= {"retain_rate": 0.5, "learning_rate": "constant"}
    return kind(**(defaults | options))


def glm(kind=MarginalizedDropoutGLMClassifier, **options):
    return kind(**({"max_iter": 7, "tol": 0.0, "batch_size": 25, "random_state": 0} | options))


def sgd(**options):
    return network(solver="sgd", learning_rate_init=0.1, momentum=0.5, **options)


MODELS = {
    "cosine": network(learning_rate="cosine", early_stopping=True),
    "adam": network(early_stopping=True, learning_rate_decay=0.1),
    "sgd": sgd(method="sampling", activation="logistic", hidden_layer_sizes=(6, 4)),
    "in order": network(shuffle=False, method="quadratic", n_probes=1),
    "diagonal": network(method="diagonal"),
    "regressor": network(MarginalizedDropoutRegressor, noise="gaussian"),
    "explodes": sgd(activation="relu").set_params(learning_rate_init=300.0),
    "converges": network(tol=10.0, n_iter_no_change=2),
    "RandomState": network(random_state=np.random.RandomState(3)),
    "callbacks": sgd(
        early_stopping=True,
        callbacks=[
            LRScheduler("StepLR", step_size=2, gamma=0.5),
            EpochScoring("accuracy", lower_is_better=False),
            Freezer("layers.0.*", at=3),
            Counting(),
        ],
    ),
    "stopped by a callback": network(
        callbacks=[EarlyStopping("train_loss", patience=2, threshold=10.0)]
    ),
    "lbfgs": glm(unlabeled_discount=0.5),
    "restarts": glm(n_restarts=2, method="quadratic", max_iter=3, unlabeled_discount=0.5),
    "fisher": glm(MarginalizedDropoutGLMRegressor, solver="fisher"),
    "adagrad": glm(solver="adagrad", method="sampling"),
}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(103, 5))
    weight = rng.integers(1, 3, size=103)
    return {
        "X": X,
        "y": (X[:, 0] + X[:, 1] > 0).astype(int),
        "sample_weight": weight,
        "X_unlabeled": rng.normal(size=(41, 5)),
    }


def fit(model, data):
    """A fit of a clone; a given RandomState is that of before each time."""
    return clone(model).fit(**data)


def weights(model):
    return model.coefs_ if hasattr(model, "coefs_") else [model.coef_, model.intercept_]


def assert_same(model, other):
    for one, two in zip(weights(model), weights(other), strict=True):
        assert_array_equal(one, two)
    assert model.loss_curve_ == other.loss_curve_
    assert model.n_iter_ == other.n_iter_
    assert model.net_.stop_reason_ == other.net_.stop_reason_
    assert model.net_.n_explosions_ == other.net_.n_explosions_
    before, after = (each.net_.order_generator_.get_state() for each in (model, other))
    assert_array_equal(before, after)


def kill_in_step(monkeypatch, n):
    """Let the n-th step from now be the end of the process."""
    step, count = MarginalizedNet.train_step, []

    def last_step(self, *args, **kwargs):
        count.append(1)
        if len(count) == n:
            raise Killed
        return step(self, *args, **kwargs)

    monkeypatch.setattr(MarginalizedNet, "train_step", last_step)


@pytest.mark.parametrize("name", MODELS)
def test_a_killed_fit_ends_where_an_uninterrupted_one_does(data, tmp_path, monkeypatch, name):
    model = MODELS[name]
    whole = fit(model, data)
    model = clone(model).set_params(checkpoint=tmp_path)
    # Amid epochs and at their ends, until nothing is left to do. (An epoch that explodes takes
    # many steps.)
    n_steps, n_kills, resumed = (3 if name in ("lbfgs", "restarts") else 8), 0, None
    more = 4 if name == "explodes" else 0
    while resumed is None:
        with monkeypatch.context() as patch:
            kill_in_step(patch, n_steps + more * n_kills)
            try:
                resumed = fit(model, data)
            except Killed:
                n_kills += 1
    assert n_kills >= 2
    assert_same(resumed, whole)
    # Once it has ended it is there at once.
    with monkeypatch.context() as patch:
        if name != "stopped by a callback":
            kill_in_step(patch, n=1)
        assert_same(fit(model, data), whole)


def test_the_discount_of_unlabelled_rows_is_chosen_once(data, tmp_path, monkeypatch):
    shares = [0.1]
    monkeypatch.setattr(glm_module, "choose_share", lambda *args: shares.pop())
    model = glm(checkpoint=tmp_path)
    with monkeypatch.context() as patch:
        kill_in_step(patch, 4)
        with pytest.raises(Killed):
            fit(model, data)
    resumed = fit(model, data)
    given = glm(unlabeled_discount=resumed.unlabeled_discount_)
    assert_array_equal(resumed.coef_, fit(given, data).coef_)


def test_retain_rates_are_chosen_once(data, tmp_path, monkeypatch):
    """A fit that goes on does not try them again, and one that has ended takes no step."""
    model = network(retain_rate="auto", learning_rate="cosine")
    chosen = [(0.5, 0.5)]
    monkeypatch.setattr(network_module, "choose", lambda *args: (chosen.pop(), {}))
    model.set_params(checkpoint=tmp_path)
    for n_steps in (8, 9):
        with monkeypatch.context() as patch:
            kill_in_step(patch, n_steps)
            with pytest.raises(Killed):
                fit(model, data)
    resumed = fit(model, data)
    assert resumed.retain_rate_ == (0.5, 0.5)
    assert_same(resumed, fit(network(retain_rate=0.5, learning_rate="cosine"), data))
    kill_in_step(monkeypatch, n=1)
    assert_same(fit(model, data), resumed)


def test_no_seed(data, tmp_path, monkeypatch):
    model = network(random_state=None, early_stopping=True, checkpoint=tmp_path)
    with monkeypatch.context() as patch:
        kill_in_step(patch, n=15)
        with pytest.raises(Killed):
            fit(model, data)
    (tmp_path / "copy").mkdir()
    content = (tmp_path / "training-0.ckpt").read_bytes()
    resumed = fit(model, data)
    (tmp_path / "copy" / "training-0.ckpt").write_bytes(content)
    again = fit(clone(model).set_params(checkpoint=tmp_path / "copy"), data)
    assert_same(resumed, again)
    assert resumed.n_iter_ > 3


def test_killed_while_writing(data, tmp_path, monkeypatch):
    whole = fit(network(), data)
    model = network(checkpoint=tmp_path)
    for call in ("fsync", "replace"):
        count = []

        real = getattr(os, call)

        def die(*args, real=real, count=count):
            count.append(1)
            if len(count) == 2:
                raise Killed
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(module.os, call, die)
            patch.setattr(Path, "unlink", lambda *args, **kwargs: None)  # there is no clean end
            with pytest.raises(Killed):
                fit(model, data)
    assert (tmp_path / "training-0.writing").exists()
    assert_same(fit(model, data), whole)


def test_warm_start(data, tmp_path, monkeypatch):
    def two_fits(folder, kill=None):
        model = network(max_iter=3).fit(**data)
        model.set_params(warm_start=True, checkpoint=folder)
        with monkeypatch.context() as patch:
            if kill:
                kill_in_step(patch, kill)
            return model.fit(**data)

    whole = two_fits(None)
    with pytest.raises(Killed):
        two_fits(tmp_path, kill=10)
    resumed = two_fits(tmp_path)
    assert_same(resumed, whole)
    assert resumed.n_iter_ == 6
    with pytest.raises(ValueError, match=r"another fit.*the start"):
        network(checkpoint=tmp_path, warm_start=True, max_iter=3).fit(**data)


def test_more_epochs(data, tmp_path):
    fit(network(max_iter=3, tol=0.0, checkpoint=tmp_path), data)
    assert_same(
        fit(network(max_iter=6, tol=0.0, checkpoint=tmp_path, verbose=1), data),
        fit(network(max_iter=6, tol=0.0), data),
    )
    with pytest.raises(ValueError, match=r"6 epochs.*max_iter=4"):
        fit(network(max_iter=4, tol=0.0, checkpoint=tmp_path), data)


def test_a_schedule_of_another_length_is_another_fit(data, tmp_path):
    fit(network(max_iter=3, learning_rate="cosine", checkpoint=tmp_path), data)
    for max_iter in (6, "auto"):
        with pytest.raises(ValueError, match="another fit; these differ: max_iter"):
            fit(network(max_iter=max_iter, learning_rate="cosine", checkpoint=tmp_path), data)


def test_sparse_data_and_a_monitor(data, tmp_path, monkeypatch):
    X = sp.csr_array(np.where(data["X"] > 0, data["X"], 0))
    model = glm(solver="fisher")
    whole = fit(model, data | {"X": X, "X_unlabeled": None})
    model.set_params(checkpoint=tmp_path)
    monitor = ScoringMonitor(scoring="accuracy")
    with monkeypatch.context() as patch:
        kill_in_step(patch, 12)
        with pytest.raises(Killed):
            clone(model).set_callbacks(monitor).fit(X, data["y"], data["sample_weight"])
    resumed = clone(model).set_callbacks(monitor).fit(X, data["y"], data["sample_weight"])
    assert_same(resumed, whole)


class Draining(Callback):
    """Holds what no file holds."""

    def __init__(self, left=()):
        self.left = left

    def on_train_begin(self, net, **kwargs):
        self.left = collections.deque(range(9))

    def on_epoch_end(self, net, **kwargs):
        self.left.popleft()


def test_what_a_callback_loses_is_named(data, tmp_path):
    model = network(max_iter=2)
    with pytest.warns(UserWarning, match="not left of the callback Draining: where the fit"):
        fit(model.set_params(callbacks=[Draining()], checkpoint=tmp_path), data)


def test_a_file_that_lacks_a_part_is_refused(data, stored):
    model, path = stored
    identity = json.loads(path.read_bytes().split(b"\n")[2])
    state = module._read(path, identity)
    module._write(path, identity, state)
    fit(model, data)
    del state["random_state"]
    module._write(path, identity, state)
    with pytest.raises(ValueError, match="damaged"):
        fit(model, data)


@pytest.fixture
def stored(data, tmp_path):
    """A model whose fit ended, and the file of its checkpoint."""
    model = network(max_iter=2, checkpoint=tmp_path)
    fit(model, data)
    return model, tmp_path / "training-0.ckpt"


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.99])
@pytest.mark.parametrize("fault", ["cut", "flipped"])
def test_a_damaged_file_is_refused(data, stored, part, fault):
    model, path = stored
    content = bytearray(path.read_bytes())
    at = int(part * len(content))
    if fault == "cut":
        content = content[:at]
    else:
        content[at] ^= 1
    path.write_bytes(content)
    model = clone(model)
    with pytest.raises(ValueError, match=r"training-0.ckpt' is (damaged|of another fit)"):
        model.fit(**data)
    assert not hasattr(model, "net_")
    assert path.read_bytes() == content


class Evil:
    """What a pickle would execute."""

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_nothing_in_a_file_is_executed(data, stored, tmp_path):
    model, path = stored
    evil = Evil()
    evil.path = str(tmp_path / "executed")
    magic, _, head, _ = path.read_bytes().split(b"\n", 3)
    body = io.BytesIO()
    torch.save({"random_state": evil}, body)
    head += b"\n"
    checksum = module._checksum(head, body.getvalue())
    path.write_bytes(magic + b"\n" + checksum + head + body.getvalue())
    with pytest.raises(ValueError, match="damaged"):
        fit(model, data)
    assert not (tmp_path / "executed").exists()


def test_a_file_with_parts_missing_is_refused(data, stored):
    model, path = stored
    identity = module.json.loads(path.read_bytes().split(b"\n", 3)[2])
    state = module._read(path, identity)
    del state["noise"]
    module._write(path, identity, state)
    with pytest.raises(ValueError, match="damaged"):
        fit(model, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"retain_rate": 0.7}, "retain_rate"),
        ({"hidden_layer_sizes": (6,), "alpha": 1e-3}, "alpha, hidden_layer_sizes"),
        ({"random_state": 1}, "random_state"),
        ({"callbacks": [Counting()]}, "callbacks"),
    ],
    ids=["rate", "two", "seed", "callbacks"],
)
def test_the_checkpoint_of_other_parameters_is_refused(data, stored, change, message):
    model, path = stored
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"another fit; these differ: {message}.*runs/\{{fit\}}"):
        fit(clone(model).set_params(**change), data)
    assert path.read_bytes() == before


@pytest.mark.parametrize("part", ["X", "y", "sample_weight", "X_unlabeled"])
def test_the_checkpoint_of_other_data_is_refused(data, stored, part):
    model, _ = stored
    changed = data[part].copy()
    changed[3] = 1 - changed[3]
    if part == "sample_weight":
        changed = data[part] + 1.0
    with pytest.raises(ValueError, match="another fit; these differ: data"):
        fit(model, data | {part: changed})


def test_the_checkpoint_of_another_class_is_refused(data, stored):
    other = glm(checkpoint=stored[1].parent)
    with pytest.raises(ValueError, match="another fit; these differ"):
        fit(other, data)


def test_a_full_disk_is_an_error(data, tmp_path):
    model = network(checkpoint=tmp_path)
    whole = fit(network(), data)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fit(clone(model).set_params(max_iter=1), data)
    before = (tmp_path / "training-0.ckpt").read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"checkpoint could not be written.*make room"):
            fit(model, data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "training-0.ckpt").read_bytes() == before
    assert not list(tmp_path.glob("*.writing"))
    assert_same(fit(model, data), whole)


def test_a_folder_serves_one_fit_at_a_time(data, tmp_path):
    with (
        Checkpoints(tmp_path, {}, np.random.RandomState()),
        pytest.raises(ValueError, match=r"Another fit is using.*runs/\{fit\}"),
    ):
        fit(network(checkpoint=tmp_path), data)
    fit(network(checkpoint=tmp_path, max_iter=1), data)


def test_a_search_goes_on(data, tmp_path, monkeypatch):
    search = GridSearchCV(
        network(checkpoint=str(tmp_path / "runs" / "{fit}")), {"retain_rate": [0.5, 0.9]}, cv=2
    )
    before = search.fit(data["X"], data["y"]).cv_results_
    assert len(list((tmp_path / "runs").iterdir())) == 5
    kill_in_step(monkeypatch, 1)
    after = search.fit(data["X"], data["y"]).cv_results_
    assert_array_equal(before["mean_test_score"], after["mean_test_score"])


def test_bad_folders(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder"):
        fit(network(checkpoint=tmp_path / "file"), data)
    with pytest.raises(ValueError, match="checkpoint"):
        fit(network(checkpoint=3), data)
    with pytest.raises(ValueError, match=r"partial_fit.*pickle"):
        network(checkpoint=tmp_path).partial_fit(data["X"], data["y"], classes=[0, 1])


def test_what_a_callback_cannot_keep(data, tmp_path):
    class Holder(Callback):
        def on_train_begin(self, net, **kwargs):
            self.file_ = open(os.devnull)  # noqa: SIM115

        def on_train_end(self, net, **kwargs):
            self.file_.close()

    with pytest.warns(UserWarning, match="not file_ of the callback Holder"):
        network(checkpoint=tmp_path, callbacks=[Holder()], max_iter=1).fit(**data)


SCRIPT = """
import sys, warnings
import numpy as np
from sklearn_margdrop import MarginalizedDropoutClassifier
warnings.simplefilter("ignore")
X = np.random.default_rng(0).normal(size=(500, 10))
MarginalizedDropoutClassifier(
    20,
    retain_rate=0.5,
    batch_size=10,
    learning_rate="constant",
    max_iter=2000,
    tol=0.0,
    random_state=0,
    checkpoint=sys.argv[1],
).fit(X, X[:, 0] > 0)
"""


def test_sigkill(tmp_path):
    path = tmp_path / "training-0.ckpt"
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)])
    try:
        deadline = time.monotonic() + 300
        while not path.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    X = np.random.default_rng(0).normal(size=(500, 10))
    options = {"retain_rate": 0.5, "batch_size": 10, "learning_rate": "constant", "tol": 0.0}
    model = MarginalizedDropoutClassifier(20, **options, random_state=0)
    _, _, head, _ = path.read_bytes().split(b"\n", 3)
    n_epochs = len(module._read(path, module.json.loads(head))["fitted"]["history_"])
    model.set_params(max_iter=n_epochs + 2)
    whole = clone(model).fit(X, X[:, 0] > 0)
    threads = torch.get_num_threads()
    assert_same(model.set_params(checkpoint=tmp_path).fit(X, X[:, 0] > 0), whole)
    assert torch.get_num_threads() == threads


@pytest.mark.filterwarnings("ignore:.*max_iter")
def test_a_sparsified_model_goes_on_with_a_checkpoint(data, tmp_path):
    model = glm(max_iter=2, warm_start=True).fit(**data).sparsify()
    alone = copy.deepcopy(model).fit(**data)
    model.set_params(checkpoint=tmp_path).fit(**data)
    assert_array_equal(model.coef_, alone.coef_)
