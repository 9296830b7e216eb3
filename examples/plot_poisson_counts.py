"""
Counts with many rare causes
============================

A Poisson regression on many sparse indicators, such as events by product, district or diagnosis
code: some indicators occur in thousands of rows, most in a handful. `PoissonRegressor` shrinks
all coefficients by one L2 penalty, which takes most from the rare ones; marginalised dropout
shrinks each by what the data say about it.
"""

# %%
# Simulated claims: rates that depend on 400 indicators with frequencies from 20 % to 0.1 %. A rare
# one can have a large effect, frequent ones have small effects. Rows are observed for different
# lengths of time: the target is the rate, and the exposure its weight.

import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import mean_poisson_deviance

from sklearn_margdrop import MarginalizedDropoutGLMRegressor

plt.style.use("tableau-colorblind10")
n_features = 400
frequency = np.logspace(np.log10(0.2), -3, n_features)
true_coef = 0.08 * np.random.RandomState(0).normal(size=n_features) * (0.2 / frequency) ** 0.5


def draw(n, seed):
    rng = np.random.RandomState(seed)
    X = sparse.csr_array((rng.uniform(size=(n, n_features)) < frequency).astype(float))
    exposure = rng.uniform(0.2, 1.0, size=n)
    counts = rng.poisson(exposure * np.exp(X @ true_coef))
    return X, counts / exposure, exposure


# %%
# Each model at several strengths, on three draws of 4000 rows. For the Poisson family dropout's
# expectation has a closed form, which ``method="moments"`` computes.

X_test, y_test, exposure_test = draw(20000, seed=100)


def deviance(rate):
    return mean_poisson_deviance(y_test, rate, sample_weight=exposure_test)


least = deviance(np.exp(X_test @ true_coef))
models = {
    "marginalised dropout": [
        MarginalizedDropoutGLMRegressor(family="poisson", retain_rate=q, alpha=1e-4)
        for q in (0.7, 0.8, 0.85, 0.9, 0.95)
    ],
    "PoissonRegressor": [
        PoissonRegressor(alpha=alpha, solver="newton-cholesky")
        for alpha in np.logspace(-3.7, -2.3, 5)
    ],
}
groups = np.array_split(np.arange(n_features), 8)
left_over = {name: [] for name in models}
for seed in range(3):
    X, y, exposure = draw(4000, seed)
    for name, strengths in models.items():
        for model in strengths:
            model.fit(X, y, sample_weight=exposure)
        excess = [deviance(model.predict(X_test)) - least for model in strengths]
        coef = strengths[np.argmin(excess)].coef_
        left_over[name].append(
            [coef[g] @ true_coef[g] / (true_coef[g] @ true_coef[g]) for g in groups]
        )
        print(f"draw {seed}  {name:21s} deviance above that of the true rates {min(excess):.3f}")

# %%
# At the best strength of each, how much of the true coefficients is left, from the most frequent
# to the rarest features. L2 halves the rare ones. The deviance on new rows is lower without
# that, but by little, because rare causes are rare.

figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
for (name, values), style in zip(left_over.items(), ("C0-o", "k:^"), strict=True):
    at = [100 * frequency[g].mean() for g in groups]
    axis.plot(at, 100 * np.mean(values, axis=0), style, label=name)
    axis.fill_between(
        at,
        100 * np.min(values, axis=0),
        100 * np.max(values, axis=0),
        color=axis.lines[-1].get_color(),
        alpha=0.12,
    )
axis.axhline(100, color="0.6", linewidth=0.8)
axis.set(
    xscale="log",
    xlabel="frequency of the feature, % of the rows",
    ylabel="coefficients left over, % (band: the draws)",
    ylim=(0, None),
)
axis.set_xticks([0.1, 1, 10], [0.1, 1, 10])
axis.legend(loc="lower right")
plt.show()
