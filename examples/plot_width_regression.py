"""
A width that matters less
=========================

A network for 150 patients: without noise the hidden layer must be small, or the targets are
learned by heart. Under marginalised dropout it may be much wider.
"""

# %%
# The diabetes data: ten features, the other 292 patients to test on, three splits. R² is the
# fraction of the variance that is explained.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_margdrop import MarginalizedDropoutRegressor

plt.style.use("tableau-colorblind10")
X, y = load_diabetes(return_X_y=True)
X = X.astype(np.float32)
widths = [8, 32, 128, 512]
splits = list(ShuffleSplit(3, train_size=150, random_state=0).split(X))


def networks(width, seed):
    common = {"hidden_layer_sizes": (width,), "random_state": seed}
    return {
        "no noise": MarginalizedDropoutRegressor(noise_placement="none", **common),
        "diagonal": MarginalizedDropoutRegressor(method="diagonal", **common),
        "quadratic": MarginalizedDropoutRegressor(method="quadratic", **common),
    }


scores = {name: np.empty((len(splits), len(widths))) for name in networks(1, 0)}
for k, width in enumerate(widths):
    for split, (train, test) in enumerate(splits):
        for name, network in networks(width, split).items():
            model = make_pipeline(StandardScaler(), network)
            scores[name][split, k] = model.fit(X[train], y[train]).score(X[test], y[test])

# %%
# The penalty grows with the variance that all units together give the output, so that more units
# do not mean more freedom. `"diagonal"` leaves out what units add to each other through the noise
# of the features that they share, and holds the widest network less firmly.

figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
print(f"{'R² on new rows':15s}" + "".join(f"{width:7d}" for width in widths) + "  hidden units")
styles = {"no noise": "k:^", "diagonal": "C0-o", "quadratic": "C4--s"}
for name, values in scores.items():
    print(f"{name:15s}" + "".join(f"{value:7.2f}" for value in values.mean(0)))
    axis.plot(widths, values.mean(0), styles[name], label=name)
    axis.fill_between(
        widths, values.min(0), values.max(0), color=axis.lines[-1].get_color(), alpha=0.12
    )
axis.set(xscale="log", xlabel="hidden units", ylabel="R² on new rows (band: the splits)")
axis.set_xticks(widths, widths)
axis.minorticks_off()
axis.grid(alpha=0.3)
axis.legend()
plt.show()
