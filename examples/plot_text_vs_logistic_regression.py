"""
A better logistic regression for text
=====================================

Learning curves on bags of words: `LogisticRegression` with the best C, and logistic regression
under marginalised dropout, as it comes. Dropout's penalty is scaled by the Fisher information of
each word, so that rare words which tell the class are kept, and posts without a label sharpen it.
"""

# %%
# The texts are two newsgroups, read from the folder that ``MARGDROP_DATA`` names or from
# scikit-learn's cache (``sklearn.datasets.fetch_20newsgroups()`` fills it once). Where neither is
# there, rows with rare informative features are simulated instead.

import json
import lzma
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse
from sklearn.datasets import fetch_20newsgroups
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from sklearn_margdrop import MarginalizedDropoutGLMClassifier

GROUPS = ["comp.graphics", "comp.windows.x"]


def newsgroups():
    folder = Path(os.environ.get("MARGDROP_DATA", "nowhere")) / "20news_bydate"
    if folder.exists():
        lines = [
            json.loads(line)
            for part in ("train", "test")
            for line in lzma.decompress((folder / f"{part}.jsonl.xz").read_bytes())
            .decode()
            .split("\n")
            if line
        ]
        lines = [line for line in lines if line["group"] in GROUPS]
        return [line["text"] for line in lines], np.array(
            [GROUPS.index(line["group"]) for line in lines]
        )
    bunch = fetch_20newsgroups(subset="all", categories=GROUPS, download_if_missing=False)
    return bunch.data, bunch.target


def simulated(n=2000):
    rng = np.random.RandomState(0)
    y = rng.randint(2, size=n)
    rare = np.zeros((n, 800))
    for row in range(n):  # a few words of one of a hundred topics, each told in two ways
        topic = 8 * rng.randint(100) + 4 * y[row]
        rare[row, topic + np.flatnonzero(rng.uniform(size=4) < 0.7)] = 1
    common = rng.uniform(size=(n, 200)) < 0.2
    return sparse.csr_array(np.column_stack([rare, common]).astype(float)), y


try:
    texts, y = newsgroups()
    X = CountVectorizer(binary=True, dtype=float).fit_transform(texts)
    source = " and ".join(GROUPS)
except OSError:
    X, y = simulated()
    source = "simulated rows with rare features"
    print("No newsgroups here: the rows are simulated.")
print(f"{source}: {X.shape[0]} rows, {X.shape[1]} features")

# %%
# The curves
# ----------
#
# Random splits: a third to learn from, of which the curves take more and more, a third without
# labels, a third to test on. LogisticRegression gets the C that is best on the *test* rows.
#
# Rows without labels reward confident predictions, whatever they are. They help once the labelled
# rows have settled what there is to be confident about, and mislead before that: with a few dozen
# labels and ten thousands of words, leave them out.

CANDIDATES = {
    "LogisticRegression, best C": None,
    "dropout, quadratic": {"method": "quadratic"},
    "dropout, moments": {"method": "moments"},
    "dropout, moments + unlabelled": {"method": "moments", "unlabeled": True},
}
third = len(y) // 3
sizes = np.geomspace(60, third, 4).astype(int)
errors = {name: [] for name in CANDIDATES}
for split in range(3):
    order = np.random.RandomState(split).permutation(len(y))
    train, unlabeled, test = order[:third], order[third : 2 * third], order[2 * third :]
    for size in sizes:
        rows = train[:size]
        for name, options in CANDIDATES.items():
            if options is None:
                score = max(
                    LogisticRegression(C=C, max_iter=1000)
                    .fit(X[rows], y[rows])
                    .score(X[test], y[test])
                    for C in (0.01, 0.1, 1, 10, 100)
                )
            else:
                model = MarginalizedDropoutGLMClassifier(method=options["method"])
                extra = {"X_unlabeled": X[unlabeled]} if "unlabeled" in options else {}
                score = model.fit(X[rows], y[rows], **extra).score(X[test], y[test])
            errors[name].append(100 * (1 - score))

figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
print(
    f"{'error on new rows, %':32s}" + "".join(f"{size:>8d}" for size in sizes) + "  labelled rows"
)
for name, values in errors.items():
    mean = np.reshape(values, (-1, len(sizes))).mean(0)
    print(f"{name:32s}" + "".join(f"{value:8.2f}" for value in mean))
    axis.plot(sizes, mean, "k--" if "Logistic" in name else "-o", markersize=4, label=name)
axis.set(xscale="log", xlabel="labelled rows", ylabel="error on new rows, %", title=source)
axis.set_xticks(sizes, [str(size) for size in sizes], minor=False)
axis.minorticks_off()
axis.grid(alpha=0.3)
axis.legend()
plt.show()
