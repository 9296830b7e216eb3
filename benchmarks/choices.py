"""Which noise, placement, retain rate, model and method: each choice on several data sets.

Run ``python benchmarks/choices.py``; MNIST, the counts and the text need ``MARGDROP_DATA`` (see
`text_data.py`). What is finished is stored and is not run again. ``--report`` prints the tables,
``--quick`` takes one seed and fewer data sets, ``--questions`` chooses tables.

Tables have a random half of the rows (of MNIST and the counts 2000) to learn from and the rest to
be scored on; a seed draws the rows and seeds the model. Features are divided by their maximum
(images), one-hot encoded (bicycles) or standardised. Every model is as it comes but for what its
name says; the linear models of scikit-learn have the best of a grid by 3-fold cross-validation.
"few labels" keeps a third of the rows to be scored on; of the others some have a label, and the
rest are the unlabelled rows.
"""

import time
from functools import lru_cache

import cells
import image_data
import numpy as np
import text_data
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.metrics import d2_tweedie_score, log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)

#: What is predicted: a label, a number or a count.
BUNDLED = {
    "digits": "label",
    "breast cancer": "label",
    "wine": "label",
    "diabetes": "normal",
}
LOCAL = {"MNIST": "label", "bicycles": "poisson", "doctor visits": "poisson"}
TEXT = ["Subj", "RT", "XGraph", "AthR"]
DEFAULT = "network as it comes"

#: The settings of the network that each row of a table stands for.
NETWORKS = {
    "noise": {
        DEFAULT: {},
        "no noise": {"noise_placement": "none"},
        **{
            f'"gaussian", noise_std={s}': {"noise": "gaussian", "noise_std": s}
            for s in (0.1, 0.3, 1.0)
        },
    },
    "placement": {
        DEFAULT: {},
        **{f'noise_placement="{p}"': {"noise_placement": p} for p in ("input", "hidden", "none")},
    },
    "retain rate": {
        DEFAULT: {},
        **{f"retain_rate={q}": {"retain_rate": q} for q in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)},
    },
}
METHODS = ("diagonal", "quadratic", "sampling")
RATES = (0.5, 0.9, 0.99)
LINEAR = {
    "label": GridSearchCV(LogisticRegression(max_iter=5000), {"C": np.logspace(-3, 1, 5)}, cv=3),
    "normal": GridSearchCV(Ridge(), {"alpha": np.logspace(-3, 4, 8)}, cv=3),
    "poisson": GridSearchCV(PoissonRegressor(max_iter=5000), {"alpha": np.logspace(-6, 1, 8)}),
}
FEW = {
    "labelled rows alone": {},
    "+ unlabelled": {"unlabeled_discount": 1.0},
    "+ 0.1 unlabelled": {"unlabeled_discount": 0.1},
}
COUNTS = {"digits": (50, 100, 200, 500)} | dict.fromkeys(TEXT, (50, 200, 500))


def network(kind, seed, **settings):
    if kind == "label":
        return MarginalizedDropoutClassifier(random_state=seed, **settings)
    return MarginalizedDropoutRegressor(family=kind, random_state=seed, **settings)


def linear(kind, **settings):
    if kind == "label":
        return MarginalizedDropoutGLMClassifier(**settings)
    return MarginalizedDropoutGLMRegressor(family=kind, **settings)


def boosting(kind, seed):
    if kind == "label":
        return HistGradientBoostingClassifier(random_state=seed)
    loss = {"normal": "squared_error"}.get(kind, kind)
    return HistGradientBoostingRegressor(loss, random_state=seed)


def models(question, kind, seed):
    """The models of a table by name; calls make them, since most are measured already."""
    if question in NETWORKS:
        rows = NETWORKS[question]
        return {name: lambda s=s: network(kind, seed, **s) for name, s in rows.items()}
    if question == "network method":
        return {f'"{m}"': lambda m=m: network(kind, seed, method=m) for m in METHODS}
    rows = {DEFAULT: lambda: network(kind, seed)}
    for method in ("moments", "quadratic"):
        for q in RATES:
            rows[f'GLM, "{method}", {q}'] = lambda m=method, q=q: linear(
                kind, method=m, retain_rate=q
            )
    rows["scikit-learn's linear model, tuned"] = lambda: LINEAR[kind]
    rows["HistGradientBoosting"] = lambda: boosting(kind, seed)
    return rows


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
    if cell["question"] == "few labels":
        return measure_few_labels(cell)
    kind = (BUNDLED | LOCAL)[cell["data"]]
    X, y, scaler = load(cell["data"])
    X, X_test, y, y_test = train_test_split(
        X,
        y,
        train_size=min(2000, len(y) // 2),
        stratify=y if kind == "label" else None,
        random_state=cell["seed"],
    )
    model = models(cell["question"], kind, cell["seed"])[cell["model"]]()
    return score(make_pipeline(scaler(), model), kind, (X, y), (X_test, y_test))


def measure_few_labels(cell):
    name, seed = cell["data"], cell["seed"]
    X, y = load_text(name) if name in TEXT else load(name)[:2]
    X, X_test, y, y_test = train_test_split(X, y, test_size=1 / 3, stratify=y, random_state=seed)
    labelled, rest = train_test_split(
        np.arange(len(y)), train_size=cell["labels"], stratify=y, random_state=seed
    )
    settings = FEW[cell["model"]]
    if name in TEXT:
        model = linear("label", alpha=cell["alpha"], **settings)
    else:
        model = network("label", seed, alpha=cell["alpha"], **settings)
    options = {"X_unlabeled": X[rest]} if settings else {}
    return score(model, "label", (X[labelled], y[labelled]), (X_test, y_test), **options)


def score(model, kind, train, test, **options):
    start = time.perf_counter()
    model.fit(*train, **options)
    seconds = time.perf_counter() - start
    X, y = test
    if kind == "label":
        loss = log_loss(y, model.predict_proba(X), labels=np.unique(y))
        return {"score": model.score(X, y), "log_loss": loss, "seconds": seconds}
    power = {"normal": 0, "poisson": 1}[kind]
    return {"score": d2_tweedie_score(y, model.predict(X), power=power), "seconds": seconds}


QUESTIONS = [*NETWORKS, "network method", "model", "few labels"]


def configurations(questions, n_seeds, data, text):
    for seed in range(n_seeds):
        for question in questions:
            common = {"question": question, "seed": seed}
            if question != "few labels":
                for name, kind in data.items():
                    for model in models(question, kind, seed):
                        yield common | {"data": name, "model": model}
                continue
            for name in ["digits", *text]:
                for n in COUNTS[name]:
                    for alpha in (1e-4, 1e-3) if name in TEXT else (1e-4,):
                        for model in FEW:
                            yield common | {
                                "data": name,
                                "labels": n,
                                "alpha": alpha,
                                "model": model,
                            }


def tables(stored):
    """Title, head, rows and notes for each question."""
    for question in QUESTIONS:
        table = table_of(stored, question)
        if table[2]:
            yield table


def table_of(stored, question):
    results = {}  # by row and column
    for record in stored.records.values():
        cell = record["cell"]
        if cell["question"] != question:
            continue
        row, column = cell["model"], cell["data"]
        if question == "few labels":
            row = f"{column}, {cell['labels']} labels"
            column = f"{cell['model']}, alpha={cell['alpha']:g}"
        results.setdefault(row, {}).setdefault(column, []).append(record["result"])
    columns = list(dict.fromkeys(column for of in results.values() for column in of))
    body = [
        [row, *(mean(of.get(column, ())) for column in columns)] for row, of in results.items()
    ]
    seeds = {record["cell"]["seed"] for record in stored.records.values()}
    notes = [f"{len(seeds)} seeds; the log loss in brackets."]
    return f"{question.capitalize()}: score on new rows, in %", ["", *columns], body, notes


def mean(results):
    if not results:
        return ""
    scores = [100 * result["score"] for result in results]
    text = f"{np.mean(scores):.1f}"
    if len(scores) > 1:
        text += f" ± {np.std(scores, ddof=1) / len(scores) ** 0.5:.1f}"
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
    options.add_argument("--questions", nargs="+", choices=QUESTIONS, default=QUESTIONS)
    options.add_argument("--seeds", type=int, default=5)
    cells.main(options, run, tables)


if __name__ == "__main__":
    main()
