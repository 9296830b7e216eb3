"""Data that all tests of inspection look at, and figures that none leaves open."""

import matplotlib as mpl
import pytest
from sklearn.datasets import load_iris
from sklearn.preprocessing import StandardScaler

mpl.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")
