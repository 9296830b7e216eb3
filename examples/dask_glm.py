"""
A generalised linear model on a Dask cluster
============================================

The rows of a Dask array stay on the workers, here two processes of this machine. L-BFGS sends the
coefficients to them, and gets the sums of their gradients back.
"""

import dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster

from sklearn_margdrop import MarginalizedDropoutGLMClassifier


def main():
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**options) as cluster, Client(cluster):
        # Blocks that are drawn on the workers; in earnest they are read from files there.
        X = da.random.default_rng(0).normal(size=(20_000, 20), chunks=(5_000, 20))
        coef = np.linspace(-1, 1, 20)
        noise = da.random.default_rng(1).logistic(size=20_000, chunks=5_000)
        y = (X @ coef + noise > 0).astype(int)
        model = MarginalizedDropoutGLMClassifier(retain_rate=0.9).fit(X, y)
        predictions = X.map_blocks(model.predict, drop_axis=1, dtype=int)
        accuracy = float((predictions == y).mean().compute())
    print(f"{model.n_iter_} iterations, accuracy {accuracy:.3f}")
    print("correlation with the coefficients:", np.corrcoef(model.coef_[0], coef)[0, 1].round(2))


if __name__ == "__main__":  # the workers import this file
    main()
