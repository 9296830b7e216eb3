"""How much each parameter of the network matters: one at a time is moved.

Run ``python -m benchmarks.quality.sensitivity`` (ten minutes). On scikit-learn's digits and breast
cancer data, over random splits (a third of the rows to learn from, so that regularisation has
something to do): accuracy and log loss on the other rows, epochs and seconds. The order of the
parameters by the spread of their log losses is the order in which to search. They are moved away
from the settings of `choices.py`, not from the defaults.
"""

import warnings

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from benchmarks import harness
from benchmarks.quality.choices import BASE, RATES
from sklearn_margdrop import MarginalizedDropoutClassifier

DATA = {"digits": load_digits, "breast cancer": load_breast_cancer}
GRID = {
    "retain_rate": ["auto", 0.3, 0.5, 0.7, 0.9, 0.99],
    "noise_placement": ["both", "input", "hidden", "none"],
    "hidden_layer_sizes": [(64,), (256,), (1024,), (256, 256)],
    "alpha": [0.0, 3e-4, 1e-3, 1e-2],
    "learning_rate": ["cosine", "constant"],
    "learning_rate_init": [1e-3, 4e-3, 1e-2, 2e-2],
    "activation": ["relu", "tanh", "logistic"],
    "method": ["moments", "diagonal", "quadratic", "sampling"],
    "batch_size": [32, 100, 300],
    "early_stopping": [False, True],
}


def measure(load, setting, seed):
    """Accuracy, log loss, epochs and seconds of one fit."""
    X, y = load(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, train_size=1 / 3, stratify=y, random_state=seed)
    scaler = StandardScaler().fit(X)
    rates = RATES[setting.get("noise_placement", "both")]
    settings = BASE | {"retain_rate": rates, "random_state": seed} | setting
    if len(setting.get("hidden_layer_sizes", ())) > 1:
        settings["retain_rate"] = [0.8, 0.5, 0.5]
    model = MarginalizedDropoutClassifier(**settings)
    seconds = harness.seconds_of(lambda: model.fit(scaler.transform(X), y))
    probability = model.predict_proba(scaler.transform(X_test))
    accuracy = np.mean(model.classes_[probability.argmax(1)] == y_test)
    return float(accuracy), float(log_loss(y_test, probability)), model.n_iter_, seconds


def main():
    parser = harness.parser(__doc__, "splits", "json", splits=5)
    parser.add_argument("--only", nargs="*", default=list(GRID), help="parameters")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of fits that end at max_iter
    results = {}
    for data, load in DATA.items():
        for name in options.only:
            losses = []
            for value in GRID[name]:
                runs = [measure(load, {name: value}, seed) for seed in range(options.splits)]
                accuracy, loss, epochs, seconds = np.mean(runs, 0)
                losses.append(loss)
                setting = f"{name}={value!r}"
                print(
                    f"{data:14s}{setting:32s}{100 * accuracy:7.2f} %{loss:8.4f} nats"
                    f"{epochs:6.0f} epochs{seconds:7.2f} s",
                    flush=True,
                )
                results.setdefault(data, {})[setting] = runs
            print(f"{data:14s}{name:32s} spread of the log loss {max(losses) - min(losses):.4f}\n")
    harness.store(options.json, results=results)


if __name__ == "__main__":
    main()
