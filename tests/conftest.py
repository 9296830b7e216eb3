"""Settings that all tests share."""

import os

import pytest

# It registers what other tests are not to see; `test_extending.py` imports it.
collect_ignore = ["extensions.py"]
# Doctests are looked for in modules, and these would have one name.
collect_ignore_glob = ["*/conftest.py"]

# The tests' arrays are tiny, and threads that wait for each other cost far more than they save,
# above all when pytest-xdist runs a worker on each core. Nothing has imported torch or numpy yet,
# and the processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="module")
def iris():
    from sklearn.datasets import load_iris
    from sklearn.preprocessing import StandardScaler

    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture
def no_training(monkeypatch):
    """Fail if a single step is taken."""
    from sklearn_margdrop.training.net import MarginalizedNet

    def step(self, batch, **fit_params):
        raise AssertionError("training has started")

    monkeypatch.setattr(MarginalizedNet, "train_step", step)


@pytest.fixture(scope="module", autouse=True)
def _short_trials():
    """Networks choose their retain rates in an instant; what they choose is tested elsewhere.

    Not for the whole session: the examples of the documentation choose as users do.
    """
    from sklearn_margdrop.estimators import strengths

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strengths, "N_STEPS", 3)
        yield
