"""
Where noise acts decides what it smooths
========================================

The same network on two moons with noise at no site, on the input, on the hidden layers and on
both, gaussian above and dropout below. Colours are predicted probabilities; the line is where they
are a half, and between the dashed lines, at 0.1 and 0.9, the network is in doubt.
"""

# %%
# A hundred rows, and the mean of three networks that differ in their initial weights. There is no
# other penalty (``alpha=0``), so that what is seen is the noise.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons
from sklearn.preprocessing import scale

from sklearn_margdrop import MarginalizedDropoutClassifier

X, y = make_moons(100, noise=0.3, random_state=0)
X = scale(X)
noises = {
    "gaussian": {"noise": "gaussian", "noise_std": 0.5},
    "dropout": {"noise": "dropout", "retain_rate": 0.5},
}
placements = ["none", "input", "hidden", "both"]
grid = np.meshgrid(np.linspace(-2.6, 2.6, 80), np.linspace(-2.6, 2.6, 80))
points = np.column_stack([g.ravel() for g in grid])


def probability(placement, noise):
    mean, penalty = 0, 0
    for seed in range(3):
        model = MarginalizedDropoutClassifier(
            (64, 64),
            method="quadratic",
            noise_placement=placement,
            alpha=0,
            random_state=seed,
            **noise,
        )
        mean = mean + model.fit(X, y).predict_proba(points)[:, 1] / 3
        penalty += model.penalty_curve_[-1] / 3
    return mean.reshape(grid[0].shape), penalty


figure, axes = plt.subplots(2, 4, figsize=(7, 3.9), layout="constrained")
for row, (name, noise) in zip(axes, noises.items(), strict=True):
    row[0].set_ylabel(name)
    for axis, placement in zip(row, placements, strict=True):
        p, penalty = probability(placement, noise)
        doubt = ((p > 0.1) & (p < 0.9)).mean()
        print(
            f"{name:9s} {placement:7s} in doubt: {100 * doubt:3.0f} % of the square   "
            f"penalty at the end: {penalty:.3f} nats a row"
        )
        axis.contourf(*grid, p, levels=np.linspace(0, 1, 11), cmap="PuOr", alpha=0.7)
        lines = axis.contour(*grid, p, levels=[0.1, 0.5, 0.9], colors="k")
        lines.set(linestyles=["--", "-", "--"], linewidths=[0.8, 2, 0.8])
        for label, marker in enumerate("ox"):
            axis.plot(*X[y == label].T, marker, color="k", markersize=2.5, alpha=0.6)
        axis.set(xticks=[], yticks=[], aspect="equal")
for axis, placement in zip(axes[0], placements, strict=True):
    axis.set_title(placement)
plt.show()

# %%
# - Gaussian noise on the input says that a row may as well have lain beside where it lies: the
#   border keeps its bends, and the band of doubt along it widens.
# - On the hidden layers it says that the network's own features are not to be trusted in detail,
#   and the bends go.
# - Dropout on the input takes away a whole coordinate. With two features that is drastic; it suits
#   data where others say the same, such as pixels or words.
# - Dropout on the hidden layers changes least here, and its penalty is the least: its noise is in
#   proportion to the activations, and units that are off have none.
