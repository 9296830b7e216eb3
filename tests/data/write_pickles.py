"""Write small fitted models, with what they predict, as the present version pickles them.

``python tests/data/write_pickles.py`` adds ``models-VERSION.zip`` beside this script: for each
model a pickle and an ``.npz`` with rows ``X`` and the predictions for them. It is run once, when
a version is released, and its file is never written again: `tests/test_saving.py` loads those of
all versions.
"""

import io
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

import sklearn_margdrop
from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)


def fitted_models():
    """Models of every estimator, between them with every kind of training; and their rows."""
    rng = np.random.RandomState(0)
    X = rng.normal(size=(60, 4))
    labels = np.array(["a", "b", "c"])[np.argmax(X[:, :3], axis=1)]
    counts = rng.poisson(np.exp(X[:, :2]))
    small = {"hidden_layer_sizes": (5,), "max_iter": 20, "device": "cpu", "random_state": 0}
    glm = {"device": "cpu", "random_state": 0}
    words = sparse.csr_array(rng.binomial(1, 0.3, size=(60, 12)).astype(np.float64))
    return X, {
        "classifier": MarginalizedDropoutClassifier(**small).fit(X, labels),
        "classifier_early_stopping": MarginalizedDropoutClassifier(
            early_stopping=True, activation="logistic", **small
        ).fit(X.astype(np.float32), labels == "a"),
        "classifier_sampling": MarginalizedDropoutClassifier(
            method="sampling", solver="sgd", learning_rate_decay=0.1, **small
        ).fit(X, labels),
        "regressor": MarginalizedDropoutRegressor(retain_rate=0.9, **small).fit(X, X[:, 0]),
        "regressor_poisson": MarginalizedDropoutRegressor(
            family="poisson", method="quadratic", n_probes=1, activation="tanh", **small
        ).fit(X, counts),
        "glm_classifier": MarginalizedDropoutGLMClassifier(**glm).fit(X, labels),
        "glm_classifier_sparse": MarginalizedDropoutGLMClassifier(**glm)
        .fit(words, words[:, [0]].toarray().ravel())
        .sparsify(),
        "glm_classifier_fisher": MarginalizedDropoutGLMClassifier(
            solver="fisher", max_iter=5, **glm
        ).fit(X, labels),
        "glm_regressor": MarginalizedDropoutGLMRegressor(noise="gaussian", **glm).fit(X, X[:, 0]),
        "glm_regressor_poisson": MarginalizedDropoutGLMRegressor(
            family="poisson", solver="adagrad", retain_rate=0.9, max_iter=5, **glm
        ).fit(X, counts),
    }


def rows_of(model, X):
    """Rows that `model` takes: those of `X`, of as many columns as it was fitted to."""
    return np.resize(X, (10, model.n_features_in_))


def predict(model, X):
    """Probabilities where there are any, else predictions."""
    return model.predict_proba(X) if hasattr(model, "classes_") else model.predict(X)


def main():
    path = Path(__file__).with_name(f"models-{sklearn_margdrop.__version__}.zip")
    if path.exists():
        sys.exit(f"{path} is there, and is what its version wrote.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        X, models = fitted_models()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, model in models.items():
            archive.writestr(f"{name}.pickle", pickle.dumps(model, protocol=4))
            rows, expected = rows_of(model, X), io.BytesIO()
            np.savez(expected, X=rows, predictions=predict(model, rows))
            archive.writestr(f"{name}.npz", expected.getvalue())


if __name__ == "__main__":
    main()
