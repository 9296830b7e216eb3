"""Streams larger than the memory: rows a second, and memory that is flat in their number.

Run ``python -m benchmarks.speed.streams``. Each model learns a stream of 20 GB by `partial_fit`,
in a process of its own; the chunks are made as they are needed and never stored. Memory is the
peak of the whole process, imports included, and what it grows by between the first and the last
tenth of the stream. On every tenth chunk scikit-learn's `SGDClassifier` takes turns with the
model. Then `fit` reads a memory-mapped file, and the memory that is no file's is watched.
``--quick`` is a small run of all of it.
"""

import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
from sklearn.linear_model import SGDClassifier

from benchmarks.harness import Results, in_fresh_process, memory_status, parser, seconds_of
from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutGLMClassifier

#: float32 rows of so many features, so many to a chunk and to a batch.
N_FEATURES, CHUNK, BATCH = 1000, 4096, 1024

#: What learns the stream, and what is fitted to the file; few iterations are enough to see.
STREAM_MODELS = {
    "network 1000-64-1": lambda: MarginalizedDropoutClassifier(
        64, retain_rate=0.5, batch_size=BATCH, device="cpu", random_state=0
    ),
    "fisher": lambda: MarginalizedDropoutGLMClassifier(
        solver="fisher", retain_rate=0.9, batch_size=BATCH, device="cpu", random_state=0
    ),
}
FILE_MODELS = {
    "network 1000-64-1, an epoch": lambda: STREAM_MODELS["network 1000-64-1"]().set_params(
        max_iter=1
    ),
    "lbfgs, 5 iterations": lambda: MarginalizedDropoutGLMClassifier(max_iter=5, device="cpu"),
}


def chunk(number):
    """Rows and labels that a plane tells apart, but for one in ten."""
    rng = np.random.default_rng(number)
    X = rng.standard_normal((CHUNK, N_FEATURES), dtype=np.float32)
    plane = np.random.default_rng(2**32).standard_normal(N_FEATURES, dtype=np.float32)
    return X, (X @ plane > 0) ^ (rng.random(CHUNK) < 0.1)


def learn(name, n_chunks):
    """Seconds of the model and of its peer by chunk, memory by chunk and at its peak, accuracy."""
    warnings.simplefilter("ignore")
    model, peer = STREAM_MODELS[name](), SGDClassifier(loss="log_loss", random_state=0)
    seconds, ratios, memory = [], [], []
    for number in range(n_chunks):
        X, y = chunk(number)
        seconds.append(seconds_of(lambda: model.partial_fit(X, y, classes=[False, True])))  # noqa: B023
        memory.append(memory_status("VmRSS"))
        if number % 10 == 9:
            theirs = seconds_of(lambda: peer.partial_fit(X, y, classes=[False, True]))  # noqa: B023
            ratios.append(seconds[-1] / theirs)
    accuracy = float(model.score(*chunk(n_chunks)))
    return seconds, ratios, memory, memory_status("VmHWM"), accuracy


def fit_file(name, path):
    """Seconds of a fit on the file, and the megabytes that are no file's at their most."""
    warnings.simplefilter("ignore")
    model = FILE_MODELS[name]()
    model.fit(*chunk(0))
    X = np.load(path, mmap_mode="r")
    y = np.load(path.with_name("y.npy"))
    memory, done = [memory_status("RssAnon")], threading.Event()

    def watch():
        while not done.wait(0.01):
            memory.append(memory_status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seconds = seconds_of(lambda: model.fit(X, y))
    finally:
        done.set()
        watcher.join()
    return seconds, max(memory) - memory[0], max(memory)


def write(path, n_chunks):
    rows = (n_chunks * CHUNK, N_FEATURES)
    X, labels = np.lib.format.open_memmap(path, "w+", np.float32, rows), []
    for number in range(n_chunks):
        X[number * CHUNK : (number + 1) * CHUNK], y = chunk(number)
        labels.append(y)
    X.flush()
    np.save(path.with_name("y.npy"), np.concatenate(labels))


def main():
    options = parser(__doc__, "quick", "json", "check")
    options.add_argument("--gigabytes", type=float, default=20, help="of the stream")
    options.add_argument("--file-gigabytes", type=float, default=3, help="of the file")
    options.add_argument("--folder", type=Path, help="where the file lies for a while")
    options = options.parse_args()
    if options.quick:
        options.gigabytes, options.file_gigabytes = 0.2, 0.1
    results = Results(options)
    size = CHUNK * N_FEATURES * 4 / 1e9
    n_chunks = max(10, round(options.gigabytes / size))
    case = f"a stream of {n_chunks * size:.2g} GB"
    print(f"\n{case}: {n_chunks} chunks of {CHUNK} rows, {N_FEATURES} float32 features")
    for name in STREAM_MODELS:
        seconds, ratios, memory, peak, accuracy = in_fresh_process(learn, name, n_chunks)
        tenth = n_chunks // 10
        growth = max(memory[-tenth:]) - max(memory[:tenth])
        slowing = np.median(seconds[-tenth:]) / np.median(seconds[:tenth])
        rate = CHUNK * n_chunks / sum(seconds)
        print(
            f"  {name:28s} {rate:7.0f} rows/s, {rate * N_FEATURES * 4e-9:.3f} GB/s, "
            f"{np.median(ratios):.1f} times SGDClassifier's seconds, accuracy {accuracy:.3f}\n"
            f"  {'':28s} peak {peak:.0f} MB; from the first tenth to the last {growth:+.1f} MB, "
            f"{slowing:.2f} times the seconds of a call",
            flush=True,
        )
        results.note(
            case,
            name,
            {"SGDClassifier.partial_fit": ratios},
            gigabytes=n_chunks * size,
            seconds=sum(seconds),
            rows_per_second=rate,
            gigabytes_per_second=rate * N_FEATURES * 4e-9,
            peak_megabytes=peak,
            growth_megabytes=growth,
            slowing=float(slowing),
            accuracy=accuracy,
        )
    n_chunks = max(2, round(options.file_gigabytes / size))
    case = f"fit on a memory-mapped file of {n_chunks * size:.2g} GB"
    print(f"\n{case}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "X.npy"
        write(path, n_chunks)
        for name in FILE_MODELS:
            seconds, growth, peak = in_fresh_process(fit_file, name, path)
            print(
                f"  {name:28s} {seconds:7.1f} s, {growth:.0f} MB more than before that are no "
                f"file's, {peak:.0f} MB in all",
                flush=True,
            )
            ratio = growth / (1e3 * n_chunks * size)
            results.note(
                case,
                name,
                {"memory / file": [ratio]},
                seconds=seconds,
                growth_megabytes=growth,
                anonymous_megabytes=peak,
            )
    results.finish()


if __name__ == "__main__":
    main()
