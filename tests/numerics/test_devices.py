"""Estimators in forked processes, also after torch has used its threads in the parent."""

import multiprocessing
import os
import subprocess
import sys

import pytest

FIT_AFTER_FORK = """
import multiprocessing
import warnings

import numpy as np
import torch

from sklearn_margdrop import MarginalizedDropoutClassifier

warnings.simplefilter("ignore")  # of fits that end at max_iter
X = np.random.RandomState(0).normal(size=(600, 300))


def fit(seed):
    model = MarginalizedDropoutClassifier(
        (512,), retain_rate=0.5, max_iter=1, random_state=seed
    )
    return float(model.fit(X, X[:, 0] > 0).loss_curve_[-1])


torch.set_num_threads(2)
here = [fit(seed) for seed in (0, 1)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    there = pool.map(fit, (0, 1))
np.testing.assert_allclose(there, here)
"""


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here"
)
def test_a_fork_does_not_wait_for_the_threads_of_its_parent():
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    code = [sys.executable, "-c", FIT_AFTER_FORK]
    run = subprocess.run(code, capture_output=True, text=True, env=environment, timeout=100)
    assert run.returncode == 0, run.stderr
