"""
Probabilities from few rows
===========================

A network without regularisation that has learned its rows is sure of them, and of all others.
Noise on its units makes it doubt, which shows in the probabilities before it shows in the
accuracy.
"""

# %%
# Twenty features, 400 rows to learn from, 4,000 to test on, a tenth of the labels random;
# four draws of the data.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.datasets import make_classification
from sklearn.metrics import accuracy_score, log_loss
from sklearn.preprocessing import StandardScaler

from sklearn_margdrop import MarginalizedDropoutClassifier

plt.style.use("tableau-colorblind10")
models = {
    "no noise": {"noise_placement": "none"},
    "moments": {"method": "moments"},
    "diagonal": {"method": "diagonal"},
    "sampling": {"method": "sampling"},
}
labels, probabilities = [], {name: [] for name in models}
for draw in range(4):
    X, y = make_classification(
        4400, 20, n_informative=10, n_redundant=5, flip_y=0.1, class_sep=0.8, random_state=draw
    )
    X = StandardScaler().fit(X[:400]).transform(X)
    labels.append(y[400:])
    for name, setting in models.items():
        model = MarginalizedDropoutClassifier(64, random_state=draw, **setting)
        probabilities[name].append(model.fit(X[:400], y[:400]).predict_proba(X[400:])[:, 1])

# %%
# Predicted against observed frequencies, all draws together. On the diagonal line a prediction of
# 80 % comes true in 80 of 100 rows.

figure, axis = plt.subplots(figsize=(6, 4.6), layout="constrained")
print(f"{'':10s}{'log loss, nats':>15s} (by draw){'':23s}{'accuracy, %':>12s}")
for (name, drawn), style in zip(
    probabilities.items(), ("k:^", "C0-o", "C4--s", "C1-.x"), strict=True
):
    losses = [log_loss(y, p) for y, p in zip(labels, drawn, strict=True)]
    hits = [accuracy_score(y, p > 0.5) for y, p in zip(labels, drawn, strict=True)]
    by_draw = " ".join(f"{loss:.2f}" for loss in losses)
    print(f"{name:10s}{np.mean(losses):15.3f} ({by_draw}) {100 * np.mean(hits):20.1f}")
    observed, predicted = calibration_curve(
        np.concatenate(labels), np.concatenate(drawn), n_bins=8
    )
    axis.plot(100 * predicted, 100 * observed, style, label=f"{name}: {np.mean(losses):.2f} nats")
axis.plot([0, 100], [0, 100], color="0.6", linewidth=0.8)
axis.set(xlabel="predicted probability of class 1, %", ylabel="rows of class 1, %", aspect="equal")
axis.legend(title="mean log loss on new rows")
plt.show()
