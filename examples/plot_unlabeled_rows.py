"""
Few labels, many rows without
=============================

The penalty needs no label, so rows without one take part in it: ``fit(X, y, X_unlabeled=...)``.
It then holds the network to confident predictions where the data are, not only where the labels
are.
"""

# %%
# Digits, a third of them to test on. Of the others 20 to 200 keep their label (as many of each
# digit), and the rest are rows without one. Five splits, the same for both curves.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_margdrop import MarginalizedDropoutClassifier

plt.style.use("tableau-colorblind10")
X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
sizes = [20, 50, 100, 200]
errors = np.empty((5, len(sizes), 2))
for split in range(5):
    X_pool, X_test, y_pool, y_test = train_test_split(
        X, y, test_size=1 / 3, stratify=y, random_state=split
    )
    for k, size in enumerate(sizes):
        X_train, X_rest, y_train, _ = train_test_split(
            X_pool, y_pool, train_size=size, stratify=y_pool, random_state=split
        )
        model = MarginalizedDropoutClassifier(random_state=split)
        errors[split, k, 0] = 1 - model.fit(X_train, y_train).score(X_test, y_test)
        model.fit(X_train, y_train, X_unlabeled=X_rest)
        errors[split, k, 1] = 1 - model.score(X_test, y_test)
errors *= 100

# %%
# The bands are the standard error of the mean over the splits. Both curves share the splits, so
# that their difference is steadier than either; its own standard error is in the table. With two
# rows of each digit it is not clear that the others help, and with more it is.

figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
styles = {"labelled rows alone": "C1--x", "with the unlabelled rows": "C0-o"}
for k, (name, style) in enumerate(styles.items()):
    mean, sem = errors[:, :, k].mean(0), errors[:, :, k].std(0, ddof=1) / np.sqrt(5)
    axis.plot(sizes, mean, style, label=name)
    axis.fill_between(sizes, mean - sem, mean + sem, color=style[:2], alpha=0.2, linewidth=0)
axis.set(xscale="log", yscale="log", xlabel="labelled rows", ylabel="test error, %")
axis.set_xticks(sizes, sizes)
axis.set_yticks([5, 7, 10, 15, 20], [5, 7, 10, 15, 20])
axis.minorticks_off()
axis.grid(alpha=0.3)
axis.legend()

gain = errors[:, :, 0] - errors[:, :, 1]
print("labelled rows      " + "".join(f"{size:7d}" for size in sizes))
print("test error, %      " + "".join(f"{value:7.1f}" for value in errors[:, :, 0].mean(0)))
print("  with unlabelled  " + "".join(f"{value:7.1f}" for value in errors[:, :, 1].mean(0)))
print("difference         " + "".join(f"{value:7.1f}" for value in gain.mean(0)))
print("  standard error   " + "".join(f"{value / 5**0.5:7.1f}" for value in gain.std(0, ddof=1)))
plt.show()
