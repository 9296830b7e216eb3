"""
A search that stops the hopeless early
======================================

`HalvingGridSearchCV` with epochs for its resource: all settings train for a few epochs, the
best third goes on for three times as many, and so on.
"""

# %%
# 18 settings on 600 digits. Each round trains a whole schedule of its length. The first one is too
# short for strong noise, which may end worse than a constant prediction: silence such warnings.

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import HalvingGridSearchCV, train_test_split

from sklearn_margdrop import MarginalizedDropoutClassifier

plt.style.use("tableau-colorblind10")
X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    (X / 16).astype(np.float32), y, train_size=600, stratify=y, random_state=0
)
grid = {
    "learning_rate_init": [0.002, 0.008],
    "noise_placement": ["input", "hidden", "both"],
    "retain_rate": [0.3, 0.6, 0.9],
}
search = HalvingGridSearchCV(
    MarginalizedDropoutClassifier(64, random_state=0),
    grid,
    resource="max_iter",
    min_resources=6,
    max_resources=54,
    factor=3,
    cv=3,
    random_state=0,
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    search.fit(X_train, y_train)

results = search.cv_results_
spent = sum(np.multiply(search.n_candidates_, search.n_resources_))
every = 18 * 54
print(f"settings by round: {search.n_candidates_}, epochs each: {search.n_resources_}")
print(f"epochs in each fold: {spent}, where a whole grid of 54 epochs takes {every}")
print("best:", {key: value for key, value in search.best_params_.items() if key in grid})
print(f"accuracy on new rows: {100 * search.score(X_test, y_test):.1f} %")

# %%
# A line is a setting, and ends where it is dropped. After six epochs the larger learning rate is
# far ahead, and only its settings go on. That is the risk of halving: a slow setting that is good
# in the end is not waited for.

figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
styles = {0.002: "C1--x", 0.008: "C0-o"}
scores = {}
for params, round_, score in zip(
    results["params"], results["iter"], results["mean_test_score"], strict=True
):
    key = params["learning_rate_init"], params["noise_placement"], params["retain_rate"]
    scores.setdefault(key, {})[search.n_resources_[round_]] = 100 * score
for (rate, *_), points in scores.items():
    axis.plot(
        list(points), list(points.values()), styles[rate], linewidth=1, markersize=4, label=rate
    )
axis.set(xscale="log", xlabel="epochs", ylabel="accuracy in cross-validation, %")
axis.set_xticks(search.n_resources_, search.n_resources_)
axis.minorticks_off()
axis.grid(alpha=0.3)
handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
axis.legend(handles.values(), handles.keys(), title="learning_rate_init", loc="lower right")
plt.show()
