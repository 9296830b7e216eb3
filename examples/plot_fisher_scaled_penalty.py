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

plt.style.use("tableau-colorblind10")


def draw(n, seed):
    rng = np.random.RandomState(seed)
    y = rng.randint(2, size=n)
    common = rng.normal(0.4 * (2 * y - 1), 1.0)
    decides = np.where(rng.uniform(size=n) < 0.93, 2 * y - 1, 1 - 2 * y)
    rare = decides * (rng.uniform(size=n) < 1 / 12)
    return np.column_stack([common, rare]), y


X_test, y_test = draw(20000, seed=1001)

# %%
# Both models, penalised until the common feature's coefficient is the same: L2 has then all but
# lost the rare feature, which dropout keeps, in each of four draws of the data.


def fisher_scaled(q):
    return MarginalizedDropoutGLMClassifier(
        method="quadratic", retain_rate=q, alpha=0, fit_intercept=False, tol=1e-6
    ).fit(X, y)


def l2(C):
    return LogisticRegression(C=C, fit_intercept=False).fit(X, y)


for seed in range(4):
    X, y = draw(600, seed)
    dropout = fisher_scaled(0.5)
    path = [l2(C) for C in np.logspace(-2, 0, 60)]
    plain = path[np.argmin([abs(model.coef_[0, 0] - dropout.coef_[0, 0]) for model in path])]
    for name, model in {"plain L2": plain, "Fisher-scaled": dropout}.items():
        common, rare = model.coef_[0]
        loss = log_loss(y_test, model.predict_proba(X_test))
        print(
            f"draw {seed}  {name:13s}  common {common:5.2f}   rare {rare:5.2f}   "
            f"log loss on new rows {loss:.3f} nats"
        )
print("Fisher information of the two coefficients:", dropout.fisher_diagonal_[0].round(4))

# %%
# The picture
# -----------
#
# The last draw: contours of the loss, and the level set of each penalty through its optimum. The
# circles of L2 pull both coefficients alike; the others are long in the direction of the rare
# feature, and not quite ellipses, because the Fisher information depends on the coefficients too.

grid = np.meshgrid(np.linspace(-0.3, 1.2, 121), np.linspace(-0.5, 2.5, 121))
flat = np.column_stack([g.ravel() for g in grid])
eta = X @ flat.T
loss = (np.logaddexp(0, eta) - y[:, None] * eta).mean(0)
curvature = 1 / (4 * np.cosh(eta / 2) ** 2)
scaled = 0.5 * ((X**2).T @ curvature / len(X) * (flat.T) ** 2).sum(0)
models = {"L2": plain, "Fisher-scaled": dropout}
paths = {
    "L2": [l2(C).coef_[0] for C in np.logspace(-3, 3, 100)],
    "Fisher-scaled": [fisher_scaled(q).coef_[0] for q in np.linspace(0.02, 1, 50)],
}
penalties = {"L2": (flat**2).sum(1), "Fisher-scaled": scaled}

figure, axes = plt.subplots(1, 2, figsize=(7, 5.8), sharey=True, layout="constrained")
for axis, (name, model) in zip(axes, models.items(), strict=True):
    w = model.coef_[0]
    axis.contour(*grid, loss.reshape(grid[0].shape), levels=25, colors="0.8", linewidths=0.8)
    nearest = np.argmin(((flat - w) ** 2).sum(1))
    level = penalties[name][nearest]
    axis.contour(
        *grid, penalties[name].reshape(grid[0].shape), levels=[level], colors="C1", linewidths=2
    )
    path = np.array(paths[name])
    axis.plot(
        path[:, 0], path[:, 1], color="C0", linewidth=2, linestyle="--", label="optima by strength"
    )
    axis.plot(*w, "o", color="C1", label="optimum on this level set")
    axis.plot(*flat[loss.argmin()], "k+", markersize=10, label="least loss")
    axis.set(title=name, xlim=(-0.3, 1.2), ylim=(-0.5, 2.5), aspect="equal")
    axis.set_xlabel("coefficient of the common feature")
axes[0].set_ylabel("coefficient of the rare feature")
axes[0].legend(loc="upper left", fontsize="small", framealpha=1)
plt.show()
