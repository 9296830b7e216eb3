"""
An L2 penalty that the data scale
=================================

To second order, dropout on the features of a logistic regression is an L2 penalty that weights
each squared coefficient by its Fisher information: the curvature of the loss where the model
stands. A coefficient that only moves predictions which are confident anyway is cheap; one that
moves uncertain predictions is dear. The plain L2 penalty treats both alike.
"""

# %%
# Two features, one rare
# ----------------------
#
# The first feature is in every row and tells little. The second is in one row of twelve, and
# where it is, it decides the class.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from sklearn_margdrop import MarginalizedDropoutGLMClassifier


def draw(n, seed):
    rng = np.random.RandomState(seed)
    y = rng.randint(2, size=n)
    common = rng.normal(0.4 * (2 * y - 1), 1.0)
    decides = np.where(rng.uniform(size=n) < 0.93, 2 * y - 1, 1 - 2 * y)
    rare = decides * (rng.uniform(size=n) < 1 / 12)
    return np.column_stack([common, rare]), y


X, y = draw(600, seed=3)
X_test, y_test = draw(20000, seed=1)

# %%
# Both models, penalised until the common feature's coefficient is the same: L2 has then all but
# lost the rare feature, which dropout keeps.

dropout = MarginalizedDropoutGLMClassifier(
    method="quadratic", retain_rate=0.5, alpha=0, fit_intercept=False, tol=1e-6
).fit(X, y)
strengths = np.logspace(-3, 3, 200)
paths = {
    "L2": [LogisticRegression(C=C, fit_intercept=False).fit(X, y).coef_[0] for C in strengths],
    "Fisher-scaled": [
        dropout.set_params(retain_rate=q).fit(X, y).coef_[0] for q in np.linspace(0.02, 1, 60)
    ],
}
dropout.set_params(retain_rate=0.5).fit(X, y)
l2 = LogisticRegression(
    C=strengths[np.argmin([abs(w[0] - dropout.coef_[0, 0]) for w in paths["L2"]])],
    fit_intercept=False,
).fit(X, y)
for name, model in {"plain L2": l2, "Fisher-scaled": dropout}.items():
    common, rare = model.coef_[0]
    loss = log_loss(y_test, model.predict_proba(X_test))
    print(f"{name:15s} common {common:5.2f}   rare {rare:5.2f}   log loss on new rows {loss:.4f}")
print("Fisher information of the two coefficients:", dropout.fisher_diagonal_[0].round(4))

# %%
# The picture
# -----------
#
# Contours of the loss, and the level set of each penalty through its optimum. The spheres of L2
# pull both coefficients alike; the others are long in the direction of the rare feature, and not
# quite ellipses, because the Fisher information depends on the coefficients too.

grid = np.meshgrid(np.linspace(-0.3, 1.2, 121), np.linspace(-0.5, 2.5, 121))
flat = np.column_stack([g.ravel() for g in grid])
eta = X @ flat.T
loss = (np.logaddexp(0, eta) - y[:, None] * eta).mean(0)
curvature = 1 / (4 * np.cosh(eta / 2) ** 2)
fisher_scaled = 0.5 * ((X**2).T @ curvature / len(X) * (flat.T) ** 2).sum(0)
penalties = {"L2": (flat**2).sum(1), "Fisher-scaled": fisher_scaled}

figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
for axis, (name, model) in zip(axes, {"L2": l2, "Fisher-scaled": dropout}.items(), strict=True):
    w = model.coef_[0]
    axis.contour(*grid, loss.reshape(grid[0].shape), levels=25, colors="0.8", linewidths=0.8)
    nearest = np.argmin(((flat - w) ** 2).sum(1))
    level = penalties[name][nearest]
    axis.contour(*grid, penalties[name].reshape(grid[0].shape), levels=[level], colors="C3")
    path = np.array(paths[name])
    axis.plot(path[:, 0], path[:, 1], color="C0", linewidth=1, label="optima by strength")
    axis.set_xlim(-0.3, 1.2)
    axis.plot(*w, "o", color="C3", label="optimum on this level set")
    axis.plot(*flat[loss.argmin()], "k+", markersize=10, label="least loss")
    axis.set(
        title=name, xlabel="coefficient of the common feature", xlim=(-0.3, 1.2), ylim=(-0.5, 2.5)
    )
axes[0].set_ylabel("coefficient of the rare feature")
axes[0].legend(loc="upper left", fontsize="small")
plt.show()
