"""
Gaussian noise on the features is ridge regression
==================================================

For the squared error and additive noise the expectation has a closed form: noise of standard
deviation s on every feature adds ``s**2 / 2 * ||coef||**2``. That is ridge regression with
``alpha = n_samples * s**2``, and least squares on noisy copies of the data only approach it.
"""

# %%
# Ten features of the diabetes data, 100 rows. The marginalised model gets no L2 penalty of its
# own (``alpha=0``), and `Ridge` no noise.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.preprocessing import scale

from sklearn_margdrop import MarginalizedDropoutGLMRegressor

plt.style.use("tableau-colorblind10")
X, y = load_diabetes(return_X_y=True)
X, y = scale(X[:100]), scale(y[:100])
n = len(y)

stds = np.logspace(-1.5, 1, 40)
ridge = np.array([Ridge(alpha=n * s**2).fit(X, y).coef_ for s in stds])


def marginalised(s):
    model = MarginalizedDropoutGLMRegressor(noise="gaussian", noise_std=s, alpha=0, tol=1e-8)
    return model.fit(X, y).coef_


ours = np.array([marginalised(s) for s in stds[::3]])
print(f"largest difference of a coefficient: {np.abs(ours - ridge[::3]).max():.1e}")

# %%
# The same by drawing the noise: least squares on `m` noisy copies of each row, at s = 0.5.

copies, s, rng = [1, 10, 100, 1000], 0.5, np.random.RandomState(0)
exact = Ridge(alpha=n * s**2).fit(X, y).coef_
distances = np.empty((10, len(copies)))
for draw in range(10):
    for k, m in enumerate(copies):
        noisy = np.tile(X, (m, 1)) + rng.normal(0, s, (m * n, X.shape[1]))
        coef = LinearRegression().fit(noisy, np.tile(y, m)).coef_
        distances[draw, k] = np.linalg.norm(coef - exact) / np.linalg.norm(exact)

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
left.semilogx(stds, ridge, color="0.6", linewidth=1.2)
left.semilogx(stds[::3], ours, "o", color="C0", markersize=4)
left.plot([], [], color="0.6", label="Ridge, alpha = n s²")
left.plot([], [], "o", color="C0", markersize=4, label="marginalised noise")
left.set(
    xlabel="standard deviation s of the noise", ylabel="coefficient", title="ten coefficients"
)
left.legend(loc="lower right", fontsize="small")
right.loglog(copies, 100 * distances.T, color="C1", linewidth=0.6)
right.loglog(copies, 100 * distances.mean(0), "o-", color="C1", markersize=5)
right.set(
    xlabel="noisy copies of each row",
    ylabel="distance from the limit, %",
    title="ten draws of the noise, s = 0.5",
)
plt.show()
