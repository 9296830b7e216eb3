"""Networks that are trained in an instant."""

import numpy as np

from sklearn_margdrop import MarginalizedDropoutClassifier

QUICK = {"hidden_layer_sizes": 8, "max_iter": 6, "random_state": 0}
LABELS = np.array(["a", "b", "c"])


def classifier(callbacks=None, **options):
    return MarginalizedDropoutClassifier(callbacks=callbacks, **(QUICK | options))
