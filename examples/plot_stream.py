"""
A file that is larger than memory may be
========================================

Models learn a memory-mapped file chunk by chunk, are scored on a chunk that was set aside, and
pass through a pickle on the way. The file here has a few megabytes; nothing would change if it had
many gigabytes, as only one chunk is ever in memory. The guide :ref:`streams` has Parquet and Dask
arrays.
"""

# %%
# Rows of two spheres, one in the other, which a plane cannot tell apart, written to a file a chunk
# at a time.

import pickle
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutGLMClassifier

plt.style.use("tableau-colorblind10")

n_rows, n_features, chunk = 30_000, 10, 1000
folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "X.npy"
file = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, n_features))
rng = np.random.default_rng(0)
y = rng.integers(2, size=n_rows)
for start in range(0, n_rows, chunk):
    directions = rng.normal(size=(chunk, n_features))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    radius = 1 + y[start : start + chunk] + 0.3 * rng.normal(size=chunk)
    file[start : start + chunk] = radius[:, None] * directions
del file

# %%
# The first chunk is set aside. Both models see each of the others once.

X = np.load(path, mmap_mode="r")
X_valid, y_valid = X[:chunk], y[:chunk]
models = {
    "network, 32 hidden units": MarginalizedDropoutClassifier(
        32, retain_rate=0.9, learning_rate_init=0.01, random_state=0
    ),
    "generalised linear model, fisher": MarginalizedDropoutGLMClassifier(
        solver="fisher", retain_rate=0.9, random_state=0
    ),
}
scores = {name: [] for name in models}
for start in range(chunk, n_rows, chunk):
    rows = slice(start, start + chunk)
    for name, model in models.items():
        model = pickle.loads(pickle.dumps(model))  # what another process would go on from
        models[name] = model.partial_fit(X[rows], y[rows], classes=[0, 1])
        scores[name].append(model.score(X_valid, y_valid))

# %%
# `loss_curve_` has a number for each chunk, the mean objective of its batches. Each is that of
# the weights before the batch was learned, so that the curve is one of data that the model had not
# seen.

figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.4), layout="constrained")
for name, model in models.items():
    print(f"{name}: {model.n_iter_} chunks, accuracy {scores[name][-1]:.3f}")
    left.plot(model.loss_curve_, label=name)
    right.plot(scores[name])
left.set(xlabel="chunk", ylabel="objective, nats per sample")
left.legend(fontsize="small")
right.set(xlabel="chunk", ylabel="accuracy on the chunk set aside")
plt.show()
del X, X_valid
folder.cleanup()
