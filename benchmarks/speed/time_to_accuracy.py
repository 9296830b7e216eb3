"""Seconds and epochs until a validation error is reached, for each method.

Run ``python -m benchmarks.speed.time_to_accuracy`` (MNIST; ``--data digits`` needs no download). A
sixth of the training images validates; all methods start from the same weights and see the same
batches. Errors are medians of three epochs in a row. The target of a seed is the error that
sampling ends at, the median of its last five epochs; a method has reached it when its own is as
low. Seconds are those of the epochs, validation included.
"""

import warnings

import numpy as np

from benchmarks import image_data
from benchmarks.harness import Results, parser
from sklearn_margdrop import MarginalizedDropoutClassifier

#: Both as textbooks set them, for all methods.
SOLVERS = {
    "sgd": {"solver": "sgd", "learning_rate_init": 0.1, "momentum": 0.9},
    "adam": {"solver": "adam", "learning_rate_init": 0.001},
}
METHODS = {
    "sampling": {"method": "sampling"},
    "diagonal": {"method": "diagonal"},
    "quadratic, 1 probe": {"method": "quadratic", "n_probes": 1},
    "quadratic": {"method": "quadratic"},
    "no noise": {"noise_placement": "none"},
}


def run(X, y, seed, epochs, settings, device):
    """Validation error after each epoch, and the seconds until then."""
    model = MarginalizedDropoutClassifier(
        max_iter=epochs,
        n_iter_no_change=epochs,
        early_stopping=True,
        validation_fraction=1 / 6,
        random_state=seed,
        device=device,
        **settings,
    ).fit(X, y)
    seconds = np.cumsum([epoch["dur"] for epoch in model.net_.history])
    errors = 1 - np.array(model.validation_scores_)
    padded = np.concatenate([[np.inf, np.inf], errors])
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 3), 1), seconds


def reached(errors, seconds, target):
    """The epoch and the seconds at which the error is at most the target for the first time."""
    there = np.flatnonzero(errors <= target)
    if not len(there):
        return np.inf, np.inf
    return int(there[0]) + 1, float(seconds[there[0]])


def main():
    options = parser(__doc__, "device", "json", "check")
    options.add_argument("--data", choices=["mnist", "digits"], default="mnist")
    options.add_argument("--epochs", type=int, default=50)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--hidden", type=int, default=1024)
    options.add_argument("--solvers", nargs="*", choices=SOLVERS, default=list(SOLVERS))
    options.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    options = options.parse_args()
    X, y, *_ = getattr(image_data, options.data)()
    results = Results(options)
    warnings.simplefilter("ignore")  # that max_iter ends the training is what is wanted
    for solver in options.solvers:
        common = SOLVERS[solver] | {"hidden_layer_sizes": options.hidden}
        case = f"{options.data}, {len(X)} rows, {options.epochs} epochs, {common}"
        print(f"\n{case}")
        compare(X, y, common, case, options, results)
    results.finish()


def compare(X, y, common, case, options, results):
    """All methods with the same settings, seed by seed."""
    figures = {name: [] for name in dict.fromkeys(["sampling", *options.methods])}
    for seed in range(options.seeds):
        target = None
        for name in figures:
            settings = METHODS[name] | common
            errors, seconds = run(X, y, seed, options.epochs, settings, options.device)
            if target is None:
                target = float(np.median(errors[-5:]))
                print(f"seed {seed}: sampling ends at {100 * target:.2f} %")
                print(f"{'':20s}{'epochs':>8s}{'seconds':>9s}{'best %':>8s}{'end %':>8s}")
            epoch, second = reached(errors, seconds, target)
            best, end = 100 * errors.min(), 100 * float(np.median(errors[-5:]))
            figures[name].append([epoch, second, best, end, float(seconds[-1])])
            print(f"{name:20s}{epoch:8.0f}{second:9.1f}{best:8.2f}{end:8.2f}", flush=True)
    base = np.array(figures["sampling"])
    for name, rows in figures.items():
        rows = np.array(rows)
        epochs, seconds = (rows[:, column] / base[:, column] for column in (0, 1))
        print(
            f"{name:20s}{np.median(epochs):6.2f} x the epochs and {np.median(seconds):.2f} x the "
            f"seconds of sampling; best {np.median(rows[:, 2]):.2f} %"
        )
        ratios = {"epochs of sampling": epochs, "seconds of sampling": seconds}
        columns = zip(
            ("best_error", "end_error", "seconds_of_all_epochs"), rows.T[2:], strict=True
        )
        medians = {column: float(np.median(values)) for column, values in columns}
        results.note(case, name, {} if name == "sampling" else ratios, **medians)


if __name__ == "__main__":
    main()
