"""The generalised linear models against scikit-learn's, on real text and real counts.

Run ``python -m benchmarks.quality.glm_vs_logistic``; see `text_data.py` for where the data come
from.

Small text sets are cut at random into thirds: training, unlabelled and test rows. IMDB has its own
split. Features are binary bags of words. LogisticRegression has the best C and SGDClassifier the
best alpha of a grid by 3-fold cross-validation on the training rows; those of this package have
their defaults, and tuned values of `retain_rate` and `alpha` in the same way. Counts are cut in
halves and scored by the fraction of deviance explained; the peer is PoissonRegressor with the best
alpha.

Each row of the table: accuracy (or D^2) and its standard error over the splits, seconds of one fit
with the chosen setting and their ratio to LogisticRegression(lbfgs) on the same rows, iterations,
and the peak memory of the first such fit in a fresh process, the data included and the imports
not, in units of the data.
"""

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, PoissonRegressor, SGDClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from benchmarks import harness, text_data
from sklearn_margdrop import MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor

C = {"C": [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 100]}
GRID = {"retain_rate": [0.2, 0.35, 0.5, 0.7], "alpha": [1e-5, 1e-4, 3e-4, 1e-3]}
REFERENCE = "LogisticRegression(lbfgs)"


def peers(X, y):
    """Name and estimator of scikit-learn's classifiers, tuned on the training rows."""
    best = tuned(LogisticRegression(max_iter=2000), C, X, y)
    for solver in ("lbfgs", "newton-cg", "liblinear", "saga"):
        yield f"LogisticRegression({solver})", clone(best).set_params(solver=solver)
    online = SGDClassifier("log_loss", random_state=0)
    yield "SGDClassifier", tuned(online, {"alpha": np.logspace(-6, -2, 5)}, X, y)


def ours():
    for method in ("quadratic", "moments"):
        yield method, MarginalizedDropoutGLMClassifier(method=method)


def peak_memory(model, X, y, options):
    """Peak memory of a fit in a fresh process, above that of the imports, in units of X."""
    return harness.in_fresh_process(_peak_memory, model, X, y, options) / _size(X)


def _peak_memory(model, X, y, options):
    warnings.simplefilter("ignore")
    rows = np.linspace(0, X.shape[0] - 1, 200).astype(int)
    clone(model).fit(X[rows][:, :50], y[rows])  # loads what is loaded late
    return _size(X) + harness.peak_memory(lambda: clone(model).fit(X, y, **options))


def _size(X):
    parts = (X.data, X.indices, X.indptr) if sp.issparse(X) else (X,)
    return sum(part.nbytes for part in parts) / 1e6


class Table:
    """Measurements of one data set, by name of the model."""

    def __init__(self):
        self.rows = {}

    def add(self, name, model, train, test, **options):
        if name not in self.rows:
            memory = peak_memory(model, *train, options) if Path("/proc/self").exists() else np.nan
            self.rows[name] = {"score": [], "seconds": [], "n_iter": [], "memory": memory}
        fitted, row = clone(model), self.rows[name]
        row["seconds"].append(harness.seconds_of(lambda: fitted.fit(*train, **options)))
        row["score"].append(float(fitted.score(*test)))
        row["n_iter"].append(float(np.max(fitted.n_iter_)))

    def show(self, reference):
        print(
            f"{'':36s}{'score':>14s}{'seconds':>9s}{'ratio':>7s}{'iterations':>11s}{'memory':>8s}"
        )
        base = np.median(self.rows[reference]["seconds"])
        for name, row in self.rows.items():
            score, error = np.mean(row["score"]), np.std(row["score"]) / len(row["score"]) ** 0.5
            seconds = np.median(row["seconds"])
            print(
                f"{name:36s}{100 * score:8.2f} ±{100 * error:4.2f}{seconds:9.3f}"
                f"{seconds / base:7.2f}{np.mean(row['n_iter']):11.1f}{row['memory']:8.1f}"
            )
        print(flush=True)


def tuned(model, grid, X, y):
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    return GridSearchCV(model, grid, cv=cv).fit(X, y).best_estimator_


def small_text(name, n_splits):
    texts, y = text_data.load(name)
    X = text_data.vectorizer().fit_transform(texts).tocsr()
    third = len(y) // 3
    table = Table()
    for split in range(n_splits):
        order = np.random.RandomState(split).permutation(len(y))
        train, unlabeled, test = np.split(order[: 3 * third], 3)
        rows, held_out = (X[train], y[train]), (X[test], y[test])
        for label, model in peers(*rows):
            table.add(label, model, rows, held_out)
        for label, model in ours():
            table.add(label, model, rows, held_out)
            table.add(f"{label} + unlabelled", model, rows, held_out, X_unlabeled=X[unlabeled])
            careful = clone(model).set_params(alpha=1e-3, unlabeled_discount=0.1)
            title = f"{label}, alpha=1e-3 + 0.1 unlabelled"
            table.add(title, careful, rows, held_out, X_unlabeled=X[unlabeled])
            best = tuned(model, GRID, *rows)
            table.add(f"{label}, tuned", best, rows, held_out)
    print(f"{name}: {third} training rows, {X.shape[1]} features, {n_splits} splits")
    table.show(REFERENCE)
    return table.rows


def imdb(n_repeats, **options):
    train, y, test, y_test, unlabeled = text_data.imdb()
    vectors = text_data.vectorizer(**options)
    X = vectors.fit_transform(train)
    X_test, U = vectors.transform(test), vectors.transform(unlabeled)
    table = Table()
    rows, held_out = (X, y), (X_test, y_test)
    best = dict(peers(*rows))
    for _ in range(n_repeats):
        table.add(f"{REFERENCE}, C=1, default max_iter", LogisticRegression(), rows, held_out)
        for label, model in best.items():
            table.add(label, model, rows, held_out)
        for label, model in ours():
            table.add(label, model, rows, held_out)
            strong = clone(model).set_params(alpha=3e-4)
            table.add(f"{label}, alpha=3e-4", strong, rows, held_out)
            table.add(f"{label}, alpha=3e-4 + unlabelled", strong, rows, held_out, X_unlabeled=U)
    print(f"IMDB {options}: {X.shape[0]} training rows, {X.shape[1]} features, {X.nnz} non-zeros")
    table.show(f"{REFERENCE}, C=1, default max_iter")
    return table.rows


def count_data(name, load, n_splits):
    X, y = load()
    X = sp.csr_array(X) if sp.issparse(X) else X
    table = Table()
    for split in range(n_splits):
        order = np.random.RandomState(split).permutation(len(y))
        train, test = order[: len(y) // 2], order[len(y) // 2 :]
        rows, held_out = (X[train], y[train]), (X[test], y[test])
        search = GridSearchCV(
            PoissonRegressor(max_iter=1000), {"alpha": np.logspace(-6, 1, 8)}, cv=3
        )
        best = search.fit(*rows).best_estimator_
        table.add("PoissonRegressor", best, rows, held_out)
        for method in ("quadratic", "moments"):
            model = MarginalizedDropoutGLMRegressor(family="poisson", method=method)
            search = GridSearchCV(model, {"retain_rate": [0.5, 0.9, 0.99, 0.999]}, cv=3)
            table.add(f"{method}, tuned", search.fit(*rows).best_estimator_, rows, held_out)
    print(f"{name}: {len(y) // 2} training rows, {X.shape[1]} features, {n_splits} splits")
    table.show("PoissonRegressor")
    return table.rows


def main():
    parser = harness.parser(__doc__, "splits", "json", splits=5)
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the fits on IMDB")
    parser.add_argument("--only", nargs="*", help="names of data sets")
    arguments = parser.parse_args()
    print(harness.environment())
    jobs = {name: partial(small_text, name, arguments.splits) for name in text_data.available()}
    if text_data.FOLDER:
        jobs |= {
            "IMDB unigrams": lambda: imdb(arguments.repeats, min_df=2),
            "IMDB bigrams": lambda: imdb(1, ngram_range=(1, 2)),
            "bike sharing": lambda: count_data("bike sharing", text_data.bike_sharing, 3),
            "doctor visits": lambda: count_data("doctor visits", text_data.doctor_visits, 3),
        }
    results = {}
    for name, job in jobs.items():
        if arguments.only and name not in arguments.only:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of grids and solvers that do not converge
            results[name] = job()
        harness.store(arguments.json, results=results)


if __name__ == "__main__":
    main()
