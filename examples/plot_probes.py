"""
Many classes: the price and the noise of random tangents
========================================================

The exact ``method="quadratic"`` pulls a row for each class back through the network. With
`n_probes` it pushes that many random tangents forward instead: far cheaper, unbiased, and noisy.
"""

# sphinx_gallery_parallel = False
# %%
# A network with 100 classes and random weights, and a batch of 100 rows. The penalty and its
# gradient are computed exactly, and 30 times for each number of tangents.

import time

import matplotlib.pyplot as plt
import numpy as np
import torch

from sklearn_margdrop.families import Categorical
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Dropout
from sklearn_margdrop.penalties import quadratic, quadratic_by_tangents

plt.style.use("tableau-colorblind10")
n_rows, n_classes = 100, 100
generator = torch.Generator().manual_seed(0)
network = NoisyNetwork((100, 256, 256, n_classes), noise={i: Dropout(0.5) for i in range(3)})
with torch.no_grad():
    for parameter in network.parameters():
        if parameter.dim() == 2:
            parameter.normal_(0, (2 / parameter.shape[1]) ** 0.5, generator=generator)
X = torch.randn(n_rows, 100, generator=generator)


def measure(n_probes):
    """The penalty of the batch, its gradient and the milliseconds that both took."""
    start = time.perf_counter()
    if n_probes is None:
        value = quadratic(network.trace(X), Categorical()).mean()
    else:
        _, R = quadratic_by_tangents(network, Categorical(), X, n_probes, generator)
        value = R.mean()
    weights = [p for p in network.parameters() if p.dim() == 2]
    gradient = torch.cat([g.ravel() for g in torch.autograd.grad(value, weights)])
    return value.item(), gradient, 1e3 * (time.perf_counter() - start)


measure(None), measure(1)  # the first calls are slower
value, gradient, _ = measure(None)
exact_ms = np.median([measure(None)[2] for _ in range(3)])
n_probes = [1, 2, 4, 8, 16, 32]
rows = []
for n in n_probes:
    values, gradients, ms = zip(*(measure(n) for _ in range(30)), strict=True)
    off = torch.stack(gradients) - gradient
    rows.append(
        (
            np.median(ms),
            100 * np.std(values) / value,
            100 * float(off.norm(dim=1).mean() / gradient.norm()),
            100 * float(off.mean(0).norm() / gradient.norm()),
        )
    )
ms, value_error, gradient_error, bias = np.array(rows).T

# %%
# The mean of the 30 gradients is nearer to the exact one than each of them, by about the root of
# 30: there is no bias in them. The noise falls with the root of the number of tangents. Training
# averages over many steps, each with signs of its own, so that one is the default.

print(f"exact: {exact_ms:.0f} ms")
for n, *row in zip(n_probes, ms, value_error, gradient_error, bias, strict=True):
    print(
        "n_probes={:2d}: {:4.0f} ms   value off by {:4.1f} %   gradient by {:5.1f} %, "
        "mean of 30 by {:4.1f} %".format(n, *row)
    )

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
left.plot(n_probes, ms, "C0-o", label="tangents")
left.axhline(exact_ms, color="k", linestyle="--", label="exact")
left.set(xscale="log", ylabel="penalty and gradient, ms", ylim=(0, None), title="price")
right.plot(n_probes, gradient_error, "C0-o", label="gradient")
right.plot(n_probes, bias, "C4--s", label="mean of 30 gradients")
right.plot(n_probes, value_error, "C1-.x", label="value")
right.set(xscale="log", yscale="log", ylabel="distance from the exact, %", title="noise")
for axis in (left, right):
    axis.set_xlabel("number of tangents (n_probes)")
    axis.set_xticks(n_probes, n_probes)
    axis.xaxis.minorticks_off()
    axis.legend(fontsize="small")
right.set_ylim(None, 1000)
plt.show()
