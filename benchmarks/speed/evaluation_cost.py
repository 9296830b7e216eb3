"""The cost of one evaluation of a linear model's objective and gradient.

Run ``python -m benchmarks.speed.evaluation_cost`` (a minute or two). The peer is what
LogisticRegression evaluates for L-BFGS: the cross-entropy, its gradient and the L2 penalty, at the
same coefficients, those of a LogisticRegression after 12 iterations.
"""

import warnings

import numpy as np
import torch
from scipy import sparse
from sklearn._loss.loss import HalfBinomialLoss, HalfMultinomialLoss
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model._linear_loss import LinearModelLoss

from benchmarks.harness import Results, parser, take_turns
from sklearn_margdrop.families import Bernoulli, Categorical
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Dropout
from sklearn_margdrop.numerics.sparse import SparseMatrix
from sklearn_margdrop.objective import Objective
from sklearn_margdrop.weighting import WeightedRows

#: Rows, columns, classes and, of sparse rows, the part that is one.
SHAPES = [
    (2000, 768, 100, None),
    (5000, 768, 20, None),
    (20_000, 100, 10, None),
    (20_000, 300, 2, None),
    (100_000, 30, 2, None),
    (20_000, 5000, 2, 0.02),
    (20_000, 5000, 3, 0.02),
    (20_000, 5000, 20, 0.02),
]
PEER = "cross-entropy"


def make_data(n_rows, n_features, n_classes, density):
    rng = np.random.RandomState(0)
    if density is None:
        X, scale = rng.standard_normal((n_rows, n_features)), 2 / n_features**0.5
    else:
        X = sparse.random_array((n_rows, n_features), density=density, format="csr", rng=rng)
        X.data[:], scale = 1.0, 2 / (density * n_features) ** 0.5
        X.indices, X.indptr = X.indices.astype(np.int32), X.indptr.astype(np.int32)
    logits = X @ (scale * rng.standard_normal((n_features, n_classes)))
    return X, (logits + rng.gumbel(size=logits.shape)).argmax(1)


def evaluations(X, y, n_classes):
    """A function for each peer."""
    with warnings.catch_warnings(action="ignore"):
        start = LogisticRegression(C=0.1, max_iter=12).fit(X, y)
    calls = {}
    for method in ("quadratic", "moments"):
        network = NoisyNetwork(
            [X.shape[1], len(start.coef_)], noise={0: Dropout(0.5)}, dtype=torch.float64
        )
        (linear,) = network.linears
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(start.coef_))
            linear.bias.copy_(torch.from_numpy(start.intercept_))
        target = torch.from_numpy(y)
        if n_classes == 2:
            target = target.double().unsqueeze(1)
        x = SparseMatrix([X]) if sparse.issparse(X) else torch.from_numpy(X)
        family = Bernoulli() if n_classes == 2 else Categorical()
        objective, rows = Objective(family, method, alpha=1e-4), WeightedRows.of(x, target)

        def evaluate(network=network, objective=objective, rows=rows):
            network.zero_grad(set_to_none=False)
            objective.backward(network, rows)

        calls[method] = evaluate
    loss = HalfBinomialLoss() if n_classes == 2 else HalfMultinomialLoss(n_classes=n_classes)
    model = LinearModelLoss(loss, fit_intercept=True)
    coef = np.asfortranarray(np.c_[start.coef_, start.intercept_])
    coef, y = coef[0] if n_classes == 2 else coef, y.astype(float)
    n_threads = torch.get_num_threads()
    return calls | {PEER: lambda: model.loss_gradient(coef, X, y, None, 1e-4, n_threads)}


def main():
    options = parser(__doc__, "turns", "json", "check", turns=5).parse_args()
    results = Results(options)
    for n_rows, n_features, n_classes, density in SHAPES:
        X, y = make_data(n_rows, n_features, n_classes, density)
        kind = "dense" if density is None else f"sparse, {density:.0%} ones"
        case = f"{n_rows:,} x {n_features:,} {kind}, {n_classes} classes"
        seconds = take_turns(evaluations(X, y, n_classes), options.turns, per_turn=3)
        results.add(case, seconds, [PEER])
    results.finish()


if __name__ == "__main__":
    main()
