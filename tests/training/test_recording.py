"""Every epoch is recorded, with the lowest losses of all of them."""

import pytest
from quick import classifier
from sklearn.base import clone

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_without_callbacks_every_epoch_is_recorded(iris):
    net = clone(classifier().fit(*iris).net_)
    net.set_params(callbacks="disable", max_epochs=5).fit(*iris)
    assert len(net.history) == 5


def test_histories_of_streams_know_the_lowest_loss(iris):
    model = classifier()
    for _ in range(8):
        model.partial_fit(*iris, classes=[0, 1, 2])
    losses = model.net_.history[:, "train_loss"]
    lowest = [loss == min(losses[: k + 1]) for k, loss in enumerate(losses)]
    assert model.net_.history[:, "train_loss_best"] == lowest
