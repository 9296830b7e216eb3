"""The cost of one training step: each method against a plain torch loop with nn.Dropout.

Run ``python benchmarks/step_cost.py``. The peers take turns, a few steps at a time, so that a
machine whose speed drifts slows all of them alike; medians over the turns are compared.

The step is what `fit` does for each batch: slice it, compute the objective and its gradient,
update the weights by SGD with momentum. The plain loop slices the same tensors.
"""

import argparse
import json
import platform
import statistics
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import sklearn
import torch
from torch import nn

import sklearn_margdrop
from sklearn_margdrop.batches import Batches, Features, Rows
from sklearn_margdrop.families import Categorical
from sklearn_margdrop.noise import Dropout
from sklearn_margdrop.training import MarginalizedNet

RETAIN = (0.8, 0.5)
SGD = {"lr": 0.1, "momentum": 0.5}


def data(sizes, n_rows, device):
    """Random rows as sparse as MNIST's, and labels."""
    rng = np.random.default_rng(0)
    X = rng.random((n_rows, sizes[0]), dtype=np.float32)
    X *= rng.random(X.shape) < 0.2
    y = torch.from_numpy(rng.integers(sizes[-1], size=n_rows)).to(device)
    return Rows(Features(X, device), y)


def forever(rows, batch_size):
    """Batches in a new order each epoch, without end."""
    batches = Batches(rows, batch_size, True, torch.Generator().manual_seed(0))
    while True:
        yield from batches


def plain_loop(rows, sizes, batch_size, device, dropout):
    """One step of a loop as the torch tutorials write it."""
    layers = []
    for k, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        if dropout:
            layers.append(nn.Dropout(1 - RETAIN[min(k, 1)]))
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).to(device)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    loss_function = nn.CrossEntropyLoss()
    batches = forever(rows, batch_size)

    def step():
        batch = next(batches)
        optimizer.zero_grad()
        loss_function(model(batch.x), batch.y).backward()
        optimizer.step()

    return step


def ours(rows, sizes, batch_size, device, method, n_probes=None):
    """One step of this package's net."""
    noise = {site: Dropout(RETAIN[min(site, 1)]) for site in range(len(sizes) - 1)}
    net = MarginalizedNet(
        module__layer_sizes=sizes,
        module__noise=noise,
        criterion__family=Categorical(),
        criterion__method=method,
        criterion__n_probes=n_probes,
        optimizer=torch.optim.SGD,
        optimizer__momentum=SGD["momentum"],
        optimizer__fused=device.type in ("cpu", "cuda"),
        lr=SGD["lr"],
        train_split=None,
        verbose=0,
        device=str(device),
    ).initialize()
    net.notify("on_train_begin")
    batches = forever(rows, batch_size)
    return lambda: net.train_step(next(batches))


def peers(rows, sizes, batch_size, device):
    args = (rows, sizes, batch_size, device)
    return {
        "torch loop, nn.Dropout": plain_loop(*args, dropout=True),
        "torch loop, no dropout": plain_loop(*args, dropout=False),
        "sampling": ours(*args, "sampling"),
        "diagonal": ours(*args, "diagonal"),
        "quadratic": ours(*args, "quadratic"),
        "quadratic, 1 probe": ours(*args, "quadratic", n_probes=1),
    }


def measure(steps, turns, per_turn, device):
    """Median seconds a step of each peer, taken in turns."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            wait()
            start = time.perf_counter()
            for _ in range(per_turn):
                step()
            wait()
            if turn:  # the first turn warms up
                seconds[name].append((time.perf_counter() - start) / per_turn)
    return {name: statistics.median(values) for name, values in seconds.items()}


def processor(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        info = Path("/proc/cpuinfo").read_text()
        name = next(x.split(":")[1].strip() for x in info.splitlines() if "model name" in x)
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name}, {torch.get_num_threads()} threads"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default="784-1024-10", help="widths, joined by dashes")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--steps", type=int, default=5, help="steps a turn")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()

    device = torch.device(options.device)
    sizes = tuple(int(width) for width in options.layers.split("-"))
    rows = data(sizes, 50 * options.batch_size, device)
    steps = peers(rows, sizes, options.batch_size, device)
    seconds = measure(steps, options.turns, options.steps, device)
    libraries = (sklearn_margdrop, torch, sklearn)
    versions = {library.__name__: library.__version__ for library in libraries}
    print(f"{options.layers}, batches of {options.batch_size}, float32, retain rate {RETAIN}")
    print(f"{processor(device)}; {', '.join(f'{k} {v}' for k, v in versions.items())}\n")
    loop, sampling = seconds["torch loop, nn.Dropout"], seconds["sampling"]
    print(f"{'':24s}{'ms a step':>10s}{'/ nn.Dropout':>14s}{'/ sampling':>12s}")
    for name, value in seconds.items():
        print(f"{name:24s}{value * 1e3:10.2f}{value / loop:14.2f}{value / sampling:12.2f}")
    if options.json:
        result = {
            "layers": options.layers,
            "batch_size": options.batch_size,
            "processor": processor(device),
            "versions": versions,
            "seconds": seconds,
            "ratio_to_nn_dropout": {name: value / loop for name, value in seconds.items()},
            "ratio_to_sampling": {name: value / sampling for name, value in seconds.items()},
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
