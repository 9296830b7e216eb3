"""
How much there is to tune
=========================

Test error over the retain rates of the input and of the hidden layer, for the penalty and for
ordinary dropout.
"""

# %%
# 200 digits to learn from, the others to test on; the mean of two splits, the same for all cells.

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from sklearn_margdrop import MarginalizedDropoutClassifier

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
rates = [0.3, 0.6, 0.9]
splits = [train_test_split(X, y, train_size=200, stratify=y, random_state=s) for s in range(2)]


def error(method, at_input, at_hidden):
    wrong = []
    for seed, (X_train, X_test, y_train, y_test) in enumerate(splits):
        model = MarginalizedDropoutClassifier(
            64,
            method=method,
            retain_rate=[at_input, at_hidden],
            learning_rate="constant",
            learning_rate_init=0.004,
            max_iter=100,
            random_state=seed,
        )
        with warnings.catch_warnings():
            # Some settings would go on for longer; each has the same hundred epochs.
            warnings.simplefilter("ignore", ConvergenceWarning)
            wrong.append(1 - model.fit(X_train, y_train).score(X_test, y_test))
    return 100 * np.mean(wrong)


names = {"diagonal": "marginalised (diagonal)", "sampling": "ordinary dropout (sampling)"}
errors = {
    method: np.array([[error(method, i, h) for h in rates] for i in rates]) for method in names
}
for method, values in errors.items():
    print(
        f"{method:9s} best {values.min():4.1f} %   median {np.median(values):4.1f} %   "
        f"worst {values.max():4.1f} %"
    )

# %%
# The best cells are not far apart. The penalty's other cells are nearly as good, so that little is
# lost without tuning; with sampling, rates that are too low multiply the error.

figure, axes = plt.subplots(1, 2, figsize=(7, 3.7), sharey=True, layout="constrained")
for axis, (method, values) in zip(axes, errors.items(), strict=True):
    image = axis.imshow(values, norm="log", vmin=5, vmax=30, cmap="cividis_r", origin="lower")
    for (i, h), value in np.ndenumerate(values):
        axis.text(h, i, f"{value:.1f}", ha="center", va="center", color="w" if value > 11 else "k")
    axis.set(title=names[method], xlabel="retain rate of the hidden layer")
    axis.set_xticks(range(3), rates)
    axis.set_yticks(range(3), rates)
axes[0].set_ylabel("retain rate of the input")
bar = figure.colorbar(image, ax=axes, label="test error, %", shrink=0.85)
bar.set_ticks([5, 10, 20, 30], labels=[5, 10, 20, 30])
bar.ax.minorticks_off()
plt.show()
