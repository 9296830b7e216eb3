"""
Two diagonals of one stream: dropout-Fisher and AdaGrad
=======================================================

Both online solvers divide the gradient by a diagonal that they accumulate. ``solver="fisher"``
adds up the Fisher information of the rows, A'' x^2, which is also what scales the dropout penalty;
``solver="adagrad"`` adds up squared gradients and divides by the root. Where the model is right
about its own uncertainty, the expectation of a squared gradient *is* the Fisher information, so on
a stream that it has learned the two diagonals meet.
"""

# %%
# A stream of sparse rows, some features being far more frequent than others, learned by
# `partial_fit` in chunks. Batches hold one row, so that each squared gradient is that of a row.

import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse

from sklearn_margdrop import MarginalizedDropoutGLMClassifier

plt.style.use("tableau-colorblind10")

n_rows, n_features, chunk = 4000, 60, 250
rng = np.random.RandomState(0)
frequency = np.logspace(-0.3, -2, n_features)
X = sparse.csr_array((rng.uniform(size=(n_rows, n_features)) < frequency).astype(float))
true_coef = rng.normal(size=n_features)
probability = 1 / (1 + np.exp(-(X @ true_coef)))
y = (rng.uniform(size=n_rows) < probability).astype(int)

models = {
    solver: MarginalizedDropoutGLMClassifier(
        solver=solver, retain_rate=1.0, alpha=0.0, batch_size=1, random_state=0
    )
    for solver in ("fisher", "adagrad")
}
seen, distance = [], []
for start in range(0, n_rows, chunk):
    rows = slice(start, start + chunk)
    for model in models.values():
        model.partial_fit(X[rows], y[rows], classes=[0, 1])
    seen.append(start + chunk)
    state = models["adagrad"].net_.optimizer_.state
    squares = next(iter(state.values()))["sum"].numpy()[0] / seen[-1]
    fisher = models["fisher"].fisher_diagonal_[0]
    occurred = (squares > 0) & (fisher > 0)
    distance.append(np.median(np.abs(np.log(squares[occurred] / fisher[occurred]))))

# %%
# On the left the two diagonals at the end, feature by feature; on the right the typical distance
# between them along the stream. Both lie above the true information, as they also hold
# the rows from before the model had learned, when it was less certain.

exact = (X.power(2).T @ (probability * (1 - probability))) / n_rows
print(f"median ratio of the two diagonals after {n_rows} rows: {np.median(squares / fisher):.3f}")
print(
    f"median ratio of either to the true information: {np.median(fisher / exact):.3f} (Fisher), "
    f"{np.median(squares / exact):.3f} (AdaGrad)"
)

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
left.loglog(exact, fisher, "o", markersize=4, label="Fisher: mean of A'' x²")
left.loglog(exact, squares, "x", markersize=5, label="AdaGrad: mean of g²")
left.plot(exact, exact, "k", linewidth=0.8, label="the two equal")
left.set(xlabel="true Fisher information", ylabel="accumulated diagonal", title="at the end")
left.legend(fontsize="small")
right.plot(seen, 100 * np.expm1(distance), "-o", markersize=4)
right.set(
    xlabel="rows seen",
    ylabel="median difference of a feature, %",
    title="along the stream",
    ylim=(0, None),
)
plt.show()
