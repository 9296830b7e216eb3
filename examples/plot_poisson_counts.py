"""
Counts with many rare causes
============================

A Poisson regression on many sparse indicators, such as events by product, district or diagnosis
code: some indicators occur in thousands of rows, most in a handful. `PoissonRegressor` shrinks
all coefficients by one L2 penalty; marginalised dropout shrinks each by what the data say about
it, and for the Poisson family its expectation has a closed form (``method="moments"``). Rows are
observed for different lengths of time, which enters as `sample_weight`.
"""

# %%
# Simulated claims: rates that depend on 400 indicators with frequencies from 20 % to 0.1 %, and
# an exposure for each row. The target is the rate, the exposure its weight.

import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import mean_poisson_deviance

from sklearn_margdrop import MarginalizedDropoutGLMRegressor

n_features = 400
frequency = np.logspace(np.log10(0.2), -3, n_features)
rng = np.random.RandomState(0)
# A rare cause can have a large effect; frequent ones have small effects.
true_coef = 0.08 * rng.normal(size=n_features) * (0.2 / frequency) ** 0.5


def draw(n, seed):
    rng = np.random.RandomState(seed)
    X = sparse.csr_array((rng.uniform(size=(n, n_features)) < frequency).astype(float))
    exposure = rng.uniform(0.2, 1.0, size=n)
    counts = rng.poisson(exposure * np.exp(X @ true_coef))
    return X, counts / exposure, exposure


X, y, exposure = draw(4000, seed=1)
X_test, y_test, exposure_test = draw(40000, seed=2)

# %%
# Each model along its strength
# -----------------------------

curves = {}
for method in ("moments", "quadratic"):
    rates = np.array([0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.995])
    models = [
        MarginalizedDropoutGLMRegressor(
            family="poisson", method=method, retain_rate=q, alpha=1e-4
        ).fit(X, y, sample_weight=exposure)
        for q in rates
    ]
    curves[f"dropout, {method}"] = (1 - rates) / rates, models
alphas = np.logspace(-5, -0.5, 12)
models = [
    PoissonRegressor(alpha=alpha, solver="newton-cholesky").fit(X, y, sample_weight=exposure)
    for alpha in alphas
]
curves["PoissonRegressor"] = alphas, models


def deviance(model):
    return mean_poisson_deviance(y_test, model.predict(X_test), sample_weight=exposure_test)


figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
best = {}
for name, (strengths, models) in curves.items():
    values = [deviance(model) for model in models]
    best[name] = models[np.argmin(values)]
    print(f"{name:20s} least deviance on new rows {min(values):.4f}")
    style = "k--" if name == "PoissonRegressor" else "-o"
    left.plot(strengths, values, style, markersize=4, label=name)
left.set(
    xscale="log",
    xlabel="strength: (1 - q) / q of dropout, alpha of L2",
    ylabel="Poisson deviance on new rows",
    title="along the strength of the penalty",
)
left.legend()

# %%
# What happens to the coefficients
# --------------------------------
#
# At the best strength of each, how much of the true coefficients is left, from the most frequent
# to the rarest features. L2 removes the rare ones, which still explain the counts.

groups = np.array_split(np.arange(n_features), 8)
for name in ("dropout, moments", "PoissonRegressor"):
    coef = best[name].coef_
    left_over = [coef[g] @ true_coef[g] / (true_coef[g] @ true_coef[g]) for g in groups]
    right.plot([frequency[g].mean() for g in groups], left_over, "-o", label=name)
right.axhline(1, color="k", linewidth=0.8)
right.set(
    xscale="log",
    xlabel="frequency of the feature",
    ylabel="slope of fitted on true coefficients",
    title="shrinkage by frequency",
)
right.legend()
plt.show()
