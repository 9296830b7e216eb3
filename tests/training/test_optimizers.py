"""The Fisher update, by hand."""

import torch
from oracles import randn

from sklearn_margdrop.training.optimizers import Fisher


def test_fisher_update():
    """P - lr * g / D by hand, with D the sum over the batches."""
    p = torch.nn.Parameter(randn(4))
    q = torch.nn.Parameter(randn(4))
    with torch.no_grad():
        q.copy_(p)
    optimizer = Fisher([p], lr=0.3)
    total = torch.zeros(4, dtype=torch.float64)
    for n_rows, seed in ((5, 1), (2, 2)):
        gradient, curvature = randn(4, seed=seed), randn(4, seed=seed + 10).square()
        curvature[3] = gradient[3] = 0
        optimizer.accumulate([curvature], n_rows)
        p.grad = gradient.clone()
        optimizer.step()
        total += n_rows * curvature
        with torch.no_grad():
            q[:3] -= 0.3 * n_rows * gradient[:3] / total[:3]
    torch.testing.assert_close(p, q)
