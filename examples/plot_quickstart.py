"""
Quickstart: marginalised dropout on handwritten digits
======================================================

A network regularised by *marginalised* dropout is trained on the digits that scikit-learn
ships, tuned like any other estimator, and compared on held-out data with logistic regression,
with scikit-learn's network, and with the same network under ordinary (sampled) dropout.
"""

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
# the same grid.

grid = {
    "marginalizeddropoutclassifier__noise_placement": ["input", "hidden", "both"],
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
    "quadratic": network("quadratic"),
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
# The same network from the same initial weights, on the same tenth of the training data: the
# penalty does not have to average over random masks, so its curve is smooth and early.

figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
scaler = MinMaxScaler().fit(X_train)
for method, color in {"sampling": "C1", "diagonal": "C0", "quadratic": "C2"}.items():
    model = MarginalizedDropoutClassifier(
        method=method, early_stopping=True, n_iter_no_change=60, max_iter=60, random_state=0
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 60 epochs are what we want to see
        model.fit(scaler.transform(X_train), y_train)
    seconds = time.perf_counter() - start
    epochs = np.arange(1, model.n_iter_ + 1)
    label = f"{method} ({seconds / model.n_iter_ * 1e3:.0f} ms an epoch)"
    axis.plot(epochs, 1 - np.array(model.validation_scores_), color=color, label=label)
axis.set(
    xlabel="epoch",
    ylabel="validation error",
    yscale="log",
    title="Marginalised and sampled dropout, 64-512-10",
)
axis.legend()
if plt.get_backend().lower() == "agg":  # no screen to show it on
    figure.savefig("quickstart.png")
else:
    plt.show()
