"""
Quickstart: marginalised dropout on handwritten digits
======================================================

A network regularised by *marginalised* dropout is trained on the digits that scikit-learn
ships, tuned like any other estimator, and compared on held-out data with logistic regression,
with scikit-learn's network, and with the same network under ordinary (sampled) dropout.
"""

# sphinx_gallery_parallel = False
# %%
# The data: 1,797 images of 8 x 8 pixels, a third of them held out.

import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from sklearn_margdrop import MarginalizedDropoutClassifier

plt.style.use("tableau-colorblind10")
X, y = load_digits(return_X_y=True)
X = X.astype(np.float32)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=1 / 3, stratify=y, random_state=0
)

# %%
# One network and its settings
# ----------------------------
#
# It goes into a pipeline and a grid search like any other classifier. What is worth tuning is
# where the noise enters and how likely a unit is kept; ordinary dropout (``"sampling"``) gets
# the same grid. (The second marginalised method, ``"quadratic"``, equals ``"diagonal"`` where only
# the last hidden layer is noisy.)

grid = {
    "marginalizeddropoutclassifier__noise_placement": ["hidden", "both"],
    "marginalizeddropoutclassifier__retain_rate": [0.5, 0.8],
}


def network(method):
    model = MarginalizedDropoutClassifier(method=method, random_state=0)
    return GridSearchCV(make_pipeline(MinMaxScaler(), model), grid, cv=3, n_jobs=2)


candidates = {
    "LogisticRegression": GridSearchCV(
        make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": [0.1, 1, 10]},
        cv=3,
        n_jobs=2,
    ),
    "MLPClassifier": GridSearchCV(
        make_pipeline(MinMaxScaler(), MLPClassifier(max_iter=1000, random_state=0)),
        {"mlpclassifier__alpha": [1e-4, 1e-1], "mlpclassifier__hidden_layer_sizes": [100, 512]},
        cv=3,
        n_jobs=2,
    ),
    "sampling (ordinary dropout)": network("sampling"),
    "diagonal": network("diagonal"),
}

# %%
# Every candidate on the held-out third
# -------------------------------------
#
# `epochs` and `seconds` are those of the fit with the best setting, on all the training data.

print(f"{'':28s}{'accuracy':>9s}{'log loss':>9s}{'epochs':>8s}{'seconds':>9s}  best setting")
for name, search in candidates.items():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # settings that need more epochs
        search.fit(X_train, y_train)
    model = search.best_estimator_
    probability = model.predict_proba(X_test)
    setting = {key.split("__")[1]: value for key, value in search.best_params_.items()}
    print(
        f"{name:28s}"
        f"{accuracy_score(y_test, model.classes_[probability.argmax(1)]):9.4f}"
        f"{log_loss(y_test, probability):9.4f}"
        f"{np.max(model[-1].n_iter_):8d}"
        f"{search.refit_time_:9.2f}  {setting}"
    )

# %%
# Validation curves
# -----------------
#
# The same initial weights and the same fifth of the training data set aside, averaged over five
# seeds. The penalty does not have to average over random masks, so its curve falls sooner.

figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
X_scaled = MinMaxScaler().fit_transform(X_train)
n_epochs = 40
for method, style in {"sampling": "C1-.", "diagonal": "C0-", "quadratic": "C4--"}.items():
    errors = []
    start = time.perf_counter()
    for seed in range(5):
        model = MarginalizedDropoutClassifier(
            method=method,
            early_stopping=True,
            validation_fraction=0.2,
            n_iter_no_change=n_epochs,
            max_iter=n_epochs,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # all epochs are to be seen
            model.fit(X_scaled, y_train)
        errors.append(100 * (1 - np.array(model.validation_scores_)))
    milliseconds = (time.perf_counter() - start) / (5 * n_epochs) * 1e3
    label = f"{method} ({milliseconds:.0f} ms an epoch)"
    axis.plot(np.arange(1, n_epochs + 1), np.mean(errors, axis=0), style, label=label)
axis.set(
    xlabel="epoch",
    ylabel="validation error, %",
    yscale="log",
    title="sampled and marginalised dropout, 64-256-10 network",
)
axis.set_yticks([3, 4, 6, 10], [3, 4, 6, 10])
axis.minorticks_off()
axis.grid(alpha=0.3)
axis.legend()
figure.savefig("quickstart.png")
if plt.get_backend().lower() != "agg":  # there is a screen
    plt.show()
