"""
Quickstart: marginalised dropout on handwritten digits
======================================================

A network regularised by *marginalised* dropout is trained on the digits that scikit-learn ships,
with its default settings, and compared on held-out data with logistic regression, with
scikit-learn's network, and with the same network under ordinary (sampled) dropout.
"""

# sphinx_gallery_parallel = False
# %%
# The data: 1,797 images of 8 x 8 pixels. Ten random splits, each with a third of the rows held
# out.

import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from sklearn_margdrop import MarginalizedDropoutClassifier

plt.style.use("tableau-colorblind10")
X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
splits = [
    train_test_split(X, y, test_size=1 / 3, stratify=y, random_state=seed) for seed in range(10)
]

# %%
# Default settings on ten splits
# ------------------------------
#
# Both networks of this package choose their retain rates by short trainings within `fit`; nothing
# else is tuned. (`max_iter` only lets the other two models converge.)


def models(seed):
    return {
        "MarginalizedDropoutClassifier": MarginalizedDropoutClassifier(random_state=seed),
        '  with method="sampling"': MarginalizedDropoutClassifier(
            method="sampling", random_state=seed
        ),
        "MLPClassifier": MLPClassifier(max_iter=1000, random_state=seed),
        "LogisticRegression": LogisticRegression(max_iter=1000),
    }


results = {name: [] for name in models(0)}
for seed, (X_train, X_test, y_train, y_test) in enumerate(splits):
    for name, model in models(seed).items():
        start = time.perf_counter()
        model.fit(X_train, y_train)
        seconds = time.perf_counter() - start
        probability = model.predict_proba(X_test)
        accuracy = 100 * accuracy_score(y_test, probability.argmax(1))
        loss = log_loss(y_test, probability)
        results[name].append((accuracy, loss, np.max(model.n_iter_), seconds))

print("mean and standard error of ten splits (epochs and seconds of a fit: means)")
print(f"{'':31s}{'accuracy, %':>15s}{'log loss, nats':>19s}{'epochs':>9s}{'seconds':>9s}")
for name, values in results.items():
    mean = np.mean(values, axis=0)
    error = np.std(values, axis=0, ddof=1) / np.sqrt(len(splits))
    print(
        f"{name:31s}{mean[0]:8.2f} ± {error[0]:.2f}{mean[1]:11.4f} ± {error[1]:.4f}"
        f"{mean[2]:9.0f}{mean[3]:9.2f}"
    )

# %%
# Validation curves
# -----------------
#
# The same initial weights and the same fifth of the training data set aside, averaged over five
# seeds. The retain rates are given here, so that all methods have the same noise, and the learning
# rate falls to zero over 40 epochs. The curve of `"moments"`, the default, falls sooner than that
# of masks. `"diagonal"` leaves out what units have in common, so that it is a weaker regulariser
# at given rates, which suits these digits.

figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
X_train, _, y_train, _ = splits[0]
n_epochs = 40
for method, style in {"sampling": "C1-.", "moments": "C0-", "diagonal": "C4--"}.items():
    errors = []
    for seed in range(5):
        model = MarginalizedDropoutClassifier(
            method=method,
            retain_rate=[0.8, 0.5],
            early_stopping=True,
            validation_fraction=0.2,
            max_iter=n_epochs,
            random_state=seed,
        )
        model.fit(X_train, y_train)
        errors.append(100 * (1 - np.array(model.validation_scores_)))
    mean = np.mean(errors, axis=0)
    axis.plot(np.arange(1, n_epochs + 1), mean, style, label=method)
    print(f"{method}: validation error after {n_epochs} epochs {mean[-1]:.2f} %")
axis.set(
    xlabel="epoch",
    ylabel="validation error, %",
    yscale="log",
    title="sampled and marginalised dropout, 64-256-10 network",
)
axis.set_yticks([2, 3, 4, 6, 10], [2, 3, 4, 6, 10])
axis.minorticks_off()
axis.grid(alpha=0.3)
axis.legend()
figure.savefig("quickstart.png")
if plt.get_backend().lower() != "agg":  # there is a screen
    plt.show()
