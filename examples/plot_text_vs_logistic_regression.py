"""
A better logistic regression for text
=====================================

Learning curves on bags of words: `LogisticRegression` with the best C, and logistic regression
under marginalised dropout, with its defaults. Dropout's penalty is scaled by the Fisher
information of each word, so that rare words which tell the class are kept, and texts without a
label sharpen it.
"""

# %%
# The texts come with scikit-learn: the paragraphs of its own docstrings. The task is to tell those
# of ``sklearn.linear_model`` from those of ``sklearn.metrics``.

import inspect
import re

import matplotlib.pyplot as plt
import numpy as np
import sklearn.linear_model
import sklearn.metrics
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from sklearn_margdrop import MarginalizedDropoutGLMClassifier

plt.style.use("tableau-colorblind10")


def paragraphs(module):
    """The paragraphs of at least eight words, each once."""
    members = [getattr(module, name) for name in module.__all__]
    methods = [m for c in members if inspect.isclass(c) for m in vars(c).values() if callable(m)]
    docs = "\n\n".join(inspect.getdoc(member) or "" for member in members + methods)
    words = [re.findall("[a-z]{2,}", text.lower()) for text in re.split(r"\n\s*\n", docs)]
    return {" ".join(text) for text in words if len(text) >= 8}


linear, metrics = paragraphs(sklearn.linear_model), paragraphs(sklearn.metrics)
texts = sorted(linear ^ metrics)  # some are in both
y = np.array([text in linear for text in texts]).astype(int)
X = CountVectorizer(binary=True, dtype=float).fit_transform(texts)
print(f"{X.shape[0]} paragraphs, {X.shape[1]} words, {100 * y.mean():.0f} % from linear_model")

# %%
# Random splits: a third to learn from, of which the curves take more and more, a third without
# labels, a third to test on. LogisticRegression gets the C that is best on the *test* rows.

third = len(y) // 3
sizes = np.geomspace(60, third, 4).astype(int)
names = ["LogisticRegression, best C", "quadratic", "moments", "moments + unlabelled"]
errors = np.empty((6, len(sizes), len(names)))
for split in range(len(errors)):
    order = np.random.RandomState(split).permutation(len(y))
    train, unlabeled, test = order[:third], order[third : 2 * third], order[2 * third :]
    for k, size in enumerate(sizes):
        labelled = X[train[:size]], y[train[:size]]
        models = [
            MarginalizedDropoutGLMClassifier(method="quadratic").fit(*labelled),
            MarginalizedDropoutGLMClassifier().fit(*labelled),
            MarginalizedDropoutGLMClassifier().fit(*labelled, X_unlabeled=X[unlabeled]),
        ]
        plain = [
            LogisticRegression(C=C, max_iter=1000).fit(*labelled) for C in (0.01, 0.1, 1, 10, 100)
        ]
        errors[split, k, 0] = 1 - max(model.score(X[test], y[test]) for model in plain)
        errors[split, k, 1:] = [1 - model.score(X[test], y[test]) for model in models]
errors = 100 * errors.mean(0)

# %%
# Rows without labels reward confident predictions, whatever they are. They help once the labelled
# rows have settled what there is to be confident about, and mislead before that, as they do here
# with 60 labels for thousands of words.

print(f"{'error on new rows, %':28s}" + "".join(f"{size:7d}" for size in sizes) + "  labels")
for name, values in zip(names, errors.T, strict=True):
    print(f"{name:28s}" + "".join(f"{value:7.1f}" for value in values))
figure, axis = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
for name, values, style in zip(names, errors.T, ("k:^", "C4--s", "C0-o", "C1-.D"), strict=True):
    axis.plot(sizes, values, style, markersize=5, label=name)
axis.set(xscale="log", yscale="log", xlabel="labelled rows", ylabel="error on new rows, %")
axis.set_xticks(sizes, sizes)
axis.set_yticks([7, 10, 15, 20, 25], [7, 10, 15, 20, 25])
axis.minorticks_off()
axis.grid(alpha=0.3)
axis.legend()
plt.show()
