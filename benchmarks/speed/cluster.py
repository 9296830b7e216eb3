"""Fits of a linear model on a Dask cluster of one machine: one and two workers, and what is sent.

Run ``python -m benchmarks.speed.cluster`` on an idle machine with two cores or more. The workers
are processes of one thread each; fits on one, on two and in this process alone, with one thread,
take turns. The data lie on the workers before a fit begins, and their allocator keeps its memory,
as the page on clusters advises. Bytes are those that the loopback interface counts (Linux), beside
the size of what an evaluation sends and gets. The last lines project an evaluation to more
workers, from its time on rows that cost nothing; no network lies between the processes here, so
that its latency and bandwidth are assumptions.
"""

import logging
import os
import pickle
import time
import warnings

import dask.array as da
import numpy as np
import psutil
import torch
from distributed import Client, LocalCluster, wait

from benchmarks.harness import Results, parser
from sklearn_margdrop import MarginalizedDropoutGLMClassifier
from sklearn_margdrop.distributed.partitions import _FAN_IN, Bundles

#: Of the projection: bytes a second, and seconds a message.
BANDWIDTH, LATENCY = 1.25e8, 1e-3
PARTS = 8
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_MMAP_THRESHOLD_": "1073741824"}
ALONE, ONE, TWO = "this process", "1 worker", "2 workers"


def rows_of(n_rows, n_features, n_classes):
    """Blocks that the workers draw."""
    chunks = n_rows // PARTS
    X = da.random.default_rng(0).normal(size=(n_rows, n_features), chunks=(chunks, n_features))
    coef = np.random.RandomState(0).normal(size=(n_features, n_classes)) / n_features**0.5
    return X, (X @ coef).argmax(1)


class Evaluations:
    """Times the evaluations of the fits in it, and measures what each sends and gets."""

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


def bytes_moved():
    """By the processes of this machine to each other so far."""
    loopback = psutil.net_io_counters(pernic=True).get("lo")
    return 0 if loopback is None else loopback.bytes_sent


def fit(rows, max_iter):
    """A model, the seconds of its fit, its evaluations, and the bytes that it moved."""
    model = MarginalizedDropoutGLMClassifier(retain_rate=0.9, max_iter=max_iter, tol=0)
    with Evaluations() as seen:
        before, start = bytes_moved(), time.perf_counter()
        model.fit(*rows)
        return model, time.perf_counter() - start, seen, bytes_moved() - before


def fit_on(n_workers, shape, max_iter, threads=1):
    """The same on a cluster of its own, whose workers hold the rows; and of few rows before."""
    options = {"n_workers": n_workers, "threads_per_worker": threads, "dashboard_address": ":0"}
    with (
        LocalCluster(**options, silence_logs=logging.ERROR) as cluster,
        Client(cluster) as client,
    ):
        tiny = rows_of(PARTS * 10, *shape[1:])
        fit(tiny, max_iter)  # the workers import torch
        few = fit(tiny, max_iter)[2]
        rows = [each.persist() for each in rows_of(*shape)]
        wait(rows)
        client.rebalance()
        return *fit(rows, max_iter), few


def main():
    options = parser(__doc__, "turns", "quick", "json", "check").parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(KEEP_MEMORY)  # of the workers
    results = Results(options)
    shape, max_iter = ((4_000, 20, 3), 3) if options.quick else ((100_000, 100, 10), 10)
    turns = options.turns or (1 if options.quick else 5)
    whole, evaluation, moved = ({ALONE: [], ONE: [], TWO: []} for _ in range(3))
    rows = [each.compute() for each in rows_of(*shape)]
    alone, furthest, overheads = fit(rows, max_iter)[0], 0.0, []

    for _ in range(turns):
        for name, n_workers in {ALONE: 0, ONE: 1, TWO: 2}.items():
            model, seconds, seen, n_bytes, few = (
                fit_on(n_workers, shape, max_iter) if n_workers else (*fit(rows, max_iter), None)
            )
            whole[name].append(seconds)
            evaluation[name].append(float(np.median(seen.seconds)) if seen.seconds else np.nan)
            moved[name].append(n_bytes)
            if name == TWO:
                overheads.append(float(np.median(few.seconds)))
            furthest = max(furthest, float(np.abs(model.coef_ - alone.coef_).max()))
    case = "{} rows x {}, {} classes".format(*shape)
    results.add(f"a fit of {max_iter} iterations, {case}", whole, [ALONE, ONE], unit="s")
    del evaluation[ALONE]
    results.add(f"an evaluation, {case}", evaluation, [ONE])
    print(f"\nlargest difference of a coefficient from that of this process: {furthest:.1e}")
    for name in (ONE, TWO):
        print(f"a fit on {name} moved {np.median(moved[name]) / 1e6:.2f} MB over the loopback")
    print(f"the rows take {rows[0].nbytes / 1e6:.0f} MB")

    threads = PARTS // 2
    few = fit_on(2, (PARTS * 10, *shape[1:]), max_iter, threads)[4]
    first, last = float(np.median(overheads)), float(np.median(few.seconds))
    each = max(0.0, (last - first) / (PARTS - 2))
    print(f"an evaluation of {PARTS * 10} rows by 2 threads: {first * 1e3:.1f} ms, ", end="")
    print(f"by {PARTS}: {last * 1e3:.1f} ms")
    print(f"bytes to each thread {few.sent}, bytes back from each {few.received}")
    compute = float(np.median(evaluation[ONE])) - first + each
    figures = {"overhead": first, "overhead, each": each}
    figures |= {"sent": few.sent, "received": few.received}
    figures |= {f"moved, {name}": float(np.median(moved[name])) for name in (ONE, TWO)}
    figures["largest difference"] = furthest
    for n_workers in (2, 10, 100):
        overhead = first + (n_workers - 2) * each
        seconds = project(n_workers, max(compute, 0.0), overhead, few)
        figures[f"projected, {n_workers} workers"] = seconds
    print(
        f"assumed: {BANDWIDTH / 1e6:.0f} MB/s from and to the client and each worker, "
        f"{LATENCY * 1e3:.0f} ms a message, one thread a worker, and an overhead that goes on "
        f"growing as from 2 to {PARTS} threads. None of it is measured."
    )
    results.note("messages", TWO, {}, **figures)
    results.finish()


def project(n_workers, compute, overhead, seen):
    """On paper: rows in equal parts; the client sends in turn; sums are added in a tree."""
    levels = int(np.ceil(np.log(n_workers) / np.log(_FAN_IN)))
    network = n_workers * seen.sent / BANDWIDTH
    network += levels * (LATENCY + _FAN_IN * seen.received / BANDWIDTH)
    total = compute / n_workers + overhead + network
    print(
        f"projected to {n_workers} workers, with as many rows in all: {total * 1e3:.1f} ms, "
        f"{compute / total:.1f} x one worker ({compute / n_workers * 1e3:.1f} rows, "
        f"{overhead * 1e3:.1f} tasks, {network * 1e3:.1f} network)"
    )
    return total


if __name__ == "__main__":
    main()
