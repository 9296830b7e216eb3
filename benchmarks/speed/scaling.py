"""How time and memory grow: with rows, width, depth, classes, noisy sites and non-zeros.

Run ``python -m benchmarks.speed.scaling``. One quantity is varied at a time; each measurement is
made in a fresh process: seconds of a step (of an epoch or prediction for the rows, of an iteration
for the non-zeros), the median of several, and the peak memory above that of the imports and the
data. The exponent is the slope of a line through the logarithms.
"""

import statistics
import warnings

import numpy as np
import scipy.sparse as sp

from benchmarks.harness import Results, in_fresh_process, parser, peak_memory, seconds_of
from benchmarks.speed.peers import endless, our_net, random_images, rows_of
from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutGLMClassifier

#: Each method of the networks; without probes "quadratic" is exact.
STEPS = [
    *({"method": method} for method in ("sampling", "diagonal", "quadratic")),
    {"method": "moments", "n_probes": 1},
]


def step(method, width=512, depth=1, n_classes=10, n_sites=None, n_features=256, n_probes=None):
    """Seconds and megabytes of one step with batches of 100."""
    sizes = (n_features, *[width] * depth, n_classes)
    sites = None if n_sites is None else range(n_sites)
    rows = rows_of(*random_images(500, n_features, n_classes))
    net = our_net(sizes, method, n_probes=n_probes, sites=sites)
    batches = endless(rows, 100)
    return _measure(lambda: net.train_step(next(batches)), 15)


def epoch(method, n_rows):
    X, y = random_images(n_rows, 256, 10)
    model = MarginalizedDropoutClassifier(
        512, method=method, retain_rate=0.5, max_iter=1, device="cpu", random_state=0
    )
    return _measure(lambda: model.fit(X, y), 3)


def predict(n_rows):
    X, y = random_images(n_rows, 256, 10)
    model = MarginalizedDropoutClassifier(512, retain_rate=0.5, max_iter=1, device="cpu")
    with warnings.catch_warnings(action="ignore"):
        model.fit(X[:500], y[:500])
    return _measure(lambda: model.predict(X), 5)


def iteration(method, n_stored, n_classes):
    """A fit of five iterations, divided by five, on 50,000 binary features, 50 in a row."""
    rng = np.random.default_rng(0)
    n_rows = n_stored // 50
    columns = (50_000 * rng.random(n_stored) ** 3).astype(np.int32)
    X = sp.csr_array((np.ones(n_stored), columns, np.arange(0, n_stored + 1, 50)))
    X.sum_duplicates()
    X.data[:] = 1
    y = rng.integers(n_classes, size=n_rows)
    model = MarginalizedDropoutGLMClassifier(method=method, max_iter=5, tol=0, device="cpu")
    seconds, megabytes = _measure(lambda: model.fit(X, y), 3)
    return seconds / 5, megabytes


def _measure(call, repeats):
    warnings.simplefilter("ignore")
    megabytes = peak_memory(call)
    call()
    return statistics.median(seconds_of(call) for _ in range(repeats)), megabytes


#: What is varied, over which values, and how it is measured with which settings.
SWEEPS = {
    "width": (step, "width", [256, 512, 1024, 2048], STEPS),
    "depth": (step, "depth", [1, 2, 4, 8], STEPS),
    "classes": (
        step,
        "n_classes",
        [10, 30, 100, 300],
        [*STEPS, {"method": "quadratic", "n_probes": 4}],
    ),
    "noisy sites": (step, "n_sites", [1, 2, 3, 4], [each | {"depth": 4} for each in STEPS]),
    "rows, an epoch": (epoch, "n_rows", [5_000, 20_000, 80_000], [{"method": "moments"}]),
    "rows, predict": (predict, "n_rows", [5_000, 20_000, 80_000, 320_000], [{}]),
    "non-zeros": (
        iteration,
        "n_stored",
        [250_000, 1_000_000, 4_000_000],
        [{"method": m, "n_classes": k} for m in ("quadratic", "moments") for k in (2, 10)],
    ),
}


def exponent(sizes, values):
    """The slope of log(value) over log(size)."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def main():
    options = parser(__doc__, "json", "check")
    options.add_argument("--only", nargs="*", choices=SWEEPS, default=list(SWEEPS))
    options = options.parse_args()
    results = Results(options)
    for title in options.only:
        function, name, values, variants = SWEEPS[title]
        print(f"\n{title}: {values}")
        for settings in variants:
            label = ", ".join(str(v) if k == "method" else f"{k}={v}" for k, v in settings.items())
            rows = [in_fresh_process(function, **settings, **{name: value}) for value in values]
            seconds, megabytes = zip(*rows, strict=True)
            slope = exponent(values, seconds)
            milliseconds = " ".join(f"{1e3 * value:9.2f}" for value in seconds)
            memory = " ".join(f"{value:7.0f}" for value in megabytes)
            print(
                f"  {label:30s} ms {milliseconds}  exponent {slope:5.2f}   MB {memory}", flush=True
            )
            results.note(
                title,
                label or "all",
                {"time when it doubles": [2**slope]},
                values=values,
                seconds=seconds,
                megabytes=megabytes,
                exponent=slope,
            )
    results.finish()


if __name__ == "__main__":
    main()
