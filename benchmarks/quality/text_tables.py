"""Document classification as in Wager, Wang and Liang (W), beside its published figures.

Run ``python -m benchmarks.quality.text_tables`` with ``MARGDROP_DATA`` set (see `text_data.py`;
without it there are the newsgroups). What is finished is stored and is not run again, so a run
that was killed goes on where it was. ``--report`` prints the tables, ``--quick`` runs all of it on
fewer documents and one split, ``--names`` and ``--systems`` choose a part of it.

(a) Documents are cut at random into thirds: training, unlabelled and test rows. Features are the
presence of words and of marks of punctuation. Every system is tuned by three-fold
cross-validation on the training rows over a grid of its own, fitted to them again and tested
once; the table has the mean over the splits and its standard error. AthR is not in W's table and
is from fast dropout (F).
(b) The large IMDB set has its own split: 25,000 reviews to learn from, 50,000 without a label and
25,000 to test; single words that occur twice or more, and pairs of words as well.

The published figures were written down from memory of the paper.
"""

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ParameterGrid, StratifiedKFold

from benchmarks import cells, harness, text_data
from sklearn_margdrop import MarginalizedDropoutGLMClassifier

#: Words, and single marks of punctuation.
TOKENS = r"(?u)\w+|[^\w\s]"
NAMES = ["Subj", "RT", "IMDB-2k", "XGraph", "BbCrypt", "AthR", "IMDB"]
FULL = {
    "IMDB, words": {"min_df": 2},
    "IMDB, words and pairs": {"min_df": 2, "ngram_range": (1, 2)},
}

#: Published accuracies in %, from memory of the paper; its dropout is our "quadratic".
PUBLISHED = {
    "LogisticRegression": [88.96, 73.49, 80.63, 83.10, 97.28, None, 87.14, None, None],
    "quadratic": [90.85, 75.18, 81.23, 84.64, 98.49, None, 88.70, 87.78, 91.31],
    "quadratic + unlabelled": [91.48, 76.56, 80.33, 85.41, 99.24, None, 89.21, 89.52, 91.98],
}
DROPOUT = {"retain_rate": [0.2, 0.35, 0.5, 0.7], "alpha": [1e-5, 1e-4, 3e-4, 1e-3]}
UNLABELED = {"retain_rate": [0.35, 0.5], "alpha": [1e-4, 3e-4, 1e-3]}
UNLABELED |= {"unlabeled_discount": [0.1, 0.3, 1.0]}

#: Model, grid, and whether it sees the unlabelled rows.
SYSTEMS = {
    "LogisticRegression": (
        LogisticRegression(max_iter=2000),
        {"C": [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 100]},
        False,
    )
}
for _method in ("quadratic", "moments"):
    _model = MarginalizedDropoutGLMClassifier(method=_method)
    SYSTEMS[_method] = (_model, DROPOUT, False)
    SYSTEMS[f"{_method} + unlabelled"] = (_model, UNLABELED, True)


def documents(name, quick):
    """Texts and labels; in the order of the files."""
    if name == "IMDB":
        train, y, test, y_test, _ = text_data.imdb()
        texts, y = train + test, np.concatenate([y, y_test])
    else:
        texts, y = text_data.load(name)
    if quick:
        kept = np.random.RandomState(0).permutation(len(y))[:1500]
        texts, y = [texts[k] for k in kept], y[kept]
    return texts, y


def load(name, split, quick):
    """Training rows, their labels, unlabelled rows, test rows and their labels."""
    return full(name, quick) if name in FULL else thirds(name, split, quick)


def thirds(name, split, quick):
    texts, y = documents(name, quick)
    X = text_data.vectorizer(TOKENS).fit_transform(texts).tocsr()
    order = np.random.RandomState(split).permutation(len(y))
    train, unlabeled, test = np.array_split(order, 3)
    return X[train], y[train], X[unlabeled], X[test], y[test]


def full(name, quick):
    train, y, test, y_test, unlabeled = text_data.imdb()
    if quick:
        train, y, test, y_test = train[::50], y[::50], test[::50], y_test[::50]
        unlabeled = unlabeled[::50]
    vectors = text_data.vectorizer(TOKENS, **FULL[name])
    X = vectors.fit_transform(train)
    return X, y, vectors.transform(unlabeled), vectors.transform(test), y_test


def tune(model, grid, X, y, **fit_parameters):
    """The setting with the best accuracy in three-fold cross-validation."""
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))

    def accuracy(setting):
        candidate = clone(model).set_params(**setting)
        scores = [
            candidate.fit(X[train], y[train], **fit_parameters).score(X[test], y[test])
            for train, test in folds
        ]
        return np.mean(scores)

    return max(ParameterGrid(grid), key=accuracy)


def measure(cell, data):
    """Tune and fit one system."""
    X, y, unlabeled, X_test, y_test = data
    model, grid, sees_unlabeled = SYSTEMS[cell["system"]]
    fit_parameters = {"X_unlabeled": unlabeled} if sees_unlabeled else {}
    best = tune(model, grid, X, y, **fit_parameters)
    fitted = clone(model).set_params(**best)
    seconds = harness.seconds_of(lambda: fitted.fit(X, y, **fit_parameters))
    result = {
        "accuracy": float(fitted.score(X_test, y_test)),
        "setting": best,
        "seconds": seconds,
        "shape": X.shape,
    }
    print(f"  {100 * result['accuracy']:.2f} % with {best}", flush=True)
    return result


def tables(stored):
    """Title, head, rows and notes of the table; one more for quick runs."""
    for quick in (False, True):
        records = [r for r in stored.records.values() if r["cell"]["quick"] == quick]
        if records:
            yield _table(records, quick)


def _table(records, quick):
    results = {}  # by name, system and split
    for record in records:
        cell = record["cell"]
        systems = results.setdefault(cell["name"], {})
        systems.setdefault(cell["system"], {})[cell["split"]] = record["result"]
    columns, notes = {}, ["Training rows x features."]
    for name, systems in results.items():
        # The splits that all of them have.
        splits = set.intersection(*map(set, systems.values()))
        columns[name] = {s: _mean([of[split] for split in splits]) for s, of in systems.items()}
        if splits:
            rows, features = systems[next(iter(systems))][next(iter(splits))]["shape"]
            notes.append(f"{name}: {rows} x {features}, {len(splits)} split(s).")
    body = []
    for system in SYSTEMS:
        if system in PUBLISHED:
            figures = ["" if f is None else f"{f:.2f}" for f in PUBLISHED[system]]
            body.append([system, "published", *figures])
        ours = [columns.get(name, {}).get(system, "not run") for name in (*NAMES, *FULL)]
        body.append([system, "ours", *ours])
    title = "Accuracy (%) and its standard error over random splits" + ", QUICK RUN" * quick
    return title, ["system", "", *NAMES, *FULL], body, [" ".join(notes)]


def _mean(results):
    accuracies = [100 * result["accuracy"] for result in results]
    if len(accuracies) < 2:
        return f"{accuracies[0]:.2f}" if accuracies else "not run"
    return f"{np.mean(accuracies):.2f} ± {harness.standard_error(accuracies):.2f}"


def main():
    options = cells.options(__doc__, "text_tables")
    options.add_argument("--names", nargs="+", choices=[*NAMES, *FULL], help="data sets")
    options.add_argument("--systems", nargs="+", choices=list(SYSTEMS))
    options.add_argument("--splits", type=int, help="random splits of (a) (default 10)")
    cells.main(options, run, tables)


def run(stored, arguments):
    for model, _, _ in SYSTEMS.values():
        if isinstance(model, MarginalizedDropoutGLMClassifier):
            model.set_params(device=arguments.device)
    can_load = text_data.available() + (["IMDB", *FULL] if text_data.FOLDER else [])
    n_splits = arguments.splits or (1 if arguments.quick else 10)
    todo = [
        {"name": name, "split": split, "system": system, "quick": arguments.quick}
        for name in arguments.names or can_load
        for split in range(1 if name in FULL else n_splits)
        for system in arguments.systems or SYSTEMS
    ]
    loaded = {}

    def measure_on_data(cell):
        key = cell["name"], cell["split"]
        if key not in loaded:
            loaded.clear()  # one at a time
            loaded[key] = load(*key, arguments.quick)
        return measure(cell, loaded[key])

    stored.measure(todo, measure_on_data)


if __name__ == "__main__":
    main()
