"""One training step on one process and on several, which Accelerate would launch.

Run ``python -m benchmarks.speed.data_parallel``: it starts the processes itself, on CPUs, with one
thread each. They take turns with a single process, the others waiting; "the exchange alone" sums
as many numbers as the step does. On fewer idle cores than processes there is nothing to gain.
"""

import os
import socket
import subprocess
import sys
import warnings

import torch
from accelerate import Accelerator

from benchmarks.harness import Results, parser, take_turns
from benchmarks.speed.peers import endless, our_net, random_images, rows_of, title
from sklearn_margdrop.distributed.data_parallel import engine_of
from sklearn_margdrop.training.engine import Engine

#: Widths, batch size and steps a turn.
SHAPES = [
    ((64, 100, 10), 100, 20),
    ((784, 1024, 10), 100, 10),
    ((784, 1024, 10), 1000, 3),
    ((784, 2048, 2048, 10), 1000, 1),
]
ALONE, EXCHANGE = "one process", "the exchange alone"


def step_of(sizes, batch_size, engine):
    rows = rows_of(*random_images(10 * batch_size, sizes[0], sizes[-1]))
    net, batches = our_net(sizes, "moments", n_probes=1), endless(rows, batch_size)
    net.engine_ = engine
    engine.begin(net, rows, None, 1)
    return lambda: net.train_step(next(batches)), sum(p.numel() for p in net.module_.parameters())


def peers(sizes, batch_size, accelerator):
    together, n_parameters = step_of(sizes, batch_size, engine_of(accelerator))
    alone = step_of(sizes, batch_size, Engine())[0]
    numbers = torch.zeros(n_parameters)
    return {
        ALONE: alone if accelerator.is_main_process else lambda: None,
        f"{accelerator.num_processes} processes": together,
        EXCHANGE: lambda: accelerator.reduce(numbers, "sum"),
    }


def work(options):
    """What each of the processes does; the first one prints."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    accelerator = Accelerator(cpu=True)
    own = [(options.layers, options.batch_size, options.steps)]
    results = Results(options) if accelerator.is_main_process else None
    for sizes, batch_size, steps in own if options.layers else SHAPES:
        seconds = take_turns(peers(sizes, batch_size, accelerator), options.turns or 15, steps)
        if results is not None:
            results.add(title(sizes, batch_size), seconds, [ALONE])
    accelerator.end_training()
    if results is not None:
        results.finish()


def launch(n_processes):
    """Start them; the exit status of the first one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(n_processes), "LOCAL_WORLD_SIZE": str(n_processes)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(n_processes)
    ]
    try:
        return children[0].wait()
    finally:
        for child in children[1:]:
            child.terminate()
            child.wait()


def main():
    options = parser(__doc__, "turns", "layers", "batch-size", "steps", "json", "check")
    options.add_argument("--processes", type=int, default=2)
    options = options.parse_args()
    if "RANK" not in os.environ:
        sys.exit(launch(options.processes))
    work(options)


if __name__ == "__main__":
    main()
