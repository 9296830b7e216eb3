"""
How a network was trained
=========================

The objective is loss + penalty + L2. Its penalty rises while the network learns to tell the
classes apart, since what is uncertain is sensitive to noise, and falls where predictions become
confident. The validation score says when to stop.
"""

# %%
# A network on two thirds of the digits, of which early stopping sets a tenth aside.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_margdrop import MarginalizedDropoutClassifier
from sklearn_margdrop.inspection import TrainingCurveDisplay

plt.style.use("tableau-colorblind10")
X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    (X / 16).astype(np.float32), y, test_size=1 / 3, stratify=y, random_state=0
)
clf = MarginalizedDropoutClassifier(retain_rate=0.8, early_stopping=True, random_state=0)
clf.fit(X_train, y_train)
print(f"{clf.n_iter_} epochs, the best validation score {clf.best_validation_score_:.3f}")
print(f"accuracy on held-out rows {clf.score(X_test, y_test):.3f}")
peak = np.argmax(clf.penalty_curve_)
print(
    f"penalty {clf.penalty_curve_[0]:.3f} nats in the first epoch, "
    f"{clf.penalty_curve_[peak]:.3f} in epoch {peak + 1}, {clf.penalty_curve_[-1]:.3f} in the last"
)

# %%
# The estimator keeps all of it, so that the picture takes one line, and one for the scale.

display = TrainingCurveDisplay.from_estimator(clf)
display.ax_.set_yscale("log")
plt.show()
