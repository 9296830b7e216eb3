"""
Which rows a model is sensitive to
==================================

The penalty of a row needs no label: it is what noise on the network would add to the loss, on
average. Held-out digits with a large penalty are those that are hard to read, and hold most of the
errors.
"""

# %%
# A network on two thirds of the digits; the rest is held out.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from sklearn_margdrop import MarginalizedDropoutClassifier
from sklearn_margdrop.inspection import effective_penalty, penalty_per_sample

X, y = load_digits(return_X_y=True)
for seed in range(5):
    X_train, X_test, y_train, y_test = train_test_split(
        (X / 16).astype(np.float32), y, test_size=1 / 3, stratify=y, random_state=seed
    )
    clf = MarginalizedDropoutClassifier(random_state=seed).fit(X_train, y_train)
    R = penalty_per_sample(clf, X_test)
    wrong = clf.predict(X_test) != y_test
    largest = np.argsort(-R)[: len(R) // 10]
    print(
        f"split {seed}: {wrong[largest].sum()} of {wrong.sum()} errors are in the tenth of rows "
        f"with the largest penalty (area under the ROC curve {roc_auc_score(wrong, R):.3f})"
    )

# %%
# The digits of the last split with the largest and the smallest penalties, in nats, with what the
# network takes them for; and the part of the mean penalty that noise on each pixel brings. The
# pixels in the middle, which tell digits apart, are those that the model is sensitive to.

order = np.argsort(R)
shown = {"least": order[:5], "most": order[::-1][:5]}
figure = plt.figure(figsize=(7, 3.2), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[3, 2])
axes = left.subplots(2, 5)
for row, (name, rows) in zip(axes, shown.items(), strict=True):
    row[0].set_ylabel(f"{name} sensitive")
    for axis, k in zip(row, rows, strict=True):
        axis.imshow(X_test[k].reshape(8, 8), cmap="gray_r")
        axis.set_title(f"{clf.predict(X_test[[k]])[0]}: {R[k]:.2g}", fontsize=8)
        axis.set(xticks=[], yticks=[])
left.suptitle("predicted digit: penalty in nats", fontsize=9)
axis = right.subplots()
pixels = effective_penalty(clf, X_test)[0]
image = axis.imshow(1e3 * pixels.reshape(8, 8), cmap="cividis")
axis.set(xticks=[], yticks=[])
axis.set_title("by noisy pixel", fontsize=9)
right.colorbar(image, ax=axis, label="penalty (1/1000 nats)", shrink=0.8)
plt.show()
