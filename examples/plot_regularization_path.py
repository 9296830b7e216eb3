"""
Coefficients and scores along the retain rate
=============================================

A retain rate of 1 is no dropout at all; the lower it is, the stronger the penalty. On the left are
the coefficients that become largest, on the right the log loss of cross-validation, whose best
rate lies between the ends.
"""

# %%
# A logistic regression on 30 measurements of tumours, many of which go together. At a rate of 0.99
# coefficients of up to 7 hold each other in check; at 0.7, where held-out rows are predicted best,
# none is above 2.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_margdrop import MarginalizedDropoutGLMClassifier
from sklearn_margdrop.inspection import RegularizationPathDisplay

plt.style.use("tableau-colorblind10")
data = load_breast_cancer(as_frame=True)
clf = make_pipeline(StandardScaler(), MarginalizedDropoutGLMClassifier(alpha=1e-6, max_iter=2000))
rates = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
RegularizationPathDisplay.from_estimator(
    clf, data.data, data.target, retain_rates=rates, max_features=6, ax=left
)
left.legend(fontsize=6)
display = RegularizationPathDisplay.from_estimator(
    clf,
    data.data,
    data.target,
    kind="score",
    retain_rates=rates,
    scoring="neg_log_loss",
    cv=5,
    ax=right,
)
for rate, score in zip(rates, display.test_scores.mean(1), strict=True):
    print(f"retain rate {rate:4.2f}: log loss of held-out rows {-score:.4f}")
plt.show()
