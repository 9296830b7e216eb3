"""The default settings against a tuned MLPClassifier and against ordinary dropout.

Run ``python -m benchmarks.quality.defaults``. On the data sets that scikit-learn bundles, over
several random splits (30 % held out): the classifier as it comes, the same with
``method="sampling"``, LogisticRegression with the best C, and MLPClassifier with the best of
twelve settings (both by 3-fold cross-validation on the training part).
"""

import warnings

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

from benchmarks import harness
from sklearn_margdrop import MarginalizedDropoutClassifier

DATA = {
    "digits, raw": (load_digits, FunctionTransformer),
    "digits, min-max": (load_digits, MinMaxScaler),
    "digits, standardised": (load_digits, StandardScaler),
    "breast cancer, standardised": (load_breast_cancer, StandardScaler),
    "wine, standardised": (load_wine, StandardScaler),
    "iris, standardised": (load_iris, StandardScaler),
}


def candidates(seed):
    mlp = {
        "hidden_layer_sizes": [(100,), (256,)],
        "alpha": [1e-4, 0.1, 1.0],
        "learning_rate_init": [1e-3, 5e-3],
    }
    return {
        "diagonal (default)": MarginalizedDropoutClassifier(random_state=seed),
        "quadratic": MarginalizedDropoutClassifier(method="quadratic", random_state=seed),
        "sampling": MarginalizedDropoutClassifier(method="sampling", random_state=seed),
        "MLPClassifier, tuned": GridSearchCV(MLPClassifier(random_state=seed), mlp, cv=3),
        "LogisticRegression, tuned": GridSearchCV(
            LogisticRegression(max_iter=2000), {"C": [0.01, 0.1, 1, 10]}, cv=3
        ),
    }


def evaluate(load, scaler, seed, untuned):
    """Accuracy, log loss, epochs and seconds of the last fit, for each candidate."""
    X, y = load(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=seed)
    results = {}
    for name, candidate in candidates(seed).items():
        if untuned and isinstance(candidate, GridSearchCV):
            continue
        model = make_pipeline(scaler(), candidate)
        seconds = harness.seconds_of(lambda: model.fit(X, y))  # noqa: B023
        seconds = getattr(model[-1], "refit_time_", seconds)
        fitted = getattr(model[-1], "best_estimator_", model[-1])
        probability = model.predict_proba(X_test)
        results[name] = (
            model.score(X_test, y_test),
            log_loss(y_test, probability),
            float(np.max(fitted.n_iter_)),
            seconds,
        )
    return results


def main():
    parser = harness.parser(__doc__, "splits", "json", splits=5)
    parser.add_argument("--untuned", action="store_true", help="leave out the slow tuned peers")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # settings of the peers that do not converge
    print(f"{options.splits} splits; {harness.environment()}")
    table = {}
    for title, (load, scaler) in DATA.items():
        runs = [evaluate(load, scaler, seed, options.untuned) for seed in range(options.splits)]
        print(f"\n{title:28s}{'accuracy':>9s}{'+-':>8s}{'log loss':>10s}{'epochs':>8s}{'s':>7s}")
        table[title] = {}
        for name in runs[0]:
            values = np.array([run[name] for run in runs])
            accuracy, loss, epochs, seconds = values.mean(0)
            error = harness.standard_error(values[:, 0])
            print(
                f"  {name:26s}{accuracy:9.4f}{error:8.4f}{loss:10.4f}{epochs:8.0f}{seconds:7.2f}",
                flush=True,
            )
            table[title][name] = {
                "accuracy": accuracy,
                "standard_error": error,
                "log_loss": loss,
                "epochs": epochs,
                "seconds": seconds,
            }
    harness.store(options.json, splits=options.splits, results=table)


if __name__ == "__main__":
    main()
