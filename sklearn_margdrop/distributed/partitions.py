"""Rows in partitions on other machines, to which each evaluation sends the coefficients.

The loss, the penalty and the gradient of a partition are computed where its rows are. Only their
sums, a vector of the size of the coefficients, are returned.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.numerics.ambient import neutral
from sklearn_margdrop.numerics.sparse import column_sums, first_row, products_about
from sklearn_margdrop.objective import Objective, Terms
from sklearn_margdrop.training.batches import Features, Rows
from sklearn_margdrop.training.engine import Engine, every
from sklearn_margdrop.training.prediction import PredictingNet
from sklearn_margdrop.weighting import WeightedRows

#: How many results one task adds up.
_FAN_IN = 8


class Bundle:
    """Partitions that one thread evaluates, one after the other.

    Parameters
    ----------
    parts : list of tuple of (Features, Tensor, Tensor, Tensor)
        The features of each partition, the targets of its labelled rows, and the weights of its
        rows in the loss and in the penalty, over the sums of all partitions. The rows of a
        partition are either all labelled or all unlabelled, which have no targets.
    """

    def __init__(self, parts: list[tuple[Features, Tensor, Tensor, Tensor]]) -> None:
        self.parts = parts
        self._models: dict[bytes, tuple[NoisyNetwork, Objective]] = {}
        self.lock = Lock()  # a call that was interrupted may still be running

    def __sizeof__(self) -> int:
        return sum(8 * features.n_stored for features, *_ in self.parts)

    def __reduce__(self) -> tuple[type[Bundle], tuple[Any, ...]]:
        return Bundle, (self.parts,)

    @cached_property
    def rows(self) -> list[WeightedRows]:
        """The rows as the objective takes them."""
        return [WeightedRows(x.take(slice(0, len(x))), *others) for x, *others in self.parts]

    def _model(self, spec: bytes, vector: np.ndarray) -> tuple[NoisyNetwork, Objective]:
        # Models are kept, since sparse rows cache results for the noise of one network.
        if spec not in self._models:
            options, family, method = unpack(spec)
            device = self.parts[0][0].device if self.parts else "cpu"
            network, objective = NoisyNetwork(**options), Objective(family, method)
            self._models[spec] = network.to(device), objective.to(device)
        network, objective = self._models[spec]
        start = 0
        with torch.no_grad():
            for p in network.parameters():
                p.copy_(torch.from_numpy(vector[start : start + p.numel()].reshape(p.shape)))
                start += p.numel()
                p.grad = torch.zeros_like(p)
        return network, objective

    def evaluate(self, spec: bytes, vector: np.ndarray) -> np.ndarray:
        """Loss, penalty and gradient, summed."""
        network, objective = self._model(spec, vector)
        with torch.enable_grad():
            terms = [objective.backward(network, rows) for rows in self.rows]
        start = torch.from_numpy(vector).new_zeros(2)
        sums = sum((torch.stack([t.loss, t.penalty]).cpu() for t in terms), start)
        grads = [p.grad.reshape(-1).cpu() for p in network.parameters() if p.grad is not None]
        return torch.cat([sums, *grads]).numpy()

    def curvature(self, spec: bytes, vector: np.ndarray, options: bytes) -> np.ndarray:
        """The sum of :meth:`Objective.mean_curvature`."""
        network, objective = self._model(spec, vector)
        parts = (objective.mean_curvature(network, r, **unpack(options)) for r in self.rows)
        flat = (torch.cat([each.reshape(-1).cpu() for each in part]) for part in parts)
        return sum(flat, torch.zeros_like(torch.from_numpy(vector))).numpy()

    def origin(self) -> np.ndarray | None:
        """The first of the labelled rows, if there are any."""
        labelled = (r.x for r in self.rows if len(r.y))
        return next((first_row(x).cpu().numpy() for x in labelled), None)

    def column_sums(self, origin: np.ndarray) -> np.ndarray:
        """The :func:`~sklearn_margdrop.numerics.sparse.column_sums` of the labelled rows."""
        total = np.zeros((4, len(origin)))
        for r in self.rows:
            if len(r.y):
                about = torch.from_numpy(origin).to(r.loss_weight.device)
                total += column_sums(r.x, about, r.loss_weight).cpu().numpy()
        return total

    def covariance(self, step: int, centre: np.ndarray | None) -> np.ndarray:
        """The :func:`~sklearn_margdrop.numerics.sparse.products_about` of the labelled rows."""
        total = np.zeros((self.rows[0].x.shape[1],) * 2)
        about = None if centre is None else torch.from_numpy(centre)
        for features, y, weight, _ in self.parts:
            for part in every(step, len(y), features.shape[1]) if len(y) else ():
                centred = products_about(
                    features.take(part),
                    None if about is None else about.to(weight.device),
                    weight[part],
                )
                total += centred.cpu().numpy()
        return total

    def total(self, function: bytes) -> np.ndarray:
        """Sums of a function of the labelled rows' targets and weights."""
        call = unpack(function)
        parts = [call(r.y, r.loss_weight).cpu().numpy() for r in self.rows if len(r.y)]
        return np.asarray(sum(parts))


def pack(value: Any) -> bytes:
    """Bytes that any worker can unpack, also for classes that a script defines."""
    packed: bytes = importlib.import_module("cloudpickle").dumps(value)  # Dask needs it, too
    return packed


unpack = pickle.loads


def add(*results: np.ndarray) -> np.ndarray:
    """The sum of vectors."""
    return np.asarray(sum(results[1:], results[0]))


def call(bundle: Bundle, method: str, arguments: tuple[Any, ...]) -> Any:
    """Call a method of a bundle."""
    with bundle.lock, neutral():
        return getattr(bundle, method)(*arguments)


class Bundles(NamedTuple):
    """Bundles in this process or, with a client, as futures of a Dask cluster."""

    bundles: list[Any]
    client: Any = None

    def first(self, method: str) -> np.ndarray:
        """The first result of a method of the bundles that is not None."""
        client = self.client
        found = (
            call(each, method, ())
            if client is None
            else client.submit(call, each, method, (), pure=False).result()
            for each in self.bundles
        )
        return np.asarray(next(each for each in found if each is not None))

    def sum(self, method: str, *arguments: Any) -> np.ndarray:
        """The sum of the results of a method of the bundles."""
        if self.client is None:
            return add(*(call(each, method, arguments) for each in self.bundles))
        parts = self.client.map(call, self.bundles, method=method, arguments=arguments, pure=False)
        while len(parts) > 1:
            groups = [parts[k : k + _FAN_IN] for k in range(0, len(parts), _FAN_IN)]
            parts = [self.client.submit(add, *group, pure=False) for group in groups]
        try:
            return np.array(parts[0].result())
        except CancelledError as error:
            raise RuntimeError(
                "Rows were lost with a worker, and the cluster cannot compute them again. Make "
                "the collection from files or functions, not from client.scatter or futures."
            ) from error


class Partitions(Engine):
    """Evaluates the objective of a generalised linear model where its rows are."""

    def __init__(self, bundles: Bundles) -> None:
        self.bundles = bundles

    def differentiate(self, net: PredictingNet, rows: WeightedRows) -> Terms:
        objective, network = net.criterion_, net.module_
        result = torch.from_numpy(self.bundles.sum("evaluate", *_message(objective, network)))
        start = 2
        for p in network.parameters():
            grad = result[start : start + p.numel()].view_as(p).to(p.device)
            p.grad = grad.clone() if p.grad is None else p.grad.add_(grad)
            start += p.numel()
        return objective.with_l2(network, result[0], result[1])

    def covariance(self, rows: Rows, step: int, centre: Tensor | None) -> Tensor:
        about = None if centre is None else centre.cpu().numpy()
        return torch.from_numpy(self.bundles.sum("covariance", step, about))

    def mean_curvature(
        self, net: PredictingNet, rows: WeightedRows, **options: Any
    ) -> list[Tensor]:
        message = _message(net.criterion_, net.module_)
        flat = self.bundles.sum("curvature", *message, pack(options))
        parameters = list(net.module_.parameters())
        parts = torch.from_numpy(flat).split([p.numel() for p in parameters])
        return [part.view_as(p).to(p.device) for part, p in zip(parts, parameters, strict=True)]


class Shape(NamedTuple):
    """What is known of features on other machines."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    device: torch.device
    n_stored: int
    is_sparse: bool = False


class PartitionedRows(Rows):
    """Rows in partitions; `y` holds a few of the targets, which cover all classes or the range."""

    def __init__(self, bundles: Bundles, features: Shape, y: Tensor) -> None:
        super().__init__(features, y)  # type: ignore[arg-type]  # known, not held
        self.bundles = bundles

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def whole(self) -> WeightedRows:
        """A placeholder with those targets: only :class:`Partitions` evaluates the rows."""
        x, nothing = cast("Any", None), self.y.new_zeros(0)
        return WeightedRows(x, self.y, nothing, nothing)

    def _origin(self) -> Tensor:
        return torch.from_numpy(self.bundles.first("origin"))

    def _sums_about(self, origin: Tensor) -> Tensor:
        return torch.from_numpy(self.bundles.sum("column_sums", origin.numpy()))

    def total(self, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return torch.from_numpy(self.bundles.sum("total", pack(function)))


def _message(objective: Objective, network: NoisyNetwork) -> tuple[bytes, np.ndarray]:
    (linear,) = network.linears
    options = {
        "layer_sizes": (linear.in_features, linear.out_features),
        "noise": dict(network.noise),
        "seed": None,
        "dtype": linear.weight.dtype,
        "fit_intercept": linear.bias is not None,
    }
    spec = pack((options, objective.family, objective.method))
    flat = torch.cat([p.detach().reshape(-1) for p in network.parameters()])
    return spec, flat.cpu().numpy()
