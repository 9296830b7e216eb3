"""Seconds and epochs until a validation error is reached, for each method.

Run ``python benchmarks/time_to_accuracy.py`` (MNIST; ``--data digits`` needs no download). A sixth
of the training images validates; all methods start from the same weights and see the same batches.
Errors are medians of three epochs in a row. The target of a seed is the error that sampling ends
at, the median of its last five epochs; a method has reached it when its own is as low. Seconds are
those of the epochs, validation included.
"""

import warnings

import image_data
import numpy as np
from harness import Results, parser

from sklearn_margdrop import MarginalizedDropoutClassifier

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
    options = parser(__doc__)
    options.add_argument("--data", choices=["mnist", "digits"], default="mnist")
    options.add_argument("--epochs", type=int, default=50)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--hidden", type=int, default=1024)
    options.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    options.add_argument("--set", nargs="*", default=[], help="settings of all, as name=value")
    options = options.parse_args()
    common = {"learning_rate_init": 0.001}
    common |= {name: float(value) for name, value in (each.split("=") for each in options.set)}
    common["hidden_layer_sizes"] = options.hidden
    X, y, *_ = getattr(image_data, options.data)()
    results = Results(options)
    print(f"{options.data}: {len(X)} rows, {common}, {options.epochs} epochs")
    warnings.simplefilter("ignore")  # that max_iter ends the training is what is wanted
    figures = {name: [] for name in options.methods}
    for seed in range(options.seeds):
        target = None
        for name in options.methods:
            settings = METHODS[name] | common
            errors, seconds = run(X, y, seed, options.epochs, settings, options.device)
            if target is None:
                target = float(np.median(errors[-5:]))
                print(f"\nseed {seed}: sampling ends at {100 * target:.2f} %")
                print(f"{'':20s}{'epochs':>8s}{'seconds':>9s}{'best %':>8s}{'end %':>8s}")
            epoch, second = reached(errors, seconds, target)
            best, end = 100 * errors.min(), 100 * float(np.median(errors[-5:]))
            figures[name].append([epoch, second, best, end, float(seconds[-1])])
            print(f"{name:20s}{epoch:8.0f}{second:9.1f}{best:8.2f}{end:8.2f}", flush=True)
    columns = ("epochs", "seconds", "best_error", "end_error", "seconds_of_all_epochs")
    table = {
        name: dict(zip(columns, np.median(rows, 0).tolist(), strict=True))
        for name, rows in figures.items()
    }
    print("\nmedians over the seeds")
    base = table[options.methods[0]]["seconds"]
    for name, row in table.items():
        row["ratio_to_sampling"] = row["seconds"] / base
        print(
            f"{name:20s}{row['epochs']:8.0f} epochs{row['seconds']:9.1f} s"
            f"{row['ratio_to_sampling']:8.2f} x sampling, best {row['best_error']:.2f} %"
        )
    results.note(f"{options.data}, {options.hidden} hidden, {options.epochs} epochs", table)
    results.finish()


if __name__ == "__main__":
    main()
