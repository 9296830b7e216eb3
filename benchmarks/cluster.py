"""Fits of a linear model on a Dask cluster of one machine: one and two workers, and messages.

Run ``python benchmarks/cluster.py`` on an idle machine with two cores or more. The workers are
processes of one thread each, and take turns. What an evaluation costs besides its rows is timed on
rows that cost nothing, and its bytes are counted. The last lines project both to more workers; no
network lies between the processes here, so that its latency and bandwidth are assumptions.
"""

import logging
import pickle
import time
import warnings

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster
from harness import Results, parser

from sklearn_margdrop import MarginalizedDropoutGLMClassifier
from sklearn_margdrop.partitions import _FAN_IN, Bundles

#: Of the projection: bytes a second, and seconds a message.
BANDWIDTH, LATENCY = 1.25e8, 1e-3
PARTS = 4


def rows_of(n_rows, n_features, n_classes):
    """Blocks that the workers draw."""
    chunks = n_rows // PARTS
    X = da.random.default_rng(0).normal(size=(n_rows, n_features), chunks=(chunks, n_features))
    coef = np.random.RandomState(0).normal(size=(n_features, n_classes)) / n_features**0.5
    return X, (X @ coef).argmax(1)


def fit(rows, max_iter):
    return MarginalizedDropoutGLMClassifier(retain_rate=0.9, max_iter=max_iter, tol=0).fit(*rows)


class Evaluations:
    """Counts and times the evaluations of the fits, and what each sends and gets."""

    def __init__(self):
        self.seconds, self.sent, self.received = [], 0, 0

    def __enter__(self):
        self.send = send = Bundles.sum

        def timed(bundles, method, *arguments):
            start = time.perf_counter()
            result = send(bundles, method, *arguments)
            if method == "evaluate":
                self.seconds.append(time.perf_counter() - start)
                self.sent, self.received = len(pickle.dumps(arguments)), result.nbytes
            return result

        Bundles.sum = timed
        return self

    def __exit__(self, *exception):
        Bundles.sum = self.send


def on_workers(n_workers, call):
    """What a call returns on a cluster of its own."""
    options = {"n_workers": n_workers, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**options, silence_logs=logging.ERROR) as cluster, Client(cluster):
        call()  # the workers import torch
        return call()


def evaluations(shape, max_iter):
    with Evaluations() as seen:
        fit(rows_of(*shape), max_iter)
    return seen


def main():
    options = parser(__doc__, device=False)
    options.add_argument("--quick", action="store_true", help="few rows, to see that it runs")
    options = options.parse_args()
    warnings.simplefilter("ignore")
    results = Results(options)
    shape, max_iter = ((4_000, 20, 3), 3) if options.quick else ((200_000, 100, 10), 10)
    turns = options.turns or (1 if options.quick else 5)
    seconds = {"1 worker": [], "2 workers": []}

    for _ in range(turns):
        for n_workers, values in enumerate(seconds.values(), 1):
            seen = on_workers(n_workers, lambda: evaluations(shape, max_iter))
            values.append(float(np.median(seen.seconds)))
    case = "an evaluation, {} x {}, {} classes".format(*shape)
    results.add(case, seconds, ["1 worker"])
    tiny = (PARTS * 2, *shape[1:])
    seen = on_workers(2, lambda: evaluations(tiny, max_iter))
    overhead = float(np.median(seen.seconds))
    print(f"\nan evaluation of {tiny[0]} rows on 2 workers: {overhead * 1e3:.1f} ms")
    print(f"bytes to each thread {seen.sent}, bytes back from each {seen.received}")
    compute = float(np.median(seconds["1 worker"])) - overhead
    figures = {"overhead": overhead, "sent": seen.sent, "received": seen.received}
    for n_workers in (2, 10, 100):
        project(n_workers, compute, overhead, seen, figures)
    results.note("messages", "2 workers", {}, **figures)
    results.finish()


def project(n_workers, compute, overhead, seen, figures):
    """On paper: rows in equal parts; the client sends in turn; sums are added in a tree."""
    levels = int(np.ceil(np.log(n_workers) / np.log(_FAN_IN)))
    network = n_workers * seen.sent / BANDWIDTH
    network += levels * (LATENCY + _FAN_IN * seen.received / BANDWIDTH)
    tasks = overhead * n_workers / 2  # the scheduler's work grows with the messages
    total = compute / n_workers + tasks + network
    print(
        f"projected to {n_workers} workers, with as many rows in all: {total * 1e3:.1f} ms "
        f"({compute / n_workers * 1e3:.1f} rows, {tasks * 1e3:.1f} scheduler, "
        f"{network * 1e3:.1f} network)"
    )
    if n_workers == 100:
        print(
            f"assumed: {BANDWIDTH / 1e6:.0f} MB/s from and to the client and each worker, "
            f"{LATENCY * 1e3:.0f} ms a message, one thread a worker, and an overhead that grows "
            "with the number of workers from that of two. Measured is none of it."
        )
    figures[f"projected, {n_workers} workers"] = total


if __name__ == "__main__":
    main()
