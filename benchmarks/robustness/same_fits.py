"""Fits of every estimator, method and solver: does a change leave them the same to the bit?

    python -m benchmarks.robustness.same_fits --save fits.json   # on the commit before
    python -m benchmarks.robustness.same_fits --check fits.json  # after the change, same machine

What is compared are digests of the fitted arrays and of the losses. They depend on the processor
and on the versions of torch and numpy, so that the file is not kept.
"""

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from scipy import sparse
from sklearn.datasets import load_diabetes, load_digits
from sklearn.neural_network import BernoulliRBM

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)

warnings.simplefilter("ignore")  # of fits that end at max_iter

X, Y = load_digits(return_X_y=True)
X, U, Y = X[:400] / 16, X[400:500] / 16, Y[:400]
D, T = load_diabetes(return_X_y=True)
WORDS = sparse.csr_array(np.random.RandomState(0).poisson(0.1, (300, 800)).astype(float))
LABELS = np.asarray(WORDS[:, :40].sum(1)).ravel() > 4
COUNTS = np.random.RandomState(1).poisson(np.exp(0.3 + D[:, 2] * 4))
INDICATORS = np.stack([Y % 2, Y > 4, Y == 0], axis=1).astype(int)
WEIGHT = np.random.RandomState(2).randint(0, 4, len(X)).astype(float)

NETWORK = {"hidden_layer_sizes": (32, 16), "max_iter": 6, "random_state": 0}
NETWORK |= {"retain_rate": 0.5}
GLM = {"max_iter": 40, "random_state": 0}


def network(**parameters):
    return MarginalizedDropoutClassifier(**NETWORK | parameters)


def regressor(**parameters):
    return MarginalizedDropoutRegressor(**NETWORK | parameters)


def glm(**parameters):
    return MarginalizedDropoutGLMClassifier(**GLM | parameters)


def glm_regressor(**parameters):
    return MarginalizedDropoutGLMRegressor(**GLM | parameters)


def streamed(model, *data, **first):
    """Four calls of partial_fit."""
    for part in np.array_split(np.arange(data[0].shape[0]), 4):
        model.partial_fit(*(each[part] for each in data), **first)
    return model


def resumed(make):
    """A fit that ends after three epochs, and one that goes on from its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        make(max_iter=3, checkpoint=folder).fit(X, Y, X_unlabeled=U)
        return make(max_iter=6, checkpoint=folder).fit(X, Y, X_unlabeled=U)


def warm(model, *data):
    return model.fit(*data).set_params(warm_start=True).fit(*data)


def on_dask(model, *data):
    import dask
    import dask.array as da

    with dask.config.set(scheduler="synchronous"):
        return model.fit(*(da.from_array(each, chunks=(130, *each.shape[1:])) for each in data))


def as_two_processes():
    """The digest of a fit that two processes on the CPU share."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--process"],
            env=environment | {"RANK": str(k), "LOCAL_RANK": str(k)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in range(2)
    ]
    first, second = (child.communicate(timeout=300)[0].split() for child in children)
    assert first[-1] == second[-1], "the two processes have different models"
    return first[-1]


def one_of_two_processes():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    return network(early_stopping=True, accelerator=accelerator).fit(X, Y, WEIGHT, U)


FITS = {
    "network, moments": lambda: network().fit(X, Y),
    "network, moments, weights and unlabelled": lambda: network().fit(X, Y, WEIGHT, U),
    "network, moments, two pairs": lambda: network(n_probes=2).fit(X, Y),
    "network, moments, no signs": lambda: network(n_probes=None).fit(X, Y),
    "network, chosen rates": lambda: network(retain_rate="auto").fit(X, Y),
    "network, diagonal": lambda: network(method="diagonal").fit(X, Y),
    "network, constant rate": lambda: network(learning_rate="constant", tol=0.02).fit(X, Y),
    "network, float32": lambda: network().fit(X.astype("float32"), Y),
    "network, sparse": lambda: network().fit(sparse.csr_array(X), Y),
    "network, quadratic": lambda: network(method="quadratic", n_probes=None).fit(X, Y),
    "network, quadratic, tangents, sgd": lambda: network(
        method="quadratic",
        n_probes=2,
        solver="sgd",
        learning_rate="constant",
        learning_rate_decay=0.1,
    ).fit(X, Y),
    "network, sampling": lambda: network(method="sampling").fit(X, Y),
    "network, sampling, unlabelled": lambda: network(method="sampling").fit(X, Y, X_unlabeled=U),
    "network, logistic, gaussian": lambda: network(activation="logistic", noise="gaussian").fit(
        X, Y
    ),
    "network, two classes, early stopping": lambda: network(
        early_stopping=True, class_weight="balanced"
    ).fit(X, Y > 4),
    "network, indicators": lambda: network().fit(X, INDICATORS),
    "network, pretrained": lambda: network(pretrainer=BernoulliRBM(n_iter=2)).fit(
        X, Y, X_unlabeled=U
    ),
    "network, exploding": lambda: network(learning_rate_init=0.5, solver="sgd", max_iter=8).fit(
        8 * X, Y
    ),
    "network, warm start": lambda: warm(network(tol=0.0), X, Y),
    "network, stream": lambda: streamed(network(), X, Y, classes=range(10)),
    "network, resumed": lambda: resumed(partial(network, learning_rate="constant")),
    "network, accelerator of one process": lambda: network(accelerator=_accelerator()).fit(X, Y),
    "regressor, normal": lambda: regressor().fit(D, 1e3 + T),
    "regressor, poisson": lambda: regressor(family="poisson").fit(D, COUNTS),
    "regressor, two outputs, early stopping": lambda: regressor(early_stopping=True).fit(
        D, np.stack([T, 7 * T**0.5], axis=1)
    ),
    "regressor, stream": lambda: streamed(regressor(), D, 1e3 + T),
    "GLM, moments": lambda: glm().fit(X, Y),
    "GLM, moments, sparse": lambda: glm().fit(WORDS, LABELS),
    "GLM, quadratic, sparse, unlabelled": lambda: glm(method="quadratic").fit(
        WORDS[:200], LABELS[:200], X_unlabeled=WORDS[200:]
    ),
    "GLM, no intercept, restarts": lambda: glm(
        method="quadratic", fit_intercept=False, n_restarts=2
    ).fit(X, Y),
    "GLM, gaussian noise": lambda: glm(noise="gaussian").fit(X, Y, WEIGHT),
    "GLM, warm start": lambda: warm(glm(max_iter=7), X, Y),
    "GLM, resumed": lambda: resumed(lambda **options: glm(**options)),
    "GLM, resumed, adagrad": lambda: resumed(lambda **options: glm(solver="adagrad", **options)),
    "GLM regressor, normal": lambda: glm_regressor().fit(D, 1e3 + T),
    "GLM regressor, poisson": lambda: glm_regressor(family="poisson").fit(D, COUNTS),
    "GLM regressor, far columns": lambda: glm_regressor().fit(D.astype("float32") + 2e3, T),
    "GLM, Dask": lambda: on_dask(glm(), X, Y),
    "GLM, Dask, weights": lambda: on_dask(glm(class_weight="balanced"), X, Y, WEIGHT),
    "GLM, Dask, unlabelled": lambda: on_dask(glm(method="quadratic"), X, Y, WEIGHT, X),
    "GLM regressor, Dask": lambda: on_dask(glm_regressor(), D, 1e3 + T),
    **{
        f"GLM, {solver}, {method}, {kind}": (
            lambda solver=solver, method=method, data=data: glm(
                solver=solver, method=method, max_iter=5
            ).fit(*data)
        )
        for solver in ("sgd", "adagrad", "fisher")
        for method in ("moments", "quadratic", "sampling")
        for kind, data in (("dense", (X, Y)), ("sparse", (WORDS, LABELS)))
    },
    **{
        f"GLM, {solver}, stream": (
            lambda solver=solver: streamed(
                glm(solver=solver), WORDS, LABELS, classes=[False, True]
            )
        )
        for solver in ("sgd", "adagrad", "fisher")
    },
    "GLM regressor, fisher, stream": lambda: streamed(glm_regressor(solver="fisher"), D, 1e3 + T),
}


def _accelerator():
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def digest(model):
    """Of what a fit has learned, and of the way there."""
    hashed = hashlib.blake2b(digest_size=12)
    if hasattr(model, "coef_"):
        arrays = [model.coef_, model.intercept_, model.fisher_diagonal_, model.penalty_]
    else:
        arrays = [*model.coefs_, *model.intercepts_, model.penalty_curve_]
    for each in (*arrays, model.loss_curve_):
        hashed.update(np.ascontiguousarray(each).tobytes())
    return hashed.hexdigest()


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--save", type=Path, help="write the digests to this file")
    options.add_argument("--check", type=Path, help="compare with those in this file")
    options.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--only", default="", help="fits whose names hold this text")
    options = options.parse_args()
    if options.process:
        print(digest(one_of_two_processes()))
        return
    print(f"torch {torch.__version__}, numpy {np.__version__}, {os.uname().machine}")
    before = json.loads(options.check.read_text()) if options.check else {}
    fits = {name: fit for name, fit in FITS.items() if options.only in name}
    found, different = {}, []
    for name, fit in fits.items():
        found[name] = digest(fit())
        if name in before and before[name] != found[name]:
            different.append(name)
            print(f"DIFFERENT: {name}", flush=True)
    if options.only in "network, two processes":
        found["network, two processes"] = as_two_processes()
        if before and before["network, two processes"] != found["network, two processes"]:
            different.append("network, two processes")
            print("DIFFERENT: network, two processes", flush=True)
    if options.save:
        options.save.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found)} fits" + (f", {len(different)} different" if before else ""))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
