"""Training: the skorch net whose loss is the marginalized objective."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, Self

import torch
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, EpochTimer
from skorch.helper import predefined_split
from skorch.history import History
from skorch.utils import TeeGenerator
from torch import Tensor
from torch.utils.data import Subset

from sklearn_margdrop.methods import METHODS
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.objective import Objective, Terms
from sklearn_margdrop.training.batches import Batches, Rows
from sklearn_margdrop.training.callbacks import EpochLog, sees_batches
from sklearn_margdrop.training.checkpoints import TrainingCheckpoint
from sklearn_margdrop.training.engine import Engine
from sklearn_margdrop.training.optimizers import DEFAULTS
from sklearn_margdrop.training.prediction import PredictingNet
from sklearn_margdrop.training.recording import Record
from sklearn_margdrop.training.schedules import LearningRates
from sklearn_margdrop.training.stability import (
    EpochMeans,
    ExplosionGuard,
    StopTraining,
    drop_next_to_nothing,
)
from sklearn_margdrop.training.state import (
    load_learned_state,
    net_state,
    restore_net,
    transferable_state,
)
from sklearn_margdrop.weighting import WeightedRows


class MarginalizedNet(PredictingNet):
    """A skorch net that trains a :class:`NoisyNetwork` on an :class:`Objective`.

    An epoch is recorded in ``history`` as ``train_loss`` (the objective), ``penalty`` and, with
    a validation set, ``valid_loss`` (without noise) and ``valid_score``. Losses are those of the
    encoded target. The device is read once an epoch, not once a batch, so ``batches`` has one
    entry per epoch.

    Parameters
    ----------
    module, criterion : type
        Those of skorch, whose parameters are ``module__layer_sizes`` and so on.
    seed : int, default=0
        Seed of the noise, the random signs and the order of the rows.
    shuffle : bool, default=True
        Whether to visit the rows in a new order each epoch.
    loss_unit : float, default=None
        The unit of the loss, in nats. If the objective of an epoch is above that of the initial
        weights and more than a unit above twice the lowest so far, the epoch is repeated from the
        best weights so far at half the learning rate. None, as for streams, lets the objective
        rise until it is not finite.
    **kwargs
        The parameters of :class:`skorch.NeuralNet`.

    Attributes
    ----------
    stop_reason_ : {"max_iter", "converged", "stalled", "stopped", "interrupted", "diverged"}
        Why the last call of ``fit`` or ``partial_fit`` ended: the epochs were used up; the
        tolerance ``tol`` was reached; the training no longer got nearer to it; or a callback,
        ``KeyboardInterrupt`` or a number that is not finite ended it.
    best_score_ : float or None
        The best validation score of that call, whose weights were restored at its end.
    has_learned_ : bool
        Whether that call, where it "diverged", keeps better weights than it began with.
    final_objective_ : float or None
        The objective of the weights at its end, if it was evaluated.
    n_explosions_ : int
        How often that call returned to the best weights.
    rate_factor_ : float
        The factor by which the explosions of all calls have reduced the learning rate.
    n_forgotten_ : int
        Epochs before those in ``history``, which holds the last 1,000 of a stream.
    n_epochs : int
        The epochs of all calls.
    record_, rates_, guard_ : Record, LearningRates, ExplosionGuard
        The objects that hold the last three and the losses of all calls.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_margdrop import MarginalizedDropoutClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> net = MarginalizedDropoutClassifier(random_state=0).fit(X, y).net_
    >>> net.stop_reason_
    'max_iter'
    >>> net.history[-1, "train_loss"] < net.history[0, "train_loss"]
    True
    """

    stop_reason_: str
    optimizer_: Any
    history: History
    best_score_: float | None
    ending_: str | None  # the reason to end after the present epoch
    callbacks_: list[tuple[str, Any]]
    final_objective_: float | None
    _checkpoint: TrainingCheckpoint | None
    engine_: Engine = Engine()  # that of a fit is the net's until the fit has ended

    def __init__(
        self,
        module: type[NoisyNetwork] = NoisyNetwork,
        criterion: type[Objective] = Objective,
        *,
        seed: int = 0,
        shuffle: bool = True,
        loss_unit: float | None = None,
        **kwargs: Any,
    ):
        # Scores use the predictions of the epoch: skorch finds no targets in `Rows` otherwise.
        super().__init__(module, criterion, **{"use_caching": True} | kwargs)
        self.seed = seed
        self.shuffle = shuffle
        self.loss_unit = loss_unit

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        # skorch's own list scores every batch, which would read the device each time.
        log = [("epoch_log", EpochLog())] if self.verbose else []
        return [("epoch_timer", EpochTimer()), *log]

    def _initialize_history(self) -> Self:
        super()._initialize_history()
        self.generator_ = torch.Generator(self.device).manual_seed(self.seed)
        self.order_generator_ = torch.Generator().manual_seed(self.seed)
        self.record_, self.rates_ = Record(), LearningRates()
        self.guard_ = ExplosionGuard(self.loss_unit)
        self._checkpoint = None
        self._unlabeled_left: list[slice | Tensor] = []
        return self

    def initialize_optimizer(self, *args: Any) -> Self:
        super().initialize_optimizer(*args)
        for name, default in DEFAULTS.items():
            if not hasattr(self.optimizer_, name):
                setattr(self.optimizer_, name, default)
        return self

    @property
    def n_epochs(self) -> int:
        """The epochs of all calls."""
        return self.n_forgotten_ + len(self.history)

    @property
    def n_forgotten_(self) -> int:
        return self.record_.n_forgotten

    @property
    def n_explosions_(self) -> int:
        return self.guard_.n_explosions

    @property
    def rate_factor_(self) -> float:
        return self.rates_.factor

    def train(
        self,
        rows: Rows,
        valid: Rows | None,
        epochs: int,
        watcher: Callback | None = None,
        checkpoint: TrainingCheckpoint | None = None,
    ) -> None:
        """Train for at most `epochs` epochs; ``stop_reason_`` says why it ended.

        The `watcher` and the `checkpoint` are callbacks of this call alone. The training continues
        from the state that a checkpoint has stored.
        """
        self.engine_.begin(self, rows, valid, epochs)
        self.train_split = None if valid is None else predefined_split(valid)
        self.max_epochs = epochs
        callbacks: list[tuple[str, Callback]] = self.callbacks_
        helpers = {"watcher": watcher, "checkpoint": checkpoint}
        self.callbacks_ = callbacks + [each for each in helpers.items() if each[1] is not None]
        self._checkpoint = checkpoint
        # As in skorch's partial_fit, which treats Ctrl-C before the first epoch as the end.
        self.notify("on_train_begin", X=rows, y=None)
        self.fit_loop(rows)
        if self.stop_reason_ == "interrupted" and self.engine_.part[1] > 1:
            raise KeyboardInterrupt  # the other processes wait for this one, which must end
        self.notify("on_train_end", X=rows, y=None)
        if not self._predicts_finite(rows):
            self.stop_reason_, self.has_learned_, self.best_score_ = "diverged", False, None
            del self.history[-1:]  # which led there
        self.rates_.keep(self)
        # The model must not keep its validation data or the callbacks of this call.
        self.train_split = self._checkpoint = None
        self.callbacks_ = callbacks
        self.module_.zero_grad()
        self.optimizer_.forget()

    def fit_loop(
        self, X: Any, y: Any = None, epochs: int | None = None, **fit_params: Any
    ) -> Self:
        rows = self._rows(X, y)
        self._reset()
        self.rates_.resume(self)
        epochs = self.max_epochs if epochs is None else epochs
        if self._checkpoint is not None:
            epochs -= self._checkpoint.restore(self)
        self.stop_reason_ = self._run_epochs(rows, epochs, **fit_params)
        best, self.guard_.weights = self.guard_.weights, None
        if best is not None:
            self._judge_last_step(rows)
            if self.stop_reason_ == "diverged":
                self.module_.load_state_dict(best)
                self.has_learned_ = self.guard_.has_learned
        return self

    def _rows(self, X: Any, y: Any) -> Rows:
        """The training rows; raises if these or the optimiser are not suitable."""
        if not self.optimizer_.is_ready:
            raise RuntimeError(
                "A net of solver='lbfgs' is trained by its estimator: call fit, with "
                "warm_start=True to go on from here."
            )
        rows = self.get_dataset(X, y)
        if not isinstance(rows, Rows):
            raise TypeError(f"The net trains on arrays; got the data set {rows!r}.")
        return rows

    def _reset(self) -> None:
        """Reset what describes the end of a call."""
        self.stop_reason_ = "max_iter"
        self.best_score_ = self.final_objective_ = self.ending_ = None
        self.has_learned_ = self._in_epoch = False
        self.guard_ = ExplosionGuard(self.loss_unit)

    def _run_epochs(self, rows: Rows, epochs: int, **fit_params: Any) -> str:
        """Run at most `epochs` epochs; returns why they ended."""
        try:
            if self.ending_ is not None:  # the checkpoint was the last
                return self.ending_
            super().fit_loop(rows, None, epochs, **fit_params)
        except StopTraining as stop:
            return stop.reason
        except KeyboardInterrupt:
            return self._interrupted()
        finally:
            self._unlabeled_left = []
            if self._in_epoch:
                del self.history[-1]  # which was cut short
        return "max_iter"

    def _interrupted(self) -> str:
        return "interrupted" if self._is_finite() else "diverged"

    def _judge_last_step(self, rows: Rows) -> None:
        """Check whether the last step exploded, which no epoch has shown."""
        if self.stop_reason_ in ("interrupted", "diverged") or self.train_split is not None:
            return  # a validation score would show it
        try:
            self.final_objective_ = self._evaluate(rows)
            if self.guard_.has_exploded(self.final_objective_):
                self.stop_reason_ = "diverged"
        except KeyboardInterrupt:
            self.stop_reason_ = self._interrupted()

    def _is_finite(self) -> Tensor:
        """Whether all parameters are finite, a tensor on the device."""
        return torch.stack([p.isfinite().all() for p in self.module_.parameters()]).all()

    def _predicts_finite(self, rows: Rows) -> bool:
        """Whether the means of the rows are finite."""
        family = self.criterion_.family
        if not family.may_overflow or self.optimizer_.takes_closure:
            return True  # such an optimiser makes no step to means that are not finite
        return bool(family.mean(self.engine_.linear_predictor(self, rows)).isfinite().all())

    def get_iterator(self, dataset: Any, training: bool = False) -> Iterable[Any]:
        if isinstance(dataset, Subset) and isinstance(dataset.dataset, Rows):
            dataset = dataset.dataset.subset(torch.as_tensor(dataset.indices, device="cpu"))
        if not isinstance(dataset, Rows):
            loader: Any = super().get_iterator(dataset, training)
            if getattr(loader, "generator", self) is None:
                # It would draw a seed for its workers from torch's global generator.
                loader.generator = torch.Generator("cpu")
            found: Iterable[Any] = loader
            return found
        if not training:
            return [dataset]
        return self._batches(dataset, self.order_generator_, self._unlabeled_left)

    def count_steps(self, dataset: Any) -> int:
        """The steps of an epoch."""
        batches: Any = self.get_iterator(dataset, training=True)
        return len(batches)

    def _batches(self, rows: Rows, order: torch.Generator, left: list[slice | Tensor]) -> Batches:
        size = None if self.batch_size == -1 else self.batch_size
        return Batches(rows, size, self.shuffle, order, left)

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        if iterator is None:
            return
        if not training:
            (rows,) = iterator
            self._validate(rows)
            return
        self.history.new_batch()  # one for the whole epoch
        run = partial(self._run_batches, iterator, step_fn)
        means = self.guard_.run(self, run, partial(self._evaluate, iterator.rows))
        self.record_.add_loss(self.history, "train_loss", means.objective, len(iterator.rows))
        self.history.record("train_batch_count", len(iterator))
        # Ordinary dropout adds noise to the loss itself, whose penalty is not known separately.
        hidden = METHODS[self.criterion_.method].is_sampled and iterator.rows.unlabeled is None
        self.history.record("penalty", math.nan if hidden else means.penalty)

    def _validate(self, rows: Rows) -> None:
        eta, family = self.engine_.linear_predictor(self, rows), self.criterion_.family
        if not family.mean(eta).isfinite().all():
            raise StopTraining("diverged")
        losses = family.loss(eta, rows.y)
        loss = losses.mean() if rows.weight is None else losses @ rows.weight / rows.weight.sum()
        self.record_.add_loss(self.history, "valid_loss", float(loss), len(rows))
        self.history.record("valid_batch_count", 1)
        if (score := self.score_of(eta, rows.y, rows.weight)) is not None:
            if not math.isfinite(score):
                raise StopTraining("diverged")
            self.history.record("valid_score", score)
        batch = (rows, self.decode(rows.y))
        self.notify("on_batch_end", batch=batch, y_pred=self.in_units(eta), training=False)

    @torch.no_grad()
    def _evaluate(self, rows: Rows) -> float:
        """The objective of the present weights, with separate noise."""
        generator = torch.Generator(self.device).manual_seed(self.seed + self.engine_.part[0])
        order = torch.Generator().manual_seed(self.seed)
        total: Tensor | float = 0.0
        for batch in self._batches(rows, order, []):
            terms = self.criterion_(self.module_, batch, generator, self.engine_.part)
            total += terms.total * len(batch.y)
        return self.engine_.sum(float(total) / len(rows))

    def _run_batches(self, iterator: Batches, step_fn: Any) -> EpochMeans:
        """One pass over the batches; infinite where weights or scored means are not finite."""
        self.module_.train()
        sums = torch.zeros((), device=self.device)
        n_rows = 0
        is_finite = torch.tensor(True, device=self.device)
        scorers = [each for _, each in self.callbacks_ if getattr(each, "on_train", False)]
        is_watched = any(sees_batches(each) for _, each in self.callbacks_)
        for each in scorers:
            if isinstance(each, EpochScoring):  # forget a pass that exploded
                each.on_epoch_begin(self, iterator.rows, None)
        for batch in iterator:
            x = batch.x[: len(batch.y)] if isinstance(batch.x, Tensor) else batch.x
            seen = (x, self.decode(batch.y) if is_watched else batch.y)
            self.notify("on_batch_begin", batch=seen, training=True)
            step = step_fn(batch)
            sums = torch.add(sums, torch.stack(step["terms"]), alpha=len(batch.y))
            n_rows += len(batch.y)
            step["y_pred"] = None
            if scorers:
                with torch.no_grad():
                    eta = self.module_(batch.x)[: len(batch.y)]
                is_finite &= self.criterion_.family.mean(eta).isfinite().all()
                step["y_pred"] = self.in_units(eta)
            self.notify("on_batch_end", batch=seen, training=True, **step)
        # Such an optimiser makes no step to where the objective is not finite.
        if not self.optimizer_.takes_closure:
            drop_next_to_nothing(self.optimizer_)
            is_finite &= self._is_finite()
        finite_sums = torch.cat([sums / n_rows, is_finite.to(sums.dtype)[None]])
        loss, penalty, l2, finite = finite_sums.tolist()
        if not finite:
            return EpochMeans(math.inf, math.inf)
        return EpochMeans(loss + penalty + l2, penalty)

    def copy_weights(self) -> dict[str, Tensor]:
        """The present state of the module."""
        return {name: w.clone() for name, w in self.module_.state_dict().items()}

    def train_step(self, batch: WeightedRows, **fit_params: Any) -> dict[str, Any]:
        self.optimizer_.before_step(self, batch)
        step = self._step_with_closure if self.optimizer_.takes_closure else self._step
        terms = step(batch)
        return {"loss": terms.total, "terms": terms}

    def _step(self, batch: WeightedRows) -> Terms:
        """A step of an optimiser that needs the gradient."""
        optimizer, network = self.optimizer_, self.module_
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        terms = self.engine_.differentiate(self, batch)
        self.notify(
            "on_grad_computed",
            named_parameters=TeeGenerator(network.named_parameters()),
            batch=batch,
            training=True,
        )
        network.centre_gradients()
        with network.centred():
            optimizer.step()
        return terms

    def _step_with_closure(self, batch: WeightedRows) -> Terms:
        """A step of an optimiser that evaluates the objective as often as it needs."""
        network = self.module_
        found: list[Terms] = []

        def evaluate() -> Tensor:
            with network.uncentred():
                found.append(self.engine_.differentiate(self, batch))
            network.centre_gradients()
            return found[-1].total

        with network.centred():
            self.optimizer_.step(evaluate)
        return found[-1]

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        if method_name in ("on_epoch_begin", "on_epoch_end"):
            self._in_epoch = method_name == "on_epoch_begin"
        try:
            super().notify(method_name, **cb_kwargs)
        except KeyboardInterrupt:
            if method_name != "on_epoch_end" or not self._was_stopped_early():
                raise
            self.ending_ = "stopped"
        if method_name == "on_epoch_end":
            self.ending_ = self.engine_.agreed(self.ending_)
            if self.ending_ is not None:
                raise StopTraining(self.ending_)  # now that all have seen the epoch

    def _was_stopped_early(self) -> bool:
        """Whether it was skorch's callback, which says so by an interrupt."""
        return any(
            isinstance(callback, EarlyStopping) and callback.misses_ >= callback.patience
            for _, callback in self.callbacks_
        )

    def on_epoch_begin(self, net: Self, *args: Any, **kwargs: Any) -> None:
        super().on_epoch_begin(net, *args, **kwargs)
        self.history.record("epoch", self.n_epochs)

    def on_batch_begin(
        self, net: Self, batch: Any = None, training: bool = False, **kwargs: Any
    ) -> None:
        """Record nothing: histories of every batch would outgrow small models."""

    def take_over(self, previous: MarginalizedNet, incremental: bool = False) -> None:
        """Continue from the weights, optimiser, random streams and record of another net.

        Everything is copied: the training does not change the other net.
        """
        self.record_.take_over(self, previous, incremental)
        self.rates_.take_over(self, previous)
        load_learned_state(self, transferable_state(self, previous))

    def save_params(self, *args: Any, **kwargs: Any) -> None:
        """skorch's; of several processes, the first one does it."""
        if self.engine_.part[0] == 0:
            super().save_params(*args, **kwargs)

    def load_params(self, *args: Any, **kwargs: Any) -> None:
        """skorch's, once all processes are here: another one has saved them."""
        self.engine_.wait()
        super().load_params(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return net_state(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        restore_net(self, state)
