"""Data, and the peers of the timing benchmarks: torch, skorch and scikit-learn as they come."""

from itertools import pairwise

import numpy as np
import torch
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_margdrop.estimators.labels import Labels
from sklearn_margdrop.estimators.nets import ClassifierNet
from sklearn_margdrop.families import Categorical
from sklearn_margdrop.noise import Dropout
from sklearn_margdrop.training.batches import Batches, Features, Rows

#: Of the input and of hidden layers.
RETAIN = (0.8, 0.5)
SGD = {"lr": 0.1, "momentum": 0.5}


def title(sizes, batch_size):
    """What a case of steps is called."""
    return f"{'-'.join(map(str, sizes))}, batches of {batch_size}, retain rate {RETAIN}"


def random_images(n_rows, n_features, n_classes):
    """Rows as sparse as MNIST's, and labels that have nothing to do with them."""
    rng = np.random.default_rng(0)
    X = rng.random((n_rows, n_features), dtype=np.float32)
    X *= rng.random(X.shape) < 0.2
    return X, rng.integers(n_classes, size=n_rows)


def perceptron(sizes, dropout):
    """A multilayer perceptron as the torch tutorials write it."""
    layers = []
    for k, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        if dropout:
            layers.append(nn.Dropout(1 - RETAIN[min(k, 1)]))
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def torch_step(model, optimizer, x, y):
    """One step of a loop as the torch tutorials write it."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def torch_fit(X, y, sizes, batch_size, epochs, device="cpu"):
    """A whole fit by such a loop, with nn.Dropout and Adam; the data lie on the device."""
    model = perceptron(sizes, dropout=True).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    X, y = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
    for _ in range(epochs):
        for index in torch.randperm(len(X), device=device).split(batch_size):
            torch_step(model, optimizer, X[index], y[index])
    return model


def skorch_net(sizes, batch_size, epochs, device="cpu", **settings):
    """A net of skorch as it comes, with nn.Dropout; it trains on all rows, as the others do."""
    return NeuralNetClassifier(
        perceptron(sizes, dropout=True),
        criterion=nn.CrossEntropyLoss,
        max_epochs=epochs,
        batch_size=batch_size,
        train_split=None,
        verbose=0,
        device=device,
        **settings,
    )


def endless(rows, batch_size):
    """Batches in a new order each epoch, without end."""
    batches = Batches(rows, batch_size, True, torch.Generator().manual_seed(0))
    while True:
        yield from batches


def rows_of(X, y, device="cpu"):
    return Rows(Features(X, device), torch.from_numpy(y).to(device))


def our_net(sizes, method, device="cpu", n_probes=None, sites=None):
    """The net of this package, ready to train on batches."""
    sites = range(len(sizes) - 1) if sites is None else sites
    net = ClassifierNet(
        target=Labels.of(np.arange(sizes[-1]), np.float32)[0],
        module__layer_sizes=sizes,
        module__noise={site: Dropout(RETAIN[min(site, 1)]) for site in sites},
        criterion__family=Categorical(),
        criterion__method=method,
        criterion__n_probes=n_probes,
        optimizer=torch.optim.SGD,
        optimizer__momentum=SGD["momentum"],
        optimizer__fused=torch.device(device).type in ("cpu", "cuda"),
        lr=SGD["lr"],
        train_split=None,
        verbose=0,
        device=str(device),
    ).initialize()
    net.notify("on_train_begin")
    return net
