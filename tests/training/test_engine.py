"""The engine of a fit is not what a model keeps, and tells processes what each of them does."""

import copy
import pickle

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutGLMClassifier
from sklearn_margdrop.training.engine import Engine

X = np.random.RandomState(0).normal(size=(60, 4))
Y = (X[:, 0] > 0).astype(int)


class Second(Engine):
    """That of the second of two processes, of which the first one does nothing."""

    part = (1, 2)
    waits = 0

    def wait(self):
        self.waits += 1


class Copies(Callback):
    """Notes the engines of copies of the net in the middle of a training."""

    def on_epoch_begin(self, net, **kwargs):
        net.engine_ = Second()
        copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
        self.engines = [type(each.engine_) for each in copies]
        net.engine_ = Engine()


@pytest.fixture
def net():
    return MarginalizedDropoutClassifier((3,), tol=1e3, random_state=0).fit(X, Y).net_


def test_neither_parameters_nor_copies_hold_it():
    model = MarginalizedDropoutClassifier((3,), max_iter=40, tol=1e3, callbacks=[Copies()]).fit(
        X, Y
    )
    engines = next(each for _, each in model.net_.callbacks_ if isinstance(each, Copies)).engines
    assert "engine_" not in model.net_.get_params()
    assert [type(model.net_.engine_), *engines] == [Engine] * 3


def test_it_is_the_plain_one_after_a_fit_where_the_rows_lie():
    da = pytest.importorskip("dask.array")
    model = MarginalizedDropoutGLMClassifier()
    model.fit(da.from_array(X, chunks=(20, 4)), da.from_array(Y, chunks=20))
    assert type(model.net_.engine_) is Engine


def test_the_first_process_saves_what_all_load(net, tmp_path):
    path = tmp_path / "weights.pt"
    net.engine_ = Second()
    net.save_params(f_params=path)
    assert not path.exists()
    net.engine_ = Engine()
    net.save_params(f_params=path)
    expected = net.copy_weights()
    net.engine_ = Second()
    torch.nn.init.zeros_(net.module_.linears[0].weight)
    net.load_params(f_params=path)
    assert net.engine_.waits == 1
    assert torch.equal(net.module_.linears[0].weight, expected["layers.0.weight"])
