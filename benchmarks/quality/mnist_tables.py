"""Tables 1, 2 and 3 and Figure 1 of the MNIST paper (P), beside its published figures.

Run ``python -m benchmarks.quality.mnist_tables``; what is finished is stored and is not run again,
so a run that was killed goes on where it was. ``--report`` prints the tables, ``--quick`` runs all
of it on less data in minutes, ``--tables``, ``--rows``, ``--images`` and ``--epochs`` choose a
part.

Of the 60,000 training images, 10,000 at random validate. Hidden layers are logistic and, but for
half of Table 3, pretrained layer by layer as restricted Boltzmann machines. Training is SGD with
momentum on batches of 100, and the rate of epoch i is rate / (1 + decay * i). A cell of Tables 1
and 2 is the test error of the setting and epoch with the lowest validation error; where several
have it, the mean of theirs. Table 3 trains every setting of a grid by every method and tells when
each had its lowest validation error. The best epoch of a run is found by looking at all of its
epochs; a run ends early when `--patience` epochs in a row found no better one.
"""

import os
import time
from itertools import product
from pathlib import Path

import joblib
import numpy as np
from sklearn.neural_network import BernoulliRBM
from skorch.callbacks import Callback

from benchmarks import cells, image_data
from sklearn_margdrop import MarginalizedDropoutClassifier
from sklearn_margdrop.training.batches import Features

#: A published figure, in %, by table and row.
PUBLISHED = {
    1: {
        "no noise": 1.40,
        "L2": 1.37,
        "input, sampling": 1.28,
        "input, quadratic": 1.26,
        "input, diagonal": 1.28,
        "hidden, sampling": 1.31,
        "hidden, diagonal": 1.26,
        "both, sampling": 1.28,
        "both, quadratic": 1.34,
        "both, diagonal": 1.25,
    },
    2: {"L2": 1.31, "both, sampling": 1.06, "both, diagonal": 1.15},
    3: {
        "sampling": ["666 ± 274", "1.81 ± 1.39", "28.6", "19.1"],
        "quadratic": ["141 ± 203", "2.12 ± 1.62", "387", "54.7"],
        "diagonal": ["229 ± 263", "1.45 ± 0.26", "53.9", "12.4"],
    },
}
HIDDEN = {1: [1024], 2: [500, 1000], 3: [1024]}
TITLES = {
    1: "Table 1: test error (%) with one hidden layer of 1024 units",
    2: "Table 2: test error (%) of a 784-500-1000-10 network",
    3: "Table 3: 200 settings of learning rate, momentum, retain rate (input) and pretraining",
}

#: What is tuned on the validation error in Tables 1 and 2.
RATES = [{"learning_rate_init": 0.5, "momentum": 0.9}]
ALPHAS = [1e-5, 3e-5]
#: The likeliest first: sampled masks do more harm at the same rate.
RETAIN_RATES = {"input": [0.5, 0.3, 0.8], "hidden": [0.3, 0.5, 0.7]}
SAMPLING_RATES = {"input": [0.8, 0.5, 0.3], "hidden": [0.5, 0.7, 0.3]}

#: The grid of Table 3.
GRID = {
    "learning_rate_init": [0.25, 0.5, 0.75, 1.0],
    "momentum": [0.0, 0.6, 0.7, 0.8, 0.9],
    "retain_rate": [0.1, 0.3, 0.5, 0.7, 0.9],
    "pretrained": [True, False],
}


def settings(table, row):
    """The settings that a row of a table tries."""
    if table == 3:
        noise = {"noise_placement": "input", "method": row}
        return [noise | dict(zip(GRID, v, strict=True)) for v in product(*GRID.values())]
    if row == "no noise":
        tried = [{"noise_placement": "none"}]
    elif row == "L2":
        tried = [{"noise_placement": "none", "alpha": alpha} for alpha in ALPHAS]
    else:
        placement, method = row.split(", ")
        noise = {"noise_placement": placement, "method": method}
        tried = [noise | {"retain_rate": q} for q in retain_rates(placement, table, method)]
    return [{"pretrained": True} | rate | each for rate in RATES for each in tried]


def retain_rates(placement, table, method):
    rates = SAMPLING_RATES if method == "sampling" else RETAIN_RATES
    if placement != "both":
        return rates[placement]
    n_hidden = len(HIDDEN[table])
    pairs = product(rates["input"], rates["hidden"])
    return [[first, *[hidden] * n_hidden] for first, hidden in pairs]


def load(name, n_images):
    """The first training images, and a sixth as many to test; by default all."""
    X, y, X_test, y_test = {"mnist": image_data.mnist, "digits": image_data.digits}[name]()
    n_test = None if n_images is None else n_images // 6
    return X[:n_images], y[:n_images], X_test[:n_test], y_test[:n_test]


class StoredRBM(BernoulliRBM):
    """A BernoulliRBM that is fitted once for all the settings that start from it."""

    folder = Path()

    def fit(self, X, y=None):
        # Not joblib.Memory, which forgets everything when this file is edited during a run.
        path = self.folder / f"rbm_{joblib.hash([self.get_params(), X])}.joblib"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}")
            joblib.dump(vars(BernoulliRBM(**self.get_params()).fit(X)), unfinished)
            unfinished.replace(path)
        vars(self).update(joblib.load(path))
        return self


class TestErrors(Callback):
    """Counts the wrong test predictions of each epoch that validates best so far."""

    def __init__(self, X, y):
        self.X, self.y = X, y
        self.wrong = {}
        self.shown = time.perf_counter()

    def on_epoch_end(self, net, **kwargs):
        scores = net.history[:, "valid_score"]
        if scores[-1] == max(scores):
            features = Features(self.X, net.device, resident=False)
            predicted = net.linear_predictor(features).argmax(1).cpu().numpy()
            self.wrong[len(scores)] = int((predicted != self.y).sum())
        if time.perf_counter() - self.shown > 30:
            self.shown = time.perf_counter()
            best = 100 * (1 - max(scores))
            where = scores.index(max(scores)) + 1
            print(f"  epoch {len(scores)}: best {best:.2f} % in epoch {where}", flush=True)


class Watched(MarginalizedDropoutClassifier):
    """A classifier that is tested while it trains."""

    def _build_net(self, *args):
        net = super()._build_net(*args)
        net.callbacks_.append(("test", self.watcher))
        return net


def train(cell, data, device):
    """Train one setting; its validation errors by epoch and the test errors of the best ones."""
    X, y, X_test, y_test = data
    setting = dict(cell["setting"])
    passes = setting.pop("pretrained") * cell["passes"]
    options = {"learning_rate": 0.05, "batch_size": 100, "n_iter": passes, "verbose": 1}
    rbm = StoredRBM(**options) if passes else None
    model = Watched(
        cell["hidden"],
        activation="logistic",
        solver="sgd",
        batch_size=100,
        early_stopping=True,
        validation_fraction=1 / 6,
        max_iter=cell["epochs"],
        n_iter_no_change=cell["patience"],
        tol=0,
        learning_rate="constant",
        n_probes=None,
        pretrainer=rbm,
        device=device,
        random_state=cell["seed"],
        **{"alpha": 0.0} | setting,
    )
    model.watcher = TestErrors(X_test, y_test)
    try:
        model.fit(X, y)
    except ValueError as error:
        if "non-finite" not in str(error):
            raise
        return {"error": str(error)}
    scores = np.array(model.validation_scores_)
    wrong = [n for epoch, n in model.watcher.wrong.items() if scores[epoch - 1] == scores.max()]
    print(f"  best {100 * (1 - scores.max()):.2f} %, test {np.mean(wrong) / len(y_test):.2%}")
    return {
        "valid_errors": [round(100 * (1 - score), 3) for score in scores],
        "test_errors": [100 * n / len(y_test) for n in wrong],
        "seconds_per_epoch": float(np.median([epoch["dur"] for epoch in model.net_.history])),
        "rate_factor": model.net_.rate_factor_,
    }


def summary(record):
    """Lowest validation error and its test error in %, its epoch, and seconds an epoch."""
    result = record["result"]
    if "error" in result:
        return None
    valid = result["valid_errors"]
    return {
        "valid": min(valid),
        "test": np.mean(result["test_errors"]),
        "ties": len(result["test_errors"]),
        "epoch": valid.index(min(valid)) + 1,
        "epochs": len(valid),
        "seconds": result["seconds_per_epoch"],
        "setting": _short(record["cell"]),
    }


def tables(stored):
    """Title, head, rows and notes of each table that has finished cells, by data and seed."""
    groups = {}
    for record in stored.records.values():
        cell = record["cell"]
        key = cell["table"], cell["data"], cell["rows"], cell["seed"]
        groups.setdefault(key, []).append(record)
    for (table, data, rows, seed), records in sorted(groups.items(), key=lambda group: group[0]):
        title = f"{TITLES[table]}; {data}, {rows} images to train and validate, seed {seed}"
        by_row = {
            row: [record for record in records if record["cell"]["row"] == row]
            for row in PUBLISHED[table]
        }
        head, body = (_table_3 if table == 3 else _best_of)(PUBLISHED[table], by_row)
        yield title, head, body, _notes(records)


def _best_of(published, records):
    head = ["noise, method", "published", "ours", "validation", "epoch", "of settings", "setting"]
    body = []
    for row, error in published.items():
        runs = [s for s in map(summary, records[row]) if s]
        if not runs:
            body.append([row, f"{error:.2f}", *["not run"] * 5])
            continue
        lowest = min(run["valid"] for run in runs)
        best = [run for run in runs if run["valid"] == lowest]
        test = np.average([run["test"] for run in best], weights=[run["ties"] for run in best])
        first = best[0]
        epoch = f"{first['epoch']} of {first['epochs']}"
        errors = [f"{each:.2f}" for each in (error, test, lowest)]
        tried = len({run["setting"] for run in runs})
        body.append([row, *errors, epoch, tried, first["setting"]])
    return head, body


def _table_3(published, records):
    head = ["method", "", "settings", "finite", "epochs", "validation error (%)"]
    head += ["seconds an epoch", "seconds in all (thousands)"]
    body = []
    for row, (epochs, error, seconds, total) in published.items():
        body.append([row, "published", "175 of 200", "175", epochs, error, seconds, total])
        runs = [s for s in map(summary, records[row]) if s]
        if not runs:
            continue
        runs.sort(key=lambda run: run["valid"])
        n_settings = len(records[row])
        kept = {"ours": runs, "ours, best 7/8": runs[: -(-7 * n_settings // 8)]}
        for label, chosen in kept.items():
            epochs, errors, seconds = (
                np.array([run[key] for run in chosen]) for key in ("epoch", "valid", "seconds")
            )
            figures = [
                f"{np.mean(epochs):.0f} ± {np.std(epochs):.0f}",
                f"{np.mean(errors):.2f} ± {np.std(errors):.2f}",
                f"{np.median(seconds):.2f}",
                f"{np.mean(epochs * seconds) / 1e3:.3f}",
            ]
            body.append([row, label, f"{len(chosen)} of {n_settings}", len(runs), *figures])
    return head, body


def _notes(records):
    """What was run, and how often the rate had to be lowered."""
    lengths = {}
    for record in records:
        cell = record["cell"]
        lengths.setdefault((cell["epochs"], cell["patience"], cell["passes"]), []).append(cell)
    lines = [
        f"{len(found)} runs of at most {epochs} epochs, patience {patience}, {passes} passes of "
        "pretraining."
        for (epochs, patience, passes), found in lengths.items()
    ]
    lowered = sum(record["result"].get("rate_factor", 1) < 1 for record in records)
    return [*lines, f"{lowered} runs went back from an explosion and on at a lower rate."]


def _short(cell):
    setting = cell["setting"] | {"passes": cell["passes"]}
    names = {"learning_rate_init": "rate", "retain_rate": "q"}
    left_out = ("pretrained", "noise_placement", "method")
    return ", ".join(f"{names.get(k, k)} {v}" for k, v in setting.items() if k not in left_out)


def figure(stored, path):
    """Figure 1: the lowest validation error of each setting and the epoch that had it."""
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    records = [r for r in stored.records.values() if r["cell"]["table"] == 3]
    for row, marker in (("sampling", "x"), ("quadratic", "s"), ("diagonal", "o")):
        runs = [s for s in map(summary, (r for r in records if r["cell"]["row"] == row)) if s]
        points = [run["epoch"] for run in runs], [run["valid"] for run in runs]
        if runs:
            axes.scatter(*points, marker=marker, s=18, alpha=0.7, label=row)
    axes.set(xlabel="Epoch of the lowest validation error", ylabel="Lowest validation error (%)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend()
    plt.savefig(path, dpi=120)
    plt.close()


def main():
    options = cells.options(__doc__, "mnist_tables")
    options.add_argument("--data", choices=["mnist", "digits"], default="mnist")
    options.add_argument("--tables", type=int, nargs="+", choices=[1, 2, 3], default=[1, 2, 3])
    options.add_argument("--rows", nargs="+", help="such as 'both, diagonal', or 'diagonal'")
    options.add_argument("--first", type=int, help="only so many settings of each row")
    options.add_argument("--images", type=int, help="training and validation images (default all)")
    options.add_argument("--epochs", type=int, help="most epochs of a run (default 1000)")
    options.add_argument("--patience", type=int, help="see above (default 200)")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--figure", type=Path, help="also draw Figure 1 to this file")
    stored, arguments = cells.main(options, run, tables)
    if arguments.figure:
        figure(stored, arguments.figure)


def run(stored, arguments):
    StoredRBM.folder = stored.path.parent / "cache"
    images, epochs, patience, passes = (
        (3000, 3, 3, 2) if arguments.quick else (None, 1000, 200, 40)
    )
    data = load(arguments.data, arguments.images or images)
    todo = []
    for table in arguments.tables:
        for row in PUBLISHED[table]:
            if arguments.rows and row not in arguments.rows:
                continue
            for setting in settings(table, row)[: arguments.first]:
                todo.append(
                    {
                        "table": table,
                        "row": row,
                        "setting": setting,
                        "hidden": HIDDEN[table],
                        "data": arguments.data,
                        "rows": len(data[1]),
                        "epochs": arguments.epochs or epochs,
                        "patience": arguments.patience or patience,
                        "passes": passes,
                        "seed": arguments.seed,
                    }
                )
    stored.measure(todo, lambda cell: train(cell, data, arguments.device))


if __name__ == "__main__":
    main()
