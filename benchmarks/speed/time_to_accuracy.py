"""Seconds to the validation error that ordinary dropout ends at, for each method.

Run ``python -m benchmarks.speed.time_to_accuracy`` (MNIST; ``--data digits`` needs no download). A
sixth of the training images validates; all methods start from the same weights and see the same
batches, and the learning rate falls along a cosine. As a schedule has its error at its end, each
method is trained with several lengths. The target of a seed is the lowest error at the end of a
schedule with sampling, and a method takes the seconds of its shortest schedule that ends as low.
Seconds are those of the epochs, without validation.
"""

import warnings

import numpy as np
from sklearn.model_selection import train_test_split

from benchmarks import image_data
from benchmarks.harness import Results, parser
from sklearn_margdrop import MarginalizedDropoutClassifier

METHODS = {
    "sampling": {"method": "sampling"},
    "moments (default)": {"method": "moments"},
    "quadratic, 1 tangent": {"method": "quadratic"},
    "diagonal": {"method": "diagonal"},
    "no noise": {"noise_placement": "none"},
}
RETAIN_RATES = {"0.8/0.5": [0.8, 0.5], "0.5/0.5": [0.5, 0.5]}


def run(rows, seed, epochs, settings, device):
    """Validation error (%) and log loss at the end, and the seconds of the epochs."""
    X, X_valid, y, y_valid = rows
    model = MarginalizedDropoutClassifier(
        max_iter=epochs, random_state=seed, device=device, **settings
    ).fit(X, y)
    seconds = sum(epoch["dur"] for epoch in model.net_.history)
    probability = model.predict_proba(X_valid)
    error = 100 * np.mean(model.classes_[probability.argmax(1)] != y_valid)
    index = np.searchsorted(model.classes_, y_valid)
    loss = -np.log(probability[np.arange(len(index)), index].clip(1e-30)).mean()
    return float(error), float(loss), float(seconds)


def main():
    options = parser(__doc__, "device", "json", "check")
    options.add_argument("--data", choices=["mnist", "digits"], default="mnist")
    options.add_argument("--rows", type=int, help="of the training images; all by default")
    options.add_argument("--lengths", type=int, nargs="*", default=[5, 10, 20, 40])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--hidden", type=int, default=1024)
    options.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    options.add_argument("--rates", nargs="*", choices=RETAIN_RATES, default=list(RETAIN_RATES))
    options = options.parse_args()
    X, y, *_ = getattr(image_data, options.data)()
    results = Results(options)
    warnings.simplefilter("ignore")
    for rates in options.rates:
        case = f"{options.data}, {options.rows or len(X)} rows, {options.hidden} units, q {rates}"
        print(f"\n{case}")
        common = {"hidden_layer_sizes": options.hidden, "retain_rate": RETAIN_RATES[rates]}
        compare(X[: options.rows], y[: options.rows], common, case, options, results)
    results.finish()


def compare(X, y, common, case, options, results):
    """All methods with the same settings, seed by seed."""
    names = list(dict.fromkeys(["sampling", *options.methods]))
    ratios, ends = {name: [] for name in names}, {name: [] for name in names}
    for seed in range(options.seeds):
        rows = train_test_split(X, y, test_size=1 / 6, random_state=seed, stratify=y)
        print(f"seed {seed}: error % / log loss / seconds")
        print(f"{'':22s}" + "".join(f"{f'{n} epochs':>24s}" for n in options.lengths))
        found = {name: [] for name in names}
        for length in options.lengths:  # the methods take turns
            for name in names:
                settings = common | METHODS[name]
                found[name].append(run(rows, seed, length, settings, options.device))
        target, _, reference = min(found["sampling"])
        for name in names:
            cells = (f"{e:.2f} / {loss:.4f} / {s:5.1f}" for e, loss, s in found[name])
            print(f"{name:22s}" + "".join(f"{cell:>24s}" for cell in cells), flush=True)
            reached = [seconds for error, _, seconds in found[name] if error <= target]
            ratios[name].append(min(reached, default=np.inf) / reference)
            ends[name].append(min(found[name])[:2])
    for name in names:
        error, loss = np.median(ends[name], 0)
        ratio = np.median(ratios[name])
        print(
            f"{name:22s}{ratio:6.2f} x the seconds of sampling to its best error; its own best "
            f"{error:.2f} % / {loss:.4f}"
        )
        compared = {} if name == "sampling" else {"seconds of sampling": ratios[name]}
        results.note(case, name, compared, best_error=float(error), log_loss=float(loss))


if __name__ == "__main__":
    main()
