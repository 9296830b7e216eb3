"""
Every fit of a search, epoch by epoch
=====================================

scikit-learn's callbacks see into the fits of a search. `ScoringMonitor` records the score after
each epoch, here of the rows that `early_stopping` sets aside.
"""

# %%
# The callback is set on the network, and the search clones it along. Its records become a data
# frame with a row for each epoch. `parent_task_id_path` says which fit that belongs to, and ends
# with the number of the fit within the search.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.callback import ScoringMonitor
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from sklearn_margdrop import MarginalizedDropoutClassifier

plt.style.use("tableau-colorblind10")
X, y = load_digits(return_X_y=True)
X, y = (X[:900] / 16).astype(np.float32), y[:900]
monitor = ScoringMonitor(scoring="accuracy")
network = MarginalizedDropoutClassifier(
    64, learning_rate="constant", early_stopping=True, validation_fraction=0.3, random_state=0
).set_callbacks(monitor)
search = GridSearchCV(network, {"learning_rate_init": [0.0005, 0.004, 0.03]}, cv=3).fit(X, y)

log = monitor.get_logs().data_as_pandas
epochs = log[(log.task_name == "epoch") & (log.task_id_path.str.len() == 4)]
print(epochs[["task_id_path", "parent_task_id_path", "accuracy"]].head(3).to_string(index=False))

# %%
# Nine fits at constant rates: three settings, three folds each. The small rate takes many epochs;
# all fits end by themselves, where the score has long stopped to rise.

figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
rates, n_folds = search.param_grid["learning_rate_init"], search.n_splits_
styles = ["C1-.", "C0-", "C4--"]
for path, fit in epochs.groupby("parent_task_id_path"):
    setting, fold = divmod(path[-1], n_folds)
    axis.plot(
        fit.task_id + 1,
        100 * fit.accuracy,
        styles[setting],
        linewidth=1.2,
        label=None if fold else rates[setting],
    )
axis.set(xlabel="epoch", ylabel="accuracy of the rows set aside, %", ylim=(50, 100))
axis.grid(alpha=0.3)
axis.legend(title="learning_rate_init", loc="lower right")
for rate, score in zip(rates, search.cv_results_["mean_test_score"], strict=True):
    print(f"rate {rate:6.4f}: accuracy in cross-validation {100 * score:.1f} %")
plt.show()
