"""Weights are read in `coefs_` and `intercepts_`, and changed in the net."""

import copy
import operator
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutRegressor

X = np.random.RandomState(0).randn(30, 3)
Y = (X[:, 0] > 0).astype(int)
ATTRIBUTES = ["coefs_", "intercepts_"]


@pytest.fixture(params=[MarginalizedDropoutClassifier, MarginalizedDropoutRegressor])
def model(request):
    return request.param((4,), random_state=0).partial_fit(
        X, Y, **({"classes": [0, 1]} if "Classifier" in request.param.__name__ else {})
    )


def change_an_item(values):
    values[0][0] = 1.0


def change_a_slice(values):
    values[-1][...] = 0


def change_a_view(values):
    values[0].T[0] = 1.0


def change_in_place(values):
    values[0] *= 2


def change_an_array_in_place(values):
    array = values[-1]
    array += 1


def exchange_an_array(values):
    values[0] = np.zeros_like(values[0])


def exchange_all(values):
    values[:] = [np.zeros(1)] * len(values)


def write_a_result(values):
    np.multiply(np.ones(values[0].shape), 2, out=values[0])


def write_by_index(values):
    np.add.at(values[-1], 0, 1.0)


def append_an_array(values):
    values.append(values[0])


def sort_an_array(values):
    values[0].sort()


@pytest.mark.parametrize("attribute", ATTRIBUTES)
@pytest.mark.parametrize(
    "change",
    [
        *(change_an_item, change_a_slice, change_a_view, change_in_place),
        *(change_an_array_in_place, exchange_an_array, exchange_all, write_a_result),
        *(write_by_index, append_an_array, sort_an_array),
    ],
    ids=lambda change: change.__name__,
)
def test_a_write_says_where_the_weights_are(model, attribute, change):
    expected = model.predict(X)
    with pytest.raises(ValueError, match=r"net_\.module_\.linears"):
        change(getattr(model, attribute))
    assert_array_equal(model.predict(X), expected)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_the_rest_of_numpys_ways_to_write_are_errors_too(model, attribute):
    array = getattr(model, attribute)[0]
    for write in (
        lambda: array.fill(0),
        lambda: np.copyto(array, 0),
        lambda: np.asarray(array).__setitem__(..., 0),
    ):
        with pytest.raises(ValueError, match=r"read-only|net_"):
            write()


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_new_value_says_where_the_weights_are(model, attribute):
    values = getattr(model, attribute)
    with pytest.raises(AttributeError, match=r"net_\.module_\.linears"):
        setattr(model, attribute, values)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_copies_and_results_are_ordinary(model, attribute):
    values = getattr(model, attribute)
    assert isinstance(values, list)
    before = [np.array(each) for each in values]
    exchanged = copy.deepcopy(values)
    exchanged[0] = exchanged[0] + 1
    for each in (values[0].copy(), copy.deepcopy(values)[0], np.zeros_like(values[0])):
        each.fill(0)
        each[...] = 1
        each += 1
        assert (np.asarray(each) == 2).all()
    for result in (
        *(values[0] * 2, -values[0], np.exp(values[0]), values[0] > 0, values[0].T @ values[0]),
        *(values[0].sum(), np.array(values[0]), operator.add(values[0], values[0])),
    ):
        assert type(result) is np.ndarray or np.isscalar(result)
    for a, b in zip(pickle.loads(pickle.dumps(values)), before, strict=True):
        assert_array_equal(a, b)
    for a, b in zip(getattr(model, attribute), before, strict=True):
        assert_array_equal(a, b)


def test_the_net_is_where_weights_are_changed(model):
    with torch.no_grad():
        for linear in model.net_.module_.linears:
            linear.weight[:] = 0
            linear.bias[:] = 1
    assert all((each == 0).all() for each in model.coefs_)
    *hidden, output = model.intercepts_
    assert all((each == 1).all() for each in hidden)
    units = model._target.units  # of a regressor, whose output is in those of the target
    assert output == pytest.approx(1 if units is None else units.location + units.scale)
    assert len(np.unique(model.predict(X))) == 1
