"""MNIST for the benchmarks, from a local folder or scikit-learn's downloader; digits otherwise.

Where the environment variable ``MARGDROP_DATA`` names a folder, its subfolder ``mnist`` holds the
four original files.
"""

import gzip

import numpy as np
from sklearn.datasets import fetch_openml, load_digits
from sklearn.model_selection import train_test_split

from benchmarks.text_data import FOLDER


def mnist():
    """60,000 training and 10,000 test images, pixels in [0, 1], as (X, y, X_test, y_test)."""
    if FOLDER:
        folder = FOLDER / "mnist"
        parts = [
            _read(folder / f"{part}-{what}.gz")
            for part in ("train", "t10k")
            for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]
        X, y, X_test, y_test = parts
    else:
        X, y = fetch_openml("mnist_784", return_X_y=True, as_frame=False)
        X, y, X_test, y_test = X[:60_000], y[:60_000], X[60_000:], y[60_000:]
    X, X_test = (x.reshape(len(x), -1).astype(np.float32) / 255 for x in (X, X_test))
    return X, y.astype(int), X_test, y_test.astype(int)


def digits():
    """The 1797 small images that scikit-learn bundles, a third of them to test."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    X, X_test, y, y_test = train_test_split(X, y, test_size=1 / 3, stratify=y, random_state=0)
    return X, y, X_test, y_test


def _read(path):
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">i4", raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
