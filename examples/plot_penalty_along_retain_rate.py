"""
How far the second order carries
================================

The penalties are the second order of what dropout adds to the loss on average. Here is a network
whose weights stay as they are while the retain rate falls, and what noise adds to its loss: on
average over masks (`"sampling"`), to second order (`"quadratic"`) and with the cross terms between
units dropped (`"diagonal"`). Beside it are networks that are trained at each retain rate.
"""

# %%
# A network is trained on two thirds of the digits. Its penalties are functions of
# its trace, and need nothing but its weights.

import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from sklearn_margdrop import MarginalizedDropoutClassifier
from sklearn_margdrop.families import Categorical
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Dropout
from sklearn_margdrop.penalties import diagonal, quadratic

plt.style.use("tableau-colorblind10")
X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    (X / 16).astype(np.float32), y, test_size=1 / 3, stratify=y, random_state=0
)
clf = MarginalizedDropoutClassifier(64, random_state=0)
clf.fit(X_train, y_train)


# %%
# The same weights with noise on the input and on the hidden layer: the mean over 200 masks of the
# rise of the loss, and both penalties.


def noisy(retain_rate):
    network = NoisyNetwork((64, 64, 10), noise={0: Dropout(retain_rate), 1: Dropout(retain_rate)})
    network.load_state_dict(clf.net_.module_.state_dict())
    return network


family, x, labels = Categorical(), torch.from_numpy(X_test), torch.from_numpy(y_test)
rates = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
values = {"sampling": [], "quadratic": [], "diagonal": []}
with torch.no_grad():
    for rate in rates:
        network, masks = noisy(rate), torch.Generator().manual_seed(0)
        trace = network.trace(x)
        clean = family.loss(trace.eta, labels).mean()
        drawn = [family.loss(network.sample(x, masks), labels).mean() for _ in range(200)]
        values["sampling"].append(float(sum(drawn) / len(drawn) - clean))
        values["quadratic"].append(float(quadratic(trace, family).mean()))
        values["diagonal"].append(float(diagonal(trace, family).mean()))

# %%
# Networks that are trained with each method at each retain rate, all else equal: 300 rows, 60
# epochs (not enough for some, hence the filter) and the mean of two initialisations. In training
# `"quadratic"` takes random tangents.

trained, trained_rates = {}, rates[:-2:2]
for method in values:
    scores = []
    for rate in trained_rates:
        for seed in range(2):
            model = MarginalizedDropoutClassifier(
                64, method=method, retain_rate=rate, max_iter=60, random_state=seed
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(X_train[:300], y_train[:300])
            scores.append(100 * (1 - model.score(X_test, y_test)))
    trained[method] = np.reshape(scores, (-1, 2)).mean(1)

# %%
# With the same weights all three grow like (1 - q) / q, but they do not meet, not even near 1:
# masks are rare there, but a unit that is dropped is gone altogether, and where a prediction is
# confident the curvature does not know of the logits that such a step reaches. `"diagonal"` in
# turn lacks what units that rise together add up to. So at the same rate the three are
# regularisers of different strength, and a rate that was tuned for ordinary dropout is not the
# best one here. Trained networks show it: the penalties bear stronger noise.

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
for (method, value), style in zip(values.items(), ("C1-.x", "C4--s", "C0-o"), strict=True):
    left.plot(rates, value, style, label=method)
    right.plot(trained_rates, trained[method], style, label=method)
left.set(xlabel="retain rate", ylabel="rise of the loss, nats", yscale="log")
right.set(xlabel="retain rate", ylabel="test error, %", yscale="log", title="trained at that rate")
right.set_yticks([5, 10, 20, 50], [5, 10, 20, 50])
right.minorticks_off()
left.set_title("the same weights")
left.legend()
plt.show()
