"""What the benchmarks share: options, peers that take turns, ratios, stored results.

The peers of a case run one after the other, again and again, so that a machine whose speed drifts
slows all of them alike; each turn gives one ratio, and their median and quartiles are reported.
"""

import argparse
import gc
import json
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import sklearn
import skorch
import torch

import sklearn_margdrop

#: The checkout, in which other processes are started.
ROOT = Path(__file__).parents[1]

#: How far the ratios may rise beyond the quartiles of both runs before `--check` fails.
TOLERANCE = 1.1


#: The options that several benchmarks have.
OPTIONS = {
    "device": {"default": "cpu"},
    "turns": {"type": int, "help": "turns that each peer takes"},
    "splits": {"type": int, "help": "random splits of the data"},
    "layers": {
        "type": lambda text: tuple(int(width) for width in text.split("-")),
        "help": "widths, joined by dashes, instead of the usual shapes",
    },
    "batch-size": {"type": int, "default": 100, "help": "with --layers"},
    "steps": {"type": int, "default": 10, "help": "steps a turn"},
    "quick": {"action": "store_true", "help": "a small run, to see that everything works"},
    "json": {"type": Path, "help": "also write the results to this file"},
    "check": {
        "type": Path,
        "help": "compare with the results in this file, and fail where a ratio is worse",
    },
}


def parser(doc, *names, **defaults):
    """A parser of some of `OPTIONS`, for the benchmark with that docstring."""
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name in names:
        options.add_argument(f"--{name}", **OPTIONS[name])
    options.set_defaults(**defaults)
    return options


def store(path, **results):
    """Write results and the machine that gave them, if a file is wanted."""
    if path:
        path.write_text(json.dumps({"environment": environment(), **results}, indent=1) + "\n")


def seconds_of(call):
    """The seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def standard_error(values):
    """The standard error of the mean of independent values; nan for a single one."""
    return np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan


def environment(device="cpu"):
    """Processor or GPU, and versions."""
    device = torch.device(device)
    libraries = (sklearn_margdrop, torch, sklearn, skorch, np)
    versions = {library.__name__: library.__version__ for library in libraries}
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        instructions = torch.backends.cpu.get_cpu_capability()
        name = f"{_processor()} ({instructions}), {torch.get_num_threads()} threads"
    return {"processor": name, "python": platform.python_version(), **versions}


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


def take_turns(peers, turns, per_turn=1, device="cpu"):
    """Seconds a call of each peer, one value a turn; the first turn warms up.

    Peers that multiply by numpy come last: its threads go on spinning for a while.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    seconds = {name: [] for name in peers}
    for turn in range(turns + 1):
        time.sleep(1.0)
        for name, call in peers.items():
            if per_turn > 1:
                call()  # with the caches as the peer finds them in a loop of its own
            wait()
            start = time.perf_counter()
            for _ in range(per_turn):
                call()
            wait()
            if turn:
                seconds[name].append((time.perf_counter() - start) / per_turn)
    return seconds


def in_fresh_process(function, *args, **kwargs):
    """What a function of an importable module returns in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def peak_memory(call):
    """Megabytes by which this process exceeds, at most, the memory that it holds now (Linux)."""
    gc.collect()
    before = memory_status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    call()
    return memory_status("VmHWM") - before


def resident_memory():
    """Megabytes that this process holds now (Linux)."""
    gc.collect()
    return memory_status("VmRSS")


def memory_status(field):
    """A field of /proc/self/status in megabytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1e3
    raise KeyError(field)


class Results:
    """Prints the cases as they come; at the end stores them or compares them with stored ones."""

    def __init__(self, options):
        self.options = options
        self.environment = environment(getattr(options, "device", "cpu"))
        self.cases = {}
        print(", ".join(f"{name} {value}" for name, value in self.environment.items()), flush=True)

    def add(self, case, seconds, references, unit="ms"):
        """Seconds a turn of each peer, and the names of those that the others are compared to."""
        scale = {"s": 1, "ms": 1e3}[unit]
        print(f"\n{case}")
        print(f"{'':28s}{unit:>10s}" + "".join(f"{'/ ' + name:>26s}" for name in references))
        self.cases[case] = {}
        for name, values in seconds.items():
            ratios = {r: np.divide(values, seconds[r]) for r in references}
            self.cases[case][name] = {
                "seconds": float(np.median(values)),
                "ratios": {r: _quartiles(x) for r, x in ratios.items() if r != name},
            }
            print(
                f"{name:28s}{np.median(values) * scale:10.3f}"
                + "".join(f"{np.median(x):26.2f}" for x in ratios.values()),
                flush=True,
            )

    def note(self, case, name, ratios, **figures):
        """Ratios that were found in another way, with other figures that are not compared."""
        ratios = {key: _quartiles(values) for key, values in ratios.items()}
        self.cases.setdefault(case, {})[name] = figures | {"ratios": ratios}

    def finish(self):
        """Store, compare, and end the process with 1 if a ratio is worse than it was."""
        store(self.options.json, environment=self.environment, cases=self.cases)
        if self.options.check:
            sys.exit(self._check(json.loads(self.options.check.read_text())))

    def _check(self, stored):
        before, now = _by_key(stored["cases"]), _by_key(self.cases)
        common = [key for key in before if key in now]
        worse = [key for key in common if now[key][1] > TOLERANCE * before[key][2]]
        for key in worse:
            case, name, reference = key
            print(
                f"WORSE: {case}: {name} / {reference} is {now[key][0]:.2f}, "
                f"and was {before[key][0]:.2f}"
            )
        print(f"\n{len(common)} ratios compared with {self.options.check}, {len(worse)} worse")
        return int(bool(worse) or not common)


def _quartiles(values):
    """Median, lower and upper quartile; None for what was never reached."""
    method = "linear" if np.isfinite(values).all() else "nearest"
    quartiles = np.quantile(values, [0.5, 0.25, 0.75], method=method)
    return [float(q) if np.isfinite(q) else None for q in quartiles]


def _by_key(cases):
    """The quartiles of each case, peer and reference."""
    return {
        (case, name, reference): [np.inf if q is None else q for q in quartiles]
        for case, peers in cases.items()
        for name, figures in peers.items()
        for reference, quartiles in figures["ratios"].items()
    }
