"""Which noise, placement, retain rate, model and method: each choice on several data sets.

Run ``python -m benchmarks.quality.choices``; MNIST, the counts and the text need ``MARGDROP_DATA``
(see `text_data.py`). What is finished is stored and is not run again. ``--report`` prints the
tables, ``--quick`` takes one seed and fewer data sets, ``--questions`` chooses tables.

Tables have a random half of the rows (1000 of MNIST, 2000 of the counts) to learn from and the
rest to be scored on; a seed draws the rows and seeds the model. Features are divided by their
maximum (images), one-hot encoded (bicycles) or standardised. Networks have the settings `BASE` but
for what their names say, and generalised linear models their defaults; the linear models of
scikit-learn have the best of a grid by cross-validation on the training rows.
"few labels" keeps a third of the texts to be scored on; of the others some have a label, and the
rest are the unlabelled rows of a generalised linear model.
"""

from functools import lru_cache
from itertools import product

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.metrics import d2_tweedie_score, log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from benchmarks import cells, harness, image_data, text_data
from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)

#: What is predicted: a label, a number or a count.
BUNDLED = {"digits": "label", "breast cancer": "label", "wine": "label", "diabetes": "normal"}
LOCAL = {"MNIST": "label", "bicycles": "poisson", "doctor visits": "poisson"}
ROWS = {"MNIST": 1000, "bicycles": 2000, "doctor visits": 2000}
TEXT = ["Subj", "RT", "XGraph", "AthR"]
LABELS = (50, 200, 500)

DEFAULT, NO_NOISE = 'network, "diagonal", 0.8 and 0.5', "network without noise"
#: The settings of every network, and its rates at the input and at hidden layers.
BASE = {"method": "diagonal", "n_probes": None}
BASE |= {"learning_rate": "constant", "learning_rate_init": 4e-3}
RATES = {"both": [0.8, 0.5], "input": 0.8, "hidden": 0.5, "none": 1.0}
LINEAR, BOOSTING = "scikit-learn's linear model, tuned", "HistGradientBoosting"
#: The settings of the networks and of the linear models by name.
NETWORKS = {DEFAULT: {}, NO_NOISE: {"noise_placement": "none"}}
NETWORKS |= {
    f'noise="gaussian", noise_std={std}': {"noise": "gaussian", "noise_std": std}
    for std in (0.1, 0.3, 1.0)
}
NETWORKS |= {f'noise_placement="{p}"': {"noise_placement": p} for p in ("input", "hidden")}
NETWORKS |= {f"retain_rate={q}": {"retain_rate": q} for q in (0.3, 0.5, 0.8, 0.9)}
NETWORKS |= {
    f'method="{method}"': {"method": method} for method in ("quadratic", "diagonal", "sampling")
}
GLMS = {
    f'GLM, "{method}", retain_rate={q}': {"method": method, "retain_rate": q}
    for method in ("moments", "quadratic")
    for q in (0.5, 0.9, 0.99)
}
UNLABELED = {
    "labelled rows alone": {},
    "+ unlabelled": {"unlabeled_discount": 1.0},
    "+ 0.1 unlabelled": {"unlabeled_discount": 0.1},
}


def _starting(*starts):
    return [name for name in NETWORKS if name.startswith(starts)]


#: The models that each table compares.
QUESTIONS = {
    "noise": [DEFAULT, NO_NOISE, *_starting("noise=")],
    "placement": [DEFAULT, *_starting("noise_placement="), NO_NOISE],
    "retain rate": [*_starting("retain_rate="), DEFAULT],
    "method": [DEFAULT, *_starting("method=")],
    "model": [DEFAULT, *GLMS, LINEAR, BOOSTING],
}
FEW = "few labels"
PEERS = {
    "label": GridSearchCV(LogisticRegression(max_iter=5000), {"C": np.logspace(-3, 1, 5)}, cv=3),
    "normal": GridSearchCV(Ridge(), {"alpha": np.logspace(-3, 4, 8)}, cv=3),
    "poisson": GridSearchCV(PoissonRegressor(max_iter=5000), {"alpha": np.logspace(-6, 1, 8)}),
}


def model_of(name, kind, seed):
    """The model with that name, for labels, numbers or counts."""
    if name == LINEAR:
        return PEERS[kind]
    if name == BOOSTING and kind == "label":
        return HistGradientBoostingClassifier(random_state=seed)
    if name == BOOSTING:
        loss = {"normal": "squared_error"}.get(kind, kind)
        return HistGradientBoostingRegressor(loss, random_state=seed)
    settings = (NETWORKS | GLMS)[name] | {"random_state": seed}
    if name in NETWORKS:
        rates = RATES[settings.get("noise_placement", "both")]
        settings = BASE | {"retain_rate": rates} | settings
    if kind == "label":
        classes = MarginalizedDropoutClassifier, MarginalizedDropoutGLMClassifier
    else:
        classes = MarginalizedDropoutRegressor, MarginalizedDropoutGLMRegressor
        settings |= {"family": kind}
    return classes[name in GLMS](**settings)


@lru_cache
def load(name):
    """Features, targets and the scaler of a table."""
    if name == "digits":
        X, y = load_digits(return_X_y=True)
        return X / 16, y, FunctionTransformer
    if name == "MNIST":
        X, y, _, _ = image_data.mnist()
        return X[:10_000], y[:10_000], FunctionTransformer
    if name == "bicycles":
        X, y = text_data.bike_sharing()
        return X.toarray(), y, FunctionTransformer
    if name == "doctor visits":
        return *text_data.doctor_visits(), FunctionTransformer
    if name == "diabetes":
        X, y = load_diabetes(return_X_y=True)
        return X, y / y.std(), StandardScaler
    loader = {"breast cancer": load_breast_cancer, "wine": load_wine}[name]
    return *loader(return_X_y=True), StandardScaler


@lru_cache
def load_text(name):
    texts, y = text_data.load(name)
    return text_data.vectorizer().fit_transform(texts).tocsr(), y


def measure(cell):
    """Score on new rows (accuracy, or the fraction of deviance explained), log loss, seconds."""
    name, seed = cell["data"], cell["seed"]
    if "labels" in cell:
        return measure_few_labels(cell)
    kind = (BUNDLED | LOCAL)[name]
    X, y, scaler = load(name)
    X, X_test, y, y_test = train_test_split(
        X,
        y,
        train_size=ROWS.get(name, 0.5),
        stratify=y if kind == "label" else None,
        random_state=seed,
    )
    model = make_pipeline(scaler(), model_of(cell["model"], kind, seed))
    return score(model, kind, (X, y), (X_test, y_test))


def measure_few_labels(cell):
    X, y = load_text(cell["data"])
    seed = cell["seed"]
    X, X_test, y, y_test = train_test_split(X, y, test_size=1 / 3, stratify=y, random_state=seed)
    labelled, rest = train_test_split(
        np.arange(len(y)), train_size=cell["labels"], stratify=y, random_state=seed
    )
    settings = UNLABELED[cell["model"]]
    model = MarginalizedDropoutGLMClassifier(alpha=cell["alpha"], **settings)
    options = {"X_unlabeled": X[rest]} if settings else {}
    return score(model, "label", (X[labelled], y[labelled]), (X_test, y_test), **options)


def score(model, kind, train, test, **options):
    seconds = harness.seconds_of(lambda: model.fit(*train, **options))
    X, y = test
    if kind == "label":
        loss = log_loss(y, model.predict_proba(X), labels=np.unique(y))
        return {"score": model.score(X, y), "log_loss": loss, "seconds": seconds}
    power = {"normal": 0, "poisson": 1}[kind]
    return {"score": d2_tweedie_score(y, model.predict(X), power=power), "seconds": seconds}


def configurations(questions, n_seeds, data, text):
    names = dict.fromkeys(name for q in questions if q != FEW for name in QUESTIONS[q])
    for seed in range(n_seeds):
        for name in data:
            for model in names:
                yield {"data": name, "model": model, "seed": seed}
        for name, labels, alpha in product(text, LABELS, (1e-4, 1e-3)):
            if FEW in questions:
                for model in UNLABELED:
                    yield {
                        "data": name,
                        "labels": labels,
                        "alpha": alpha,
                        "model": model,
                        "seed": seed,
                    }


def tables(stored):
    """Title, head, rows and notes by question."""
    results = {}  # by row, column and seed
    for record in stored.records.values():
        cell = record["cell"]
        row, column = cell["model"], cell["data"]
        if "labels" in cell:
            row = f"{column},\N{NO-BREAK SPACE}{cell['labels']} labels"
            column = f"{cell['model']}, alpha={cell['alpha']:g}"
        cells_of = results.setdefault(row, {}).setdefault(column, {})
        cells_of[cell["seed"]] = record["result"]
    few = {row: columns for row, columns in results.items() if row.endswith(" labels")}
    rows = {q: {name: results.get(name, {}) for name in names} for q, names in QUESTIONS.items()}
    return {question: table_of(question, of) for question, of in (rows | {FEW: few}).items()}


def table_of(question, rows):
    columns = list(dict.fromkeys(column for of in rows.values() for column in of))
    # The seeds that all models of a column have.
    seeds = {
        column: set.intersection(*(set(of[column]) for of in rows.values() if column in of))
        for column in columns
    }
    body = [
        [
            row,
            *(mean([of[name][s] for s in seeds[name]]) if name in of else "" for name in columns),
        ]
        for row, of in rows.items()
    ]
    n_seeds = sorted({len(each) for each in seeds.values()})
    notes = [f"Means over {' to '.join(map(str, n_seeds))} seeds; the log loss in brackets."]
    return f"{question.capitalize()}: score on new rows, in %", ["", *columns], body, notes


def mean(results):
    if not results:
        return ""
    scores = [100 * result["score"] for result in results]
    text = f"{np.mean(scores):.1f}"
    if len(scores) > 1:  # with spaces at which no line breaks
        text += "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
        text += f"{harness.standard_error(scores):.1f}"
    if "log_loss" in results[0]:
        text += f" ({np.mean([result['log_loss'] for result in results]):.3f})"
    return text


def run(stored, arguments):
    data = BUNDLED if arguments.quick else BUNDLED | (LOCAL if text_data.FOLDER else {})
    text = TEXT if text_data.FOLDER and not arguments.quick else []
    n_seeds = 1 if arguments.quick else arguments.seeds
    stored.measure(list(configurations(arguments.questions, n_seeds, data, text)), measure)


def main():
    options = cells.options(__doc__, "choices")
    options.add_argument(
        "--questions", nargs="+", choices=[*QUESTIONS, FEW], default=[*QUESTIONS, FEW]
    )
    options.add_argument("--seeds", type=int, default=5)
    cells.main(options, run, lambda stored: tables(stored).values())


if __name__ == "__main__":
    main()
