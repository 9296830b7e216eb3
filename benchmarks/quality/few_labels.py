"""The network with few labels, with and without the rest of the rows.

Run ``python -m benchmarks.quality.few_labels`` (two minutes). scikit-learn's digits: so many rows
with a label, 600 to test, the others without a label; the settings of `choices.py`.
"""

import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks import harness
from benchmarks.quality.choices import BASE, RATES
from sklearn_margdrop import MarginalizedDropoutClassifier

#: The discount of the unlabelled rows; None does without them.
DISCOUNTS = {"labelled rows alone": None, "discount 0.1": 0.1, "discount 1": 1.0}


def accuracies(n_labeled, seed):
    X, y = load_digits(return_X_y=True)
    options = {"random_state": seed}
    X, X_rest, y, y_rest = train_test_split(X / 16, y, train_size=n_labeled, stratify=y, **options)
    X_rest, X_test, _, y_test = train_test_split(X_rest, y_rest, test_size=600, **options)
    for name, discount in DISCOUNTS.items():
        model = MarginalizedDropoutClassifier(retain_rate=RATES["both"], random_state=seed, **BASE)
        if discount is None:
            model.fit(X, y)
        else:
            model.set_params(unlabeled_discount=discount).fit(X, y, X_unlabeled=X_rest)
        yield name, model.score(X_test, y_test)


def main():
    parser = harness.parser(__doc__, "splits", "json", splits=10)
    parser.add_argument("--labels", type=int, nargs="+", default=[50, 100, 200, 400])
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of fits that end at max_iter
    results = {}
    for n_labeled in options.labels:
        runs = [dict(accuracies(n_labeled, seed)) for seed in range(options.splits)]
        results[n_labeled] = {name: [run[name] for run in runs] for name in DISCOUNTS}
        for name, scores in results[n_labeled].items():
            percent = 100 * np.array(scores)
            error = harness.standard_error(percent)
            print(f"{n_labeled:5d} labels, {name:20s} {percent.mean():6.2f} +- {error:.2f}")
    harness.store(options.json, results=results)


if __name__ == "__main__":
    main()
