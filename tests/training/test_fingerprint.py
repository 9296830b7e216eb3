"""Descriptions and digests tell apart what differs, and nothing else."""

import collections
from functools import partial

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.linear_model import SGDClassifier
from skorch.callbacks import LRScheduler

from sklearn_margdrop.training.fingerprint import describe, digest


def counter(start):
    def count(epoch):
        return epoch + start if epoch > 3 else count(epoch + 1)

    return count


def test_descriptions_of_functions_and_containers():
    assert describe(lambda x: x + 1) == describe(lambda x: x + 1) != describe(lambda x: x + 2)
    assert describe(counter(1)) == describe(counter(1)) != describe(counter(2))
    assert describe(lambda x=1: x) != describe(lambda x=2: x)
    assert describe(range(3)) == describe(range(3)) != describe(range(5))
    assert describe(pd.Series([1, 2])) == describe(pd.Series([1, 2])) != describe(pd.Series([1]))
    assert describe(collections.deque([1])) != describe(collections.deque([2]))
    assert describe(slice(1)) == describe(slice(1)) != describe(slice(2))
    assert describe(partial(int, 2)) == describe(partial(int, 2)) != describe(partial(int))
    bound = [LRScheduler(step_size=size).get_params for size in (1, 1, 2)]
    assert describe(bound[0]) == describe(bound[1]) != describe(bound[2])


def test_descriptions():
    class Holder:
        def __init__(self, value):
            self.value = value

    assert describe(Holder(np.arange(3))) == describe(Holder(np.arange(3)))
    assert describe(Holder(np.arange(3))) != describe(Holder(np.arange(4)))
    assert describe(np.float64(0.5)) == describe(0.5) != describe(np.float64(0.25))
    assert describe({"b": 1, "a": (2, None)}) == describe({"a": (2, None), "b": 1})
    assert describe({1, 2}) == describe({2, 1})
    assert describe(np.sum) == describe(np.sum) != describe(np.max)
    assert describe(SGDClassifier(alpha=1.0)) != describe(SGDClassifier(alpha=2.0))
    assert describe(np.random.RandomState(0)) != describe(np.random.RandomState(1))
    X = np.arange(12.0).reshape(4, 3)
    assert digest(X) == digest(np.asfortranarray(X)) != digest(X.T)
    assert digest(X) != digest(X.astype(np.float32))
    assert digest(sp.csr_array(X)) == digest(sp.csr_array(X.copy())) != digest(X)
    assert digest(X, None) != digest(None, X)
    assert digest(np.array(["a", "b"], dtype=object)) != digest(np.array(["a", "c"], dtype=object))


def test_blocks_of_a_digest(monkeypatch):
    X = np.random.default_rng(0).normal(size=(50, 3))
    whole = digest(X)
    monkeypatch.setattr("sklearn_margdrop.numerics.memory._BLOCK_ELEMENTS", 12)
    assert digest(X) == whole
