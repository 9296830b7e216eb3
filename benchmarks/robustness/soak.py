"""Soak: thousands of random configurations, a thousand fits in a process, threads and processes.

Four parts. `configurations` draws estimators, parameters, data and sequences of calls by number
(`tests/strategies.py`), performs each of them twice, and sees that `tests/invariances.py` holds:
documented errors, finite fits, the same bits. Half of them are of moderate magnitudes; the scales
of the others go from 1e-30 to 1e30. They run in blocks, each in a process of its own, which is
killed where a configuration does not end: that is a failure like any other. `fits` fits small
data a thousand times in one process and looks at the memory. `threads` and `processes` compare
fits in parallel threads, forked processes and loky's workers with the same fits alone.

A block is stored when it is finished, and a run that was killed goes on after the last one.

    python -m benchmarks.robustness.soak                       # all parts
    python -m benchmarks.robustness.soak --parts fits threads
    python -m benchmarks.robustness.soak --report

One configuration by its number, to see why it failed:

    python -m benchmarks.robustness.soak --show wide 5017
"""

import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

import joblib
import numpy as np
import torch

import sklearn_margdrop
from benchmarks import cells, harness

sys.path.insert(0, str(harness.ROOT / "tests"))
import invariances
import strategies

PARTS = "configurations", "fits", "threads", "processes"
SCALES = "moderate", "wide"
BLOCK = 250

#: Seconds without a sign of life after which a process is taken to hang; it has its own limit
#: for a configuration, which is shorter.
PATIENCE = 3 * invariances.LIMIT


def configuration(scales, number):
    """The configuration of that number."""
    return strategies.draw_configuration(random.Random(number), scales == "wide")


def perform(scales, number):
    """What happened in both passes, counted; raises where something does not hold."""
    drawn = configuration(scales, number)
    with invariances.time_limit():
        (seen, bits), *again = [_fit_and_check(drawn, c) for c in invariances.contexts_of(drawn)]
    for _, others in again:
        assert others == bits, "the same configuration gave other bits"
    return seen


def _fit_and_check(drawn, context):
    with tempfile.TemporaryDirectory() as folder, context():
        return invariances.fit_and_check(drawn, folder)


def _perform_all(sender, scales, numbers):
    for number in numbers:
        try:
            sender.send((dict(perform(scales, number)), None))
        except Exception as error:
            *_, place = traceback.extract_tb(error.__traceback__)
            where = f"{Path(place.filename).name}:{place.lineno}"
            sender.send(({}, f"{type(error).__name__} at {where}: {str(error)[:300]}"))


def run_block(cell, patience=PATIENCE, target=_perform_all):
    """Perform the configurations of a block in another process, or in several, if one dies."""
    begin, seen, failures = time.perf_counter(), Counter(), {}
    numbers = list(range(cell["first"], cell["first"] + cell["configurations"]))
    while numbers:
        receiver, sender = get_context("spawn").Pipe(duplex=False)
        arguments = (sender, cell["scales"], tuple(numbers))
        child = get_context("spawn").Process(target=target, args=arguments)
        child.start()
        sender.close()
        while numbers:
            failure = f"hung for {patience} s, and was killed"
            alive = False
            try:
                if receiver.poll(patience):
                    happened, failure = receiver.recv()
                    seen.update(happened)
                    alive = True
            except EOFError:
                child.join()
                failure = f"the process died with {child.exitcode}"
            number = numbers.pop(0)
            if failure:
                failures[number] = failure
                print(f"  {number}: {failure}", flush=True)
            if not alive:
                break
        child.kill()
        child.join()
    seconds = time.perf_counter() - begin
    return {"seen": dict(sorted(seen.items())), "failures": failures, "seconds": seconds}


def small_fit(name, seed, rows=60):
    """A fit that takes milliseconds."""
    rng = np.random.RandomState(seed)
    X = rng.normal(size=(rows, 5))
    y = X[:, 0] + 0.1 * rng.normal(size=rows)
    if name in strategies.CLASSIFIERS:
        y = y > 0
    size = {} if strategies.is_glm(name) else {"hidden_layer_sizes": (8,)}
    model = getattr(sklearn_margdrop, name)(max_iter=5, random_state=seed, **size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits that are this short
        return model.fit(X, y)


def small_bits(name, seed):
    """The bits of the parameters of such a fit."""
    return invariances.fitted_bits(small_fit(name, seed))


def fit_often(n_fits, first):
    """Megabytes of this process after `first` fits, and after each further tenth of them."""
    memory = {}
    for done in range(1, n_fits + 1):
        small_fit(strategies.ESTIMATORS[done % 4], done)
        if done == first or done % (n_fits // 10) == 0:
            memory[done] = harness.resident_memory()
    growth = 100 * (memory[n_fits] / memory[first] - 1)
    return {"megabytes": memory, "growth_percent": growth}


def _jobs(n_seeds):
    return [(name, seed) for seed in range(n_seeds) for name in strategies.ESTIMATORS]


def in_threads(n_seeds, n_threads=4):
    """How many fits had other bits in parallel threads than alone."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # catch_warnings is not for threads
    jobs = _jobs(n_seeds)
    alone = [small_bits(*job) for job in jobs]
    with ThreadPoolExecutor(n_threads) as pool:
        together = list(pool.map(lambda job: small_bits(*job), jobs))
    different = sum(here != there for here, there in zip(alone, together, strict=True))
    return {"fits": len(jobs), "threads": n_threads, "different": different}


def in_processes(kind, n_seeds, timeout=PATIENCE):
    """How many fits had other bits in two processes of that kind than alone.

    Torch has used two threads in the parent, as it does in a notebook.
    """
    jobs = _jobs(n_seeds)
    torch.set_num_threads(2)
    large = torch.ones(2000, 2000)
    large @ large + large.exp()
    torch.set_num_threads(1)
    alone = [small_bits(*job) for job in jobs]
    torch.set_num_threads(2)
    try:
        if kind == "loky":
            calls = [joblib.delayed(small_bits)(*job) for job in jobs]
            there = joblib.Parallel(2, backend="loky", timeout=timeout)(calls)
        else:
            with get_context(kind).Pool(2) as pool:
                there = pool.starmap_async(small_bits, jobs).get(timeout)
    except TimeoutError as error:
        return {"fits": len(jobs), "hung": True, "error": repr(error)}
    different = sum(here != other for here, other in zip(alone, there, strict=True))
    return {"fits": len(jobs), "hung": False, "different": different}


def measure(cell):
    """The result of a cell of any part."""
    part = cell["part"]
    if part == "configurations":
        return run_block(cell)
    if part == "fits":
        return harness.in_fresh_process(fit_often, cell["fits"], cell["first"])
    if part == "threads":
        return harness.in_fresh_process(in_threads, cell["seeds"])
    return harness.in_fresh_process(in_processes, cell["kind"], cell["seeds"])


def all_cells(arguments):
    """The cells that are asked for."""
    quick, todo = arguments.quick, []
    seeds = 2 if quick else 25
    if "fits" in arguments.parts:
        sizes = {"fits": 40, "first": 20} if quick else {"fits": 1000, "first": 50}
        todo.append({"part": "fits"} | sizes)
    if "threads" in arguments.parts:
        todo.append({"part": "threads", "seeds": seeds})
    if "processes" in arguments.parts:
        kinds = [kind for kind in ("fork", "loky") if kind in (*get_all_start_methods(), "loky")]
        todo += [{"part": "processes", "kind": kind, "seeds": seeds} for kind in kinds]
    if "configurations" in arguments.parts:
        size, half = (5, 5) if quick else (BLOCK, arguments.configurations // 2)
        for scales in arguments.scales:
            first = half * SCALES.index(scales)
            for number in range(first, first + half, size):
                where = {"first": number, "configurations": size}
                todo.append({"part": "configurations", "scales": scales} | where)
    return todo


def tables(stored):
    """What is stored: title, head, rows and notes of each table."""
    results = [(each["cell"], each["result"]) for each in stored.records.values()]
    rows, failures, seen = [], [], {scales: Counter() for scales in SCALES}
    for scales in SCALES:
        blocks = [
            (cell, result)
            for cell, result in results
            if cell["part"] == "configurations" and cell["scales"] == scales
        ]
        failed = [(int(k), v) for _, result in blocks for k, v in result["failures"].items()]
        failures += [f"{scales} {number}: {failure}" for number, failure in sorted(failed)]
        for _, result in blocks:
            seen[scales].update(result["seen"])
        count = sum(cell["configurations"] for cell, _ in blocks)
        seconds = sum(result["seconds"] for _, result in blocks)
        fits, errors, warned = (
            sum(n for kind, n in seen[scales].items() if kind.split(":")[0] == start)
            for start in ("fits", "error", "warning")
        )
        rows.append([scales, count, fits, errors, warned, len(failed), f"{seconds / 60:.0f}"])
    head = ["scales", "configurations", "fits", "documented errors", "warnings", "failures"]
    yield "Random configurations", [*head, "minutes"], rows, failures
    kinds = sorted(seen["moderate"] | seen["wide"])
    kinds = [kind for kind in kinds if not kind.startswith("error: refused")]
    rows = [[kind, *(seen[scales][kind] for scales in SCALES)] for kind in kinds]
    refused = [
        sum(n for kind, n in seen[scales].items() if kind.startswith("error: refused"))
        for scales in SCALES
    ]
    rows.append(["error: an invalid parameter or invalid data", *refused])
    yield "What happened, by kind", ["", *SCALES], rows
    rows = []
    for cell, result in results:
        if cell["part"] == "fits":
            first, last = (result["megabytes"][str(cell[key])] for key in ("first", "fits"))
            grown = f"{first:.1f} MB after {cell['first']}, {last:.1f} MB at the end, "
            rows.append(["fits", cell["fits"], grown + f"{result['growth_percent']:+.1f} %"])
        elif cell["part"] != "configurations":
            name = cell.get("kind", "4 threads")
            found = "hung" if result.get("hung") else f"{result['different']} with other bits"
            rows.append([name, result["fits"], found])
    yield "In one process, in threads, in processes", ["", "fits", "found"], rows


def main():
    parser = cells.options(__doc__, "soak")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--scales", nargs="+", choices=SCALES, default=SCALES)
    parser.add_argument("--configurations", type=int, default=10_000, help="of both scales")
    parser.add_argument("--show", nargs=2, metavar=("SCALES", "NUMBER"), help="perform one")
    if "--show" in sys.argv:
        scales, number = parser.parse_args().show
        print(configuration(scales, int(number)))
        print(dict(perform(scales, int(number))))
        return
    cells.main(
        parser, lambda stored, arguments: stored.measure(all_cells(arguments), measure), tables
    )


if __name__ == "__main__":
    from benchmarks.robustness import soak  # the name of its functions in other processes

    soak.main()
