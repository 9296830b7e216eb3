"""The default estimators against other networks, trees and linear models, on many data sets.

Run ``python -m benchmarks.quality.out_of_the_box``; what is finished is stored and is not run
again. ``--data``, ``--models`` and ``--seeds`` choose a part, of the report too; ``--report``
prints the tables, ``--quick`` takes one seed of two small sets, and ``--large`` adds 50,000 images
with at most three seeds. ``--settings '{"retain_rate": 0.9}' --label "less noise"`` adds the
estimators with these settings as a model of that name.

The sets are those of `suite_data.py`, some of which need ``MARGDROP_DATA``. A seed draws the rows
to learn from and at most 5000 others to be scored on, and seeds the model; every model sees the
same features. Boosting takes part in the dense sets, and RealMLP-TD-S, where pytabkit is installed
(``pip install pytabkit``), in those of labels or numbers.
"""

import json
from functools import lru_cache, partial
from importlib.util import find_spec

import numpy as np
import torch
from scipy.sparse import issparse
from scipy.stats import gmean, rankdata
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, PoissonRegressor, RidgeCV
from sklearn.metrics import d2_tweedie_score, log_loss, mean_tweedie_deviance
from sklearn.model_selection import GridSearchCV, ShuffleSplit, StratifiedShuffleSplit
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch import NeuralNet
from torch import nn

from benchmarks import cells, harness
from benchmarks.speed import peers
from benchmarks.suite_data import DATA, LARGE, available, load
from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutRegressor

DEFAULT, BOOSTING, REALMLP = "default", "HistGradientBoosting", "RealMLP-TD-S"
SKORCH, LINEAR = "skorch, nn.Dropout", "linear model"
MLP, TUNED = "MLPClassifier", "MLPClassifier, tuned"
#: The estimators of this package, by what they are told.
OURS = {DEFAULT: {}, "sampling": {"method": "sampling"}, "no noise": {"noise_placement": "none"}}
MODELS = [*OURS, MLP, TUNED, SKORCH, REALMLP, LINEAR, BOOSTING]
NO_NETWORKS = {LINEAR, BOOSTING}
QUICK = ["iris", "diabetes"]
LARGE_SEEDS = 3

GRID = {
    "alpha": [1e-4, 1e-2, 1.0],
    "hidden_layer_sizes": [(100,), (256,)],
    "learning_rate_init": [1e-3, 5e-3],
}
SCORING = {
    "label": "neg_log_loss",
    "normal": "neg_mean_squared_error",
    "poisson": "neg_mean_poisson_deviance",
}
LOSS = {"normal": "squared_error", "poisson": "poisson"}
#: What the tables call the score and the loss.
SCORE_NAMES = {"label": "accuracy (%)", "normal": "R^2 (%)", "poisson": "explained deviance (%)"}
LOSS_NAMES = {"label": "log loss", "normal": "error / variance", "poisson": "Poisson deviance"}


def takes_part(model, name):
    """Whether a model learns from this set."""
    data = DATA[name]
    if model == BOOSTING:
        return not data.sparse
    return model != REALMLP or (not data.sparse and data.kind != "poisson")


def model_of(name, kind, seed, X, y, settings=None):
    """The model with that name, or this package's estimator with those settings."""
    if settings is None and name not in OURS:
        peer = {
            MLP: _mlp,
            TUNED: _tuned_mlp,
            SKORCH: partial(_skorch, X=X, y=y),
            REALMLP: _realmlp,
            LINEAR: _linear,
            BOOSTING: _boosting,
        }
        return peer[name](kind, seed)
    settings = OURS[name] if settings is None else settings
    if kind == "label":
        return MarginalizedDropoutClassifier(random_state=seed, **settings)
    return MarginalizedDropoutRegressor(random_state=seed, family=kind, **settings)


def _mlp(kind, seed):
    if kind == "label":
        return MLPClassifier(random_state=seed)
    return MLPRegressor(LOSS[kind], random_state=seed)


def _tuned_mlp(kind, seed):
    split = StratifiedShuffleSplit if kind == "label" else ShuffleSplit
    held_out = split(1, test_size=0.2, random_state=seed)
    return GridSearchCV(_mlp(kind, seed), GRID, cv=held_out, scoring=SCORING[kind])


class _Net(NeuralNet):
    """A net of skorch that takes targets of any precision."""

    def fit(self, X, y):
        return super().fit(X, y.astype(np.float32))


def _skorch(kind, seed, X, y):
    """784-256-10 and the like, with nn.Dropout and Adam as the tutorials write it."""
    torch.manual_seed(seed)
    sizes = (X.shape[1], 256, int(y.max()) + 1 if kind == "label" else 1)
    settings = {"optimizer": torch.optim.Adam, "lr": 1e-3}
    if kind == "label":
        net = peers.skorch_net(sizes, 100, 20, **settings)
    else:
        net = _Net(
            nn.Sequential(peers.perceptron(sizes, dropout=True), nn.Flatten(0)),
            criterion={"normal": nn.MSELoss, "poisson": nn.PoissonNLLLoss}[kind],
            predict_nonlinearity={"normal": None, "poisson": torch.exp}[kind],
            max_epochs=20,
            batch_size=100,
            train_split=None,
            verbose=0,
            **settings,
        )
    return make_pipeline(FunctionTransformer(_float32, accept_sparse=True), net)


def _float32(X):
    return (X.toarray() if issparse(X) else X).astype(np.float32)


def _realmlp(kind, seed):
    import pytabkit

    model = {
        "label": pytabkit.RealMLP_TD_S_Classifier,
        "normal": pytabkit.RealMLP_TD_S_Regressor,
    }[kind]
    return model(device="cpu", random_state=seed, n_threads=torch.get_num_threads())


def _linear(kind, seed):
    if kind == "label":
        return LogisticRegression(max_iter=1000)
    return {"normal": RidgeCV(), "poisson": PoissonRegressor(max_iter=1000)}[kind]


def _boosting(kind, seed):
    if kind == "label":
        return HistGradientBoostingClassifier(random_state=seed)
    return HistGradientBoostingRegressor(LOSS[kind], random_state=seed)


def score(model, kind, X, y):
    """Accuracy or explained deviance, and the loss.

    The loss is the log loss of labels, the mean squared error of numbers over their variance, and
    the mean Poisson deviance of counts.
    """
    if kind == "label":
        probability = np.asarray(model.predict_proba(X), float)
        probability /= probability.sum(1, keepdims=True)  # to more digits than float32 has
        return {
            "score": float(np.mean(probability.argmax(1) == y)),
            "loss": log_loss(y, probability, labels=np.arange(probability.shape[1])),
            "calibration_error": calibration_error(probability, y),
        }
    mean = np.asarray(model.predict(X), float)
    if kind == "normal":
        loss = float(np.mean((y - mean) ** 2) / np.var(y))
        return {"score": 1 - loss, "loss": loss}
    mean = np.maximum(mean, 1e-6)  # where an exponential has become 0
    return {
        "score": d2_tweedie_score(y, mean, power=1),
        "loss": mean_tweedie_deviance(y, mean, power=1),
    }


def calibration_error(probability, y, n_bins=15):
    """The expected calibration error of the likeliest labels, in bins of equal width."""
    top = probability.max(1)
    gap = (probability.argmax(1) == y) - top
    bins = np.minimum((top * n_bins).astype(int), n_bins - 1)
    return float(np.abs(np.bincount(bins, gap)).sum() / len(y))


def measure(cell):
    warm_up(cell["model"] if cell["model"] in MODELS else DEFAULT)
    X, y, X_test, y_test, kind = load(cell["data"], cell["seed"])
    model = model_of(cell["model"], kind, cell["seed"], X, y, cell.get("settings"))
    seconds = harness.seconds_of(lambda: model.fit(X, y))
    return score(model, kind, X_test, y_test) | {"epochs": epochs(model), "seconds": seconds}


@lru_cache
def warm_up(name):
    """Import what the first fit of a process would else be charged for."""
    X, y, _, _, kind = load("iris", 0)
    model_of(name, kind, 0, X, y).fit(X, y)


def epochs(model):
    """Those of a network, where it tells; None otherwise."""
    if isinstance(model, Pipeline):
        return len(model[-1].history)
    model = getattr(model, "best_estimator_", model)
    return int(np.max(model.n_iter_)) if hasattr(model, "hidden_layer_sizes") else None


def configurations(data, models, seeds, settings=None):
    for name in data:
        for seed in seeds[:LARGE_SEEDS] if name == LARGE else seeds:
            for model in models:
                if takes_part(model, name):
                    cell = {"data": name, "model": model, "seed": seed}
                    yield cell if settings is None else cell | {"settings": settings}


def collected(stored, data=None, models=None):
    """Results by data set, model and seed, of the seeds that all models of a set have."""
    results = {}
    for record in stored.records.values():
        cell = record["cell"]
        if (data is None or cell["data"] in data) and (models is None or cell["model"] in models):
            seeds = results.setdefault(cell["data"], {}).setdefault(cell["model"], {})
            seeds[cell["seed"]] = record["result"]
    for name, of in results.items():
        common = sorted(set.intersection(*map(set, of.values())))
        results[name] = {model: [seeds[s] for s in common] for model, seeds in of.items()}
    # In the order of `DATA`, without the sets on which no seed is common to all.
    return {name: results[name] for name in DATA if all(results.get(name, {None: []}).values())}


def tables(stored, data=None, models=None):
    """Title, head, rows and notes: one table for each set, and summaries of labels and others."""
    results = collected(stored, data, models)
    for name, of in results.items():
        yield set_table(name, of)
    for title, kinds in {"Labels": ["label"], "Numbers and counts": ["normal", "poisson"]}.items():
        chosen = {name: of for name, of in results.items() if DATA[name].kind in kinds}
        if chosen:
            yield summary(title, chosen)


def set_table(name, results):
    head = ["", SCORE_NAMES[DATA[name].kind], LOSS_NAMES[DATA[name].kind]]
    figures = ["score", "loss"]
    if DATA[name].kind == "label":
        head.append("calibration error (%)")
        figures.append("calibration_error")
    head += ["epochs", "seconds"]
    scale = {"score": 100, "calibration_error": 100}
    rows = []
    for model, runs in results.items():
        columns = [[scale.get(f, 1) * run[f] for run in runs] for f in figures]
        passes = [run["epochs"] for run in runs]
        rows.append(
            [
                model,
                *(
                    mean(values, 4 if f == "loss" else 2)
                    for f, values in zip(figures, columns, strict=True)
                ),
                "" if None in passes else f"{np.mean(passes):.0f}",
                f"{np.mean([run['seconds'] for run in runs]):.2f}",
            ]
        )
    n_seeds = len(next(iter(results.values())))
    return name, head, rows, [f"Means over {n_seeds} seeds."]


def mean(values, digits):
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {harness.standard_error(values):.{digits}f}"
    return text


def summary(title, results):
    """Mean ranks, and how far each model is behind the best network at worst."""
    models = list(dict.fromkeys(model for of in results.values() for model in of))
    ranks = {model: [] for model in models}
    behind = {model: [] for model in models}
    for name, of in results.items():
        scores, losses = (
            np.array([np.mean([run[f] for run in runs]) for runs in of.values()])
            for f in ("score", "loss")
        )
        network = np.array([model not in NO_NETWORKS for model in of])
        points = 100 * (np.max(scores, where=network, initial=-np.inf) - scores)
        ratios = losses / np.min(losses, where=network, initial=np.inf)
        figures = zip(of, rankdata(-scores), rankdata(losses), points, ratios, strict=True)
        for model, rank_score, rank_loss, point, ratio in figures:
            ranks[model].append((rank_score, rank_loss))
            behind[model].append((point, ratio, name))
    rows = []
    for model in models:
        by_score, by_loss = np.mean(ranks[model], 0)
        points, _, where = max(behind[model])
        _, ratio, where_loss = max(behind[model], key=lambda each: each[1])
        seconds = [
            np.mean([run["seconds"] for run in of[model]])
            for of in results.values()
            if model in of
        ]
        rows.append(
            [
                model,
                len(ranks[model]),
                f"{by_score:.2f}",
                f"{by_loss:.2f}",
                f"{points:.1f} ({where})",
                f"{ratio:.2f} ({where_loss})",
                f"{gmean(seconds):.2f}",
            ]
        )
    head = ["", "sets", "mean rank of score", "of loss", "points behind at worst"]
    head += ["loss over the best at worst", "seconds (geometric mean)"]
    notes = ["Behind the best network of each set; negative, or below 1: ahead of all networks."]
    return f"{title}: {len(results)} sets", head, rows, notes


def run(stored, arguments):
    data = arguments.data or (QUICK if arguments.quick else available(arguments.large))
    absent = set(data) - set(available(large=True))
    if absent:
        raise SystemExit(f"{sorted(absent)} need the folder that MARGDROP_DATA names")
    settings = None if arguments.settings is None else json.loads(arguments.settings)
    if settings is None:
        models = arguments.models or [m for m in MODELS if m != REALMLP or find_spec("pytabkit")]
    else:
        models = [arguments.label]
        _refuse_other_settings(stored, arguments.label, settings)
    seeds = range(1) if arguments.quick else arguments.seeds
    stored.measure(list(configurations(data, models, seeds, settings)), measure)


def _refuse_other_settings(stored, label, settings):
    """A name stands for one model in the tables."""
    for record in stored.records.values():
        cell = record["cell"]
        if cell["model"] == label and cell.get("settings") != settings:
            raise SystemExit(f"{label!r} is stored as {cell.get('settings')}; choose a new label")


def main():
    parser = cells.options(__doc__, "out_of_the_box")
    parser.add_argument("--data", nargs="+", choices=DATA)
    parser.add_argument("--models", nargs="+", help=f"of {', '.join(MODELS)}, and of the labels")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    parser.add_argument("--large", action="store_true", help="with 50,000 images")
    parser.add_argument("--settings", help="of the estimators, as JSON; needs --label")
    parser.add_argument("--label", help="the name of the model with those settings")
    arguments = parser.parse_args()
    if (arguments.settings is None) != (arguments.label is None):
        parser.error("--settings and --label go together")
    if arguments.label in MODELS:
        parser.error(f"--label {arguments.label!r} is the name of another model")
    unknown = set(arguments.models or []) - set(MODELS)
    if unknown and not arguments.report:
        parser.error(f"no model is called {sorted(unknown)}; there are {MODELS}")
    cells.main(parser, run, lambda stored: tables(stored, arguments.data, arguments.models))


if __name__ == "__main__":
    main()
