"""What all estimators share: validate, build, fit, store."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_margdrop.distributed.collections import is_dask
from sklearn_margdrop.distributed.data_parallel import (
    check_accelerator,
    is_main_process,
    shared_seed,
)
from sklearn_margdrop.estimators.atomic import Atomic, Outcome
from sklearn_margdrop.estimators.discounts import SMALL_SHARE, first_discount
from sklearn_margdrop.estimators.ending import Ending
from sklearn_margdrop.estimators.html import Outline, with_network
from sklearn_margdrop.estimators.nets import TargetNet
from sklearn_margdrop.estimators.sklearn_private import (
    Interval,
    StrOptions,
    checks_parameters,
    has_callbacks,
    safe_indexing,
)
from sklearn_margdrop.estimators.targets import Target
from sklearn_margdrop.estimators.validation import (
    check_magnitudes,
    check_range,
    check_weights,
    features_of,
    fresh_random_state,
    subset,
    typed,
    unlike_labelled,
    validated,
)
from sklearn_margdrop.export.graph import Layers, write_onnx
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.numerics.ambient import neutral
from sklearn_margdrop.numerics.csr import MatrixLike
from sklearn_margdrop.numerics.devices import check_device
from sklearn_margdrop.training.batches import Features, Host, Rows
from sklearn_margdrop.training.callbacks import FitTasks
from sklearn_margdrop.training.checkpoints import Checkpoints
from sklearn_margdrop.training.engine import Engine
from sklearn_margdrop.training.fingerprint import describe, digest
from sklearn_margdrop.weighting import unlabeled_share

#: Parameters that may change before a fit goes on from its checkpoint.
_MAY_CHANGE = {"accelerator", "checkpoint", "max_iter", "random_state", "verbose", "warm_start"}

_FITS_NO_DASK = (
    "Only generalised linear models with solver='lbfgs' are fitted to Dask collections. Others "
    "learn from them by partial_fit, chunk by chunk: dask_ml.wrappers.Incremental(model).fit(X, "
    "y), with classes=... for a classifier. Data that fit into memory can be passed as "
    "X.compute()."
)
_PREDICTS_NO_DASK = (
    "X is a Dask collection, and predictions are made of arrays: use "
    "dask_ml.wrappers.ParallelPostFit(model), which has predict, predict_proba and score, or "
    "X.map_blocks(model.predict, drop_axis=1, dtype=float)."
)


@dataclass(kw_only=True)
class Call:
    """A call of `fit` or `partial_fit`: what its steps share.

    Parameters
    ----------
    known : Target or None
        That of the fit that it goes on from; None where it starts anew.
    incremental : bool, default=False
        Whether the rows are a chunk of a stream.
    classes : array-like, default=None
        Those that the user named.

    Attributes
    ----------
    total_weight : float
        How many rows the labelled ones stand for.
    device : torch.device
    dtype : type
        That of the features in training.
    random_state : RandomState
    target : Target
    checkpoints : Checkpoints or None
        They are locked as long as `locks` are not closed.
    task : sklearn.callback.CallbackContext or None
    watcher : FitTasks or None
        They show scikit-learn's callbacks the fit, and its epochs.
    """

    known: Any
    incremental: bool = False
    classes: ArrayLike | None = None
    total_weight: float = field(init=False)
    device: torch.device = field(init=False)
    dtype: Any = field(init=False)
    random_state: np.random.RandomState = field(init=False)
    target: Any = field(init=False)
    checkpoints: Checkpoints | None = field(init=False, default=None)
    task: Any = field(init=False, default=None)
    watcher: FitTasks | None = field(init=False, default=None)
    locks: ExitStack = field(init=False, default_factory=ExitStack)

    @property
    def continuing(self) -> bool:
        """Whether it goes on from an earlier fit."""
        return self.known is not None


class BaseMarginalizedEstimator(
    Atomic, Ending, CallbackSupportMixin, BaseEstimator, metaclass=ABCMeta
):
    """Base of all estimators.

    The kind of model builds and trains the net, and stores what it has learned. The target, of a
    class of its own, encodes ``y``, names the family and decodes predictions.
    """

    n_features_in_: int
    feature_names_in_: NDArray[np.object_]
    n_iter_: int
    loss_curve_: list[float]
    net_: TargetNet
    unlabeled_discount_: float | None
    max_iter: Any
    checkpoint: str | PathLike[str] | None
    # Parameters of some estimators alone:
    accelerator: Any = None
    class_weight: Any = None
    fit_intercept: bool = True
    n_restarts: int = 0
    pretrainer: Any = None
    method: str
    alpha: Any
    verbose: bool | int
    _target: Target
    _net: type[TargetNet]

    #: Whether sparse data stay sparse, and the share of unlabelled rows that is not chosen.
    _keeps_sparse, _unlabeled_share = False, SMALL_SHARE

    _parameter_constraints: dict[str, Any] = {
        "noise": "no_validation",  # validation.py knows what is registered
        "noise_std": [Interval(Real, 0, None, closed="left"), "array-like"],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "unlabeled_discount": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "checkpoint": [str, PathLike, None],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    @abstractmethod
    def _check_parameters(self) -> None:
        """Raise where parameters do not go together, before the data are looked at."""

    @abstractmethod
    def _encode(self, y: Any, call: Call) -> tuple[Any, np.ndarray]:
        """The target, and `y` as its family takes it."""

    @abstractmethod
    def _train(self, rows: Rows, valid: Rows | None, call: Call) -> TargetNet:
        """The trained net."""

    @abstractmethod
    def _attributes(self, net: TargetNet) -> dict[str, Any]:
        """The fitted attributes that predictions need."""

    @abstractmethod
    def _store(self, net: TargetNet, rows: Rows, incremental: bool) -> None:
        """Set the fitted attributes, other than the curves."""

    @abstractmethod
    def _fitted_network(self) -> NoisyNetwork:
        """The noisy network that predicts."""

    @abstractmethod
    def _fitted_layers(self) -> Layers:
        """Weights (fan_in, fan_out), intercepts and activation functions: three lists."""

    @abstractmethod
    def _outline(self) -> Outline:
        """The network, of the fit or by the parameters."""

    @abstractmethod
    def _dtype(self) -> type[np.floating]:
        """The dtype of the fitted parameters."""

    @abstractmethod
    def _linear_predictor(self, X: MatrixLike) -> Tensor:
        """That of the rows, in the units of the user, shape (n_samples, n_outputs)."""

    @checks_parameters(skip_nested=False)
    def fit(
        self,
        X: MatrixLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        X_unlabeled: MatrixLike | None = None,
    ) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training data. float32 data are fitted in float32, all others in float64. (Linear
            models fit float32 features in float64, too, that lie very far from zero.)
        y : {array-like, sparse matrix} of shape (n_samples,) or (n_samples, n_outputs)
            Target values. Only the network for labels takes a sparse matrix.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights. An integer weight is the same as that many copies of the
            row, except where held-out rows choose a parameter. Apart from how rows compare with
            unlabelled ones, and from parameters that are "auto", only their ratios matter.
        X_unlabeled : {array-like, sparse matrix} of shape (n_unlabeled, n_features), default=None
            Rows without a target that sharpen the penalty, see `unlabeled_discount`.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter or the data are invalid, or `X` is in units whose squares its dtype
            cannot hold, or `y` in units that it cannot, before any training starts; or if the
            objective becomes non-finite and there are no good weights to go back to.
        MemoryError, torch.OutOfMemoryError
            If the memory of the machine or of the GPU is not enough; they name the parameter
            to lower.
        TypeError
            If `X` is a Dask collection and the estimator does not take it, see :ref:`clusters`.
        """
        goes_on = self.warm_start and self.__sklearn_is_fitted__()
        call = Call(known=self._target if goes_on else None)
        return self._fit(call, X, y, sample_weight, X_unlabeled)

    def _partial_fit(
        self, X: Any, y: Any, sample_weight: Any, X_unlabeled: Any, classes: Any = None
    ) -> Self:
        if self.checkpoint is not None:
            raise ValueError(
                "partial_fit writes no checkpoint: set checkpoint=None, and pickle the estimator "
                "between two calls, which keeps all of it."
            )
        known = self._target if self.__sklearn_is_fitted__() else None
        call = Call(known=known, incremental=True, classes=classes)
        return self._fit(call, X, y, sample_weight, X_unlabeled)

    @typed(with_callbacks)
    @neutral()
    def _fit_anew(self, call: Call, *data: Any) -> Outcome:
        """Train a new net, which takes over from the last one if the call goes on from it."""
        if not call.incremental:
            most = self._most_epochs()
            call.task = self._init_callback_context(
                max_subtasks=None if most is None else most * (1 + self.n_restarts)
            )
        given = self.random_state
        call.device = check_device(check_accelerator(self.accelerator, self.device))
        call.random_state = fresh_random_state(shared_seed(self.accelerator, given))
        self._check_parameters()
        with call.locks:
            rows, valid = self._rows(call, *data)
            check_magnitudes(self.get_params(deep=False), rows.features.dtype)
            self._begin_task(call, valid, *data)
            net = self._train(rows, valid, call)
        if net.stop_reason_ == "diverged" and not net.has_learned_ and net.best_score_ is None:
            kept = " What was fitted before is kept." if self.__sklearn_is_fitted__() else ""
            message = self._diverged(net) + kept
            del rows, valid, net  # whoever keeps the error does not keep them
            raise ValueError(message)
        self.net_, self._target = net, net.target
        self._store(net, rows, call.incremental)
        net.engine_ = Engine()  # the processes of this fit are nothing to count on later
        changes = self._record(net, call.incremental)
        if isinstance(given, np.random.RandomState):
            changes.append(partial(given.set_state, call.random_state.get_state(legacy=False)))
        if call.watcher is not None:
            call.task.call_on_fit_task_end(
                estimator=self, reconstruction_attributes={}, **call.watcher.data
            )
        return Outcome(changes, self._ending_of(net, rows, call))

    def _begin_task(
        self, call: Call, valid: Rows | None, X: Any, y: Any, sample_weight: Any, X_unlabeled: Any
    ) -> None:
        """Tell scikit-learn's callbacks, if there are any, that the training begins."""
        if call.task is not None and has_callbacks(call.task):
            shown = _shown(X, y, sample_weight, valid)
            call.task.call_on_fit_task_begin(estimator=self, **shown)
            call.watcher = FitTasks(self, call.task, self._step, self._attributes, shown)

    def _ending_of(self, net: TargetNet, rows: Rows, call: Call) -> Warning | None:
        """Say how the fit ended; what the filters of warnings made an error of is returned."""
        try:
            if is_main_process(self.accelerator):
                self._warn(net, call.incremental, rows)
        except Warning as error:
            return error
        return None

    def _rows(
        self, call: Call, X: Any, y: Any, sample_weight: Any, X_unlabeled: Any
    ) -> tuple[Rows, Rows | None]:
        """The training rows and, with early stopping, the validation rows."""
        X, y, weight, X_unlabeled = self._validate(call, X, y, sample_weight, X_unlabeled)
        if self.checkpoint is not None:
            identity = self._identity(call, digest(X, y, weight, X_unlabeled))
            call.checkpoints = Checkpoints(self.checkpoint, identity, call.random_state)
            call.locks.enter_context(call.checkpoints)
        parts = self._split(np.flatnonzero(weight), y, call)
        own = weight[parts[0]]
        call.total_weight = float(own.sum())
        if call.target.family.standardised:
            call.target = call.target.with_units_of(
                y[parts[0]], own, bool(self.fit_intercept), call.known, call.incremental
            )
            y = call.target.standardise(y, call.dtype, weight)
        features = self._features(X, call)
        train, *valid = (subset(features, y, weight, part, call.incremental) for part in parts)
        n_unlabeled = 0 if X_unlabeled is None else X_unlabeled.shape[0]
        given, share = self.unlabeled_discount, self._unlabeled_share
        discount = first_discount(given, n_unlabeled, call.total_weight, share)
        self.unlabeled_discount_ = discount
        if X_unlabeled is not None and (discount or self.pretrainer is not None):
            train.unlabeled = self._features(X_unlabeled, call)
            train.unlabeled_share = unlabeled_share(discount or 0, n_unlabeled, own.sum())
            if call.incremental:
                train.unlabeled_weight = own.mean()
        return train, valid[0] if valid else None

    def _identity(self, call: Call, data: str) -> dict[str, str]:
        """What tells the fit from others, in words, given a digest of its data."""
        parameters = self.get_params(deep=False)
        identity = {name: describe(parameters[name]) for name in parameters.keys() - _MAY_CHANGE}
        identity |= {"class": describe(type(self)), "data": data, "device": call.device.type}
        if self.random_state is not None:
            identity["random_state"] = describe(call.random_state)
        if call.continuing:
            coefs, intercepts, _ = self._fitted_layers()
            net = getattr(self, "net_", None)  # a sparsified model has none
            generators = [] if net is None else [net.order_generator_, net.generator_]
            streams = [generator.get_state() for generator in generators]
            start = [coefs, intercepts, call.known.units, self.n_iter_, streams]
            identity["the start"] = describe(start)
        return identity

    def _validate(
        self, call: Call, X: Any, y: Any, sample_weight: ArrayLike | None, X_unlabeled: Any
    ) -> tuple[Host, np.ndarray, np.ndarray, Host | None]:
        """The data, the target encoded and the rows weighted; raises where they are invalid."""
        if is_dask(X, y, sample_weight, X_unlabeled):
            raise TypeError(_FITS_NO_DASK)
        dtype: Any = self._dtype() if call.continuing else [np.float64, np.float32]
        if call.device.type == "mps":
            dtype = np.float32
        X, y = validated(self, X, dtype, y, reset=not call.continuing, multi_output=True)
        if isinstance(dtype, list):
            dtype = np.float32 if X.dtype == np.float32 else np.float64
        call.dtype = dtype
        check_range(X, "X", dtype)
        weight = check_weights(sample_weight, X)
        call.target, y = self._encode(y, call)
        if call.continuing:
            call.target.check_continued(call.known, y, call.incremental)
        weight = weight * call.target.row_weights(y, weight, self.class_weight, call.incremental)
        if X_unlabeled is not None:
            try:
                X_unlabeled = validated(self, X_unlabeled, dtype, reset=False)
            except ValueError as error:
                raise unlike_labelled(error) from error
            check_range(X_unlabeled, "X_unlabeled", dtype, small=False)
            if self._keeps_sparse and sparse.issparse(X) != sparse.issparse(X_unlabeled):
                X, X_unlabeled = (sparse.csr_array(each, dtype=dtype) for each in (X, X_unlabeled))
        return X, y, weight, X_unlabeled

    def _most_epochs(self) -> int | None:
        """The most epochs of a fit; None where that depends on the data."""
        return int(self.max_iter)

    def _new_net(
        self, rows: Rows, call: Call, hidden: Sequence[int], seed: int, **parameters: Any
    ) -> TargetNet:
        """An untrained net: what both kinds of model set, and `parameters`."""
        target, dtype = call.target, rows.features.dtype
        options = {f"optimizer__{name}": getattr(self, name) for name in self._solver.options}
        settings = {
            "target": target,
            "module__layer_sizes": (rows.features.shape[1], *hidden, target.n_outputs),
            "module__dtype": torch.float32 if dtype == np.float32 else torch.float64,
            "criterion__family": target.family,
            "criterion__method": self.method,
            "optimizer": self._solver.optimizer,
            "predict_nonlinearity": target.family.mean,
            "device": str(rows.features.device),
            "seed": seed,
            "verbose": int(self.verbose) if is_main_process(self.accelerator) else 0,
        }
        net = self._net(**settings | options | parameters)
        net.initialize()
        return net

    def _split(self, index: np.ndarray, y: np.ndarray, call: Call) -> list[np.ndarray]:
        """The indices of the training rows, and of the validation rows if there are any."""
        return [index]

    def _features(self, X: Host, call: Call) -> Features:
        return features_of(X, call.device, call.dtype, self._keeps_sparse)

    def _check_rows(self, X: MatrixLike) -> Any:
        """`X` as the fitted model takes it; CSR where it is sparse (or CSC, if it stays so).

        What is mapped into memory has the dtype and the order that it has on disk.
        """
        check_is_fitted(self)
        if is_dask(X):
            raise TypeError(_PREDICTS_NO_DASK)
        kinds = ["csr", "csc"] if self._keeps_sparse else "csr"
        return validated(self, X, self._dtype(), kinds=kinds, reset=False)

    def to_onnx(self, path: str | PathLike[str]) -> None:
        """Write the fitted model to an ONNX file.

        Its input ``"X"`` has the shape (n, n_features) and the dtype of the fitted parameters:
        float32 for models that were fitted to float32 data, else float64. The outputs of a
        classifier are ``"label"`` (n,), of strings or int64 (also for booleans and floats), and
        ``"probabilities"`` (n, n_classes); where it was fitted to an indicator matrix, the label
        is one as well, (n, n_classes) of int64. The output of a regressor is ``"variable"``, (n,)
        or (n, n_outputs) as `predict` returns it.

        Parameters
        ----------
        path : str or path-like
            The file. One that exists is replaced once the new one is complete.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ImportError
            If `onnx` is not installed: ``pip install "sklearn-margdrop[onnx]"``.
        NotImplementedError
            If ONNX has no operator for an activation function or family that was registered.
        TypeError
            If ONNX has no type for the labels.
        OSError
            If the file cannot be written.
        """
        check_is_fitted(self)
        write_onnx(self, path)

    def _get_params_html(self, deep: bool = True, doc_link: str = "") -> Any:
        # scikit-learn shows this in diagrams of the estimator and of what it is a part of.
        return with_network(super()._get_params_html(deep, doc_link), self)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_target")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _shown(X: Any, y: Any, sample_weight: Any, valid: Rows | None) -> dict[str, Any]:
    """What scikit-learn's callbacks are given: the validation rows where there are any."""
    weights = {} if sample_weight is None else {"sample_weight": sample_weight}
    if valid is not None:
        assert valid.index is not None  # they are a part of the rows
        index = valid.index.cpu().numpy()
        X, y = safe_indexing(X, index), safe_indexing(y, index)
        weights = {name: safe_indexing(weight, index) for name, weight in weights.items()}
    return {"X": X, "y": y, "metadata": weights}
