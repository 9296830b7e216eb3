"""
A search on a Dask cluster
==========================

The fits of a grid search are spread over the workers of a cluster, here two processes of this
machine. The result is that of a serial search.
"""

from itertools import chain

import joblib
from dask.distributed import Client, LocalCluster
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from sklearn_margdrop import MarginalizedDropoutGLMClassifier


def main():
    X, y = load_digits(return_X_y=True)
    X = X[:500] / 16
    y = y[:500] < 5
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**options) as cluster, Client(cluster):
        grid = {"retain_rate": [0.5, 0.9], "alpha": [1e-4, 1e-2]}
        cv = list(StratifiedKFold(2).split(X, y))
        search = GridSearchCV(MarginalizedDropoutGLMClassifier(), grid, cv=cv)
        # A copy of each array on each worker, so that none is lost with a worker.
        with joblib.parallel_config(backend="dask", scatter=[X, y, *chain(*cv)]):
            search.fit(X, y)
    print(search.best_params_, f"{search.best_score_:.3f}")


if __name__ == "__main__":  # the workers import this file
    main()
