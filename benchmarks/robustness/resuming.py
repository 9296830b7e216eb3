"""Fits that are killed at random moments and started again, and what a checkpoint costs.

Each fit runs in a process of its own, which gets SIGKILL after a random time and is started again
until it ends; what it ends at is compared, bit by bit, with a fit that was left alone. The cost
is the time of a fit with checkpoints over that of one without, interleaved.

    python -m benchmarks.robustness.resuming              # 20 kills of each model
    python -m benchmarks.robustness.resuming --quick      # 2
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from benchmarks import harness
from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutGLMClassifier

MODELS = {
    "network": MarginalizedDropoutClassifier(64, max_iter=120, batch_size=20, random_state=0),
    "network, early stopping": MarginalizedDropoutClassifier(
        64,
        max_iter=120,
        tol=0.0,
        batch_size=20,
        early_stopping=True,
        n_iter_no_change=200,
        method="sampling",
        random_state=0,
    ),
    "glm, lbfgs": MarginalizedDropoutGLMClassifier(tol=0.0, max_iter=150, alpha=1e-6),
    "glm, fisher": MarginalizedDropoutGLMClassifier(
        solver="fisher", tol=0.0, max_iter=120, random_state=0
    ),
}


def make_data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 100))
    return X, (X @ rng.normal(size=(100, 5)) + rng.normal(size=(3000, 5))).argmax(1)


def fit(name, folder=None, max_iter=None):
    """The fitted parameters, as bytes, and the seconds that it took."""
    X, y = make_data()
    model = MODELS[name].set_params(checkpoint=folder)
    if max_iter is not None:
        model.set_params(max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        seconds = harness.seconds_of(lambda: model.fit(X, y))
    parts = model.coefs_ if hasattr(model, "coefs_") else [model.coef_, model.intercept_]
    return b"".join(part.tobytes() for part in parts), seconds


def start(*arguments):
    command = [sys.executable, "-m", "benchmarks.robustness.resuming", "--fit"]
    return subprocess.Popen([*command, *map(str, arguments)], cwd=harness.ROOT)


def run_killed(name, max_iter, n_kills, expected, seconds, chance):
    """Numbers of kills, and of fits that ended at the expected bits, of one kill each."""
    equal = killed = 0
    for trial in range(n_kills):
        with tempfile.TemporaryDirectory() as place:
            folder, target = Path(place) / "checkpoint", Path(place) / "parameters"
            child = start(name, max_iter, folder, target)
            while not (folder / ".lock").exists() and child.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, seconds))
            ended = child.poll() is not None
            child.kill()
            child.wait()
            killed += not ended
            start(name, max_iter, folder, target).wait()
            equal += target.exists() and target.read_bytes() == expected
        print(f"  {name}: {trial + 1} of {n_kills}, {equal} equal", end="\r", flush=True)
    return killed, equal


def main():
    parser = harness.parser(__doc__, "quick", "json")
    parser.add_argument("--fit", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit:
        name, max_iter, folder, target = options.fit
        Path(target).write_bytes(fit(name, folder, int(max_iter))[0])
        return
    n_kills, repeats = (2, 1) if options.quick else (20, 5)
    models = {}
    chance = random.Random(0)
    for name in MODELS:
        times = {"with": [], "without": []}
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                times["with"].append(fit(name, folder)[1])
            expected, seconds = fit(name)
            times["without"].append(seconds)
        with_, without = (statistics.median(times[key]) for key in ("with", "without"))
        killed, equal = run_killed(name, MODELS[name].max_iter, n_kills, expected, with_, chance)
        models[name] = {
            "starts": n_kills,
            "killed": killed,
            "equal": equal,
            "seconds": without,
            "seconds_with_checkpoints": with_,
            "ratio": with_ / without,
        }
        print(
            f"{name:25s} killed {killed:2d} of {n_kills}, equal bits {equal:2d} of {n_kills}; "
            f"with checkpoints {with_:.2f} s / without {without:.2f} s = {with_ / without:.2f}"
        )
    harness.store(options.json, models=models)


if __name__ == "__main__":
    main()
