"""Data that tests of several estimators learn."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.datasets import load_digits, make_classification
from sklearn.model_selection import train_test_split


@pytest.fixture(scope="module")
def text():
    """Bag-of-words like rows of two classes, labelled and not."""
    rng = np.random.RandomState(0)
    n, y = 600, rng.randint(2, size=600)
    # Each row holds a few of many features that are rare and tell the class, among noise.
    rare = np.zeros((n, 160))
    for row in range(n):
        group = rng.randint(20)
        kept = 8 * group + 4 * y[row] + np.flatnonzero(rng.uniform(size=4) < 0.7)
        rare[row, kept] = 1
    common = (rng.uniform(size=(n, 40)) < 0.3).astype(float)
    X = sp.csr_array(np.column_stack([rare, common]))
    y ^= rng.uniform(size=n) < 0.05
    return X[:200], y[:200], X[200:400], X[400:], y[400:]


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split(X / 16, y, random_state=0, stratify=y)


@pytest.fixture(scope="module")
def small():
    """Three separable classes of 60 rows."""
    return make_classification(
        60, 8, n_informative=5, n_classes=3, class_sep=2, n_clusters_per_class=1, random_state=0
    )


@pytest.fixture
def data():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(60, 4))
    return X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
