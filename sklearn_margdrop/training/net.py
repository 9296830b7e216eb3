"""Training: the skorch net whose loss is the marginalized objective."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, Self, TypeAlias

import torch
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, EpochTimer
from skorch.helper import predefined_split
from skorch.history import History
from skorch.utils import TeeGenerator
from torch import Tensor, nn
from torch.utils.data import Subset

from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.objective import Objective, Terms
from sklearn_margdrop.training.batches import Batches, Rows
from sklearn_margdrop.training.callbacks import EpochLog, sees_batches
from sklearn_margdrop.training.checkpoints import TrainingCheckpoint
from sklearn_margdrop.training.engine import Engine
from sklearn_margdrop.training.optimizers import Fisher, FisherLBFGS
from sklearn_margdrop.training.prediction import PredictingNet
from sklearn_margdrop.training.recording import RecordingNet
from sklearn_margdrop.training.schedules import SchedulingNet
from sklearn_margdrop.training.stability import MOST_RETURNS, EpochMeans, StopTraining, Watch
from sklearn_margdrop.training.state import (
    learned_state,
    load_learned_state,
    net_state,
    restore_net,
)
from sklearn_margdrop.weighting import WeightedRows

#: What skorch runs for each batch.
StepFunction: TypeAlias = Callable[..., dict[str, Any]]


class MarginalizedNet(RecordingNet, SchedulingNet, PredictingNet):
    """A skorch net that trains a :class:`NoisyNetwork` on an :class:`Objective`.

    An epoch is recorded in ``history`` as ``train_loss`` (the objective), ``penalty`` and, with
    a validation set, ``valid_loss`` (without noise) and ``valid_score``; losses are those of
    standardised targets where there are ``units_``. The device is read once an epoch, not once a
    batch, so that ``batches`` has one entry for the epoch.

    Parameters
    ----------
    module, criterion : type
        Those of skorch, whose parameters are ``module__layer_sizes`` and so on.
    seed : int, default=0
        Seed of the noise, of the probes and of the order of the rows.
    shuffle : bool, default=True
        Whether to visit the rows in a new order each epoch.
    loss_unit : float, default=None
        What the loss is measured in, in nats. An epoch whose objective is above that of the
        initial weights, and more than one of these above twice the lowest so far, is repeated
        from the best weights so far at half the learning rate. None, as for streams, lets it rise
        until it is not finite.
    scorer : callable, default=None
        ``scorer(eta, y, weight)`` of the validation rows' tensors returns a float.
    **kwargs
        The parameters of :class:`skorch.NeuralNet`.

    Attributes
    ----------
    stop_reason_ : {"max_iter", "converged", "stalled", "stopped", "interrupted", "diverged"}
        Why the last call of ``fit`` or ``partial_fit`` ended: the epochs were used up; what
        ``tol`` asks for was reached; it was not, and the training no longer got nearer; a
        callback, ``KeyboardInterrupt`` or a number that is not finite ended it.
    best_score_ : float or None
        The best validation score of that call, whose weights were restored at its end.
    has_learned_ : bool
        Whether that call, where it "diverged", keeps better weights than it began with.
    n_explosions_ : int
        How often that call went back to the best weights.
    rate_factor_ : float
        What is left of the learning rate after the explosions of all calls.
    n_forgotten_ : int
        Epochs before those in ``history``, which holds the last 1,000 of a stream.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_margdrop import MarginalizedDropoutClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> net = MarginalizedDropoutClassifier(random_state=0).fit(X, y).net_
    >>> net.stop_reason_
    'converged'
    >>> net.history[-1, "train_loss"] < net.history[0, "train_loss"]
    True
    """

    criterion_: Objective
    optimizer_: Any  # torch's, or one of ours
    history: History
    stop_reason_: str
    best_score_: float | None
    has_learned_: bool
    ending_: str | None  # the reason to end after the present epoch
    n_explosions_: int
    callbacks_: list[tuple[str, Any]]
    order_generator_: torch.Generator
    _watch: Watch | None
    _final_objective: float | None = None  # of the weights at the end, where it was evaluated
    _epoch_batches: Batches | None
    _unlabeled_left: list[slice | Tensor]
    _checkpoint: TrainingCheckpoint | None
    _in_epoch: bool
    engine_: Engine = Engine()  # that of a fit is the net's until the fit has ended

    def __init__(
        self,
        module: type[NoisyNetwork] = NoisyNetwork,
        criterion: type[Objective] = Objective,
        *,
        seed: int = 0,
        shuffle: bool = True,
        loss_unit: float | None = None,
        scorer: Callable[[Tensor, Tensor, Tensor | None], float] | None = None,
        **kwargs: Any,
    ):
        # Scores are of the predictions at hand: skorch finds no targets in `Rows` without them.
        super().__init__(module, criterion, **{"use_caching": True} | kwargs)
        self.seed = seed
        self.shuffle = shuffle
        self.loss_unit = loss_unit
        self.scorer = scorer

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        # skorch's own list scores every batch, which would read the device each time.
        log = [("epoch_log", EpochLog())] if self.verbose else []
        return [("epoch_timer", EpochTimer()), *log]

    def _initialize_history(self) -> Self:
        super()._initialize_history()
        self.generator_ = torch.Generator(self.device).manual_seed(self.seed)
        self.order_generator_ = torch.Generator().manual_seed(self.seed)
        self.rate_factor_ = 1.0
        self.schedules_ = {}
        self._rates: list[float] | None = None
        self._checkpoint = self._watch = self._epoch_batches = None
        self._unlabeled_left = []
        return self

    @torch.no_grad()
    def find_centres(self, rows: Rows) -> None:
        """Let the layers' centres, where there are any, be the mean activations on `rows`."""
        linears = self.module_.linears
        sums: dict[nn.Module, Any] = {x: 0.0 for x in linears if x.centre is not None}
        for position in blocks(len(rows), self.module_.widest) if sums else ():
            x: Any = rows.take(position)
            for layer in self.module_.layers:
                if layer in sums:
                    sums[layer] += x.sum(0) if rows.weight is None else rows.weight[position] @ x
                x = layer(x)
        total = len(rows) if rows.weight is None else rows.weight.sum()
        for layer, value in sums.items():
            layer.get_buffer("centre").copy_(value / total)

    def train(
        self,
        rows: Rows,
        valid: Rows | None,
        epochs: int,
        watcher: Callback | None = None,
        checkpoint: TrainingCheckpoint | None = None,
    ) -> None:
        """Train for at most so many epochs; ``stop_reason_`` says why it ended.

        The `watcher` and the `checkpoint` are callbacks of this call alone. What a checkpoint
        had stored before is where the training goes on.
        """
        self.engine_.begin(self, rows, valid, epochs)
        self.train_split = None if valid is None else predefined_split(valid)
        self.max_epochs = epochs
        callbacks: list[tuple[str, Callback]] = self.callbacks_
        helpers = {"watcher": watcher, "checkpoint": checkpoint}
        self.callbacks_ = callbacks + [each for each in helpers.items() if each[1] is not None]
        self._checkpoint = checkpoint
        # What skorch's partial_fit does, which takes Ctrl-C before the first epoch for the end.
        self.notify("on_train_begin", X=rows, y=None)
        self.fit_loop(rows)
        if self.stop_reason_ == "interrupted" and self.engine_.part[1] > 1:
            raise KeyboardInterrupt  # the other processes wait for this one, which is to end
        self.notify("on_train_end", X=rows, y=None)
        if not self._predicts_finite(rows):
            self.stop_reason_, self.has_learned_, self.best_score_ = "diverged", False, None
            del self.history[-1:]  # which led there
        self.schedules_ = {
            name: (type(scheduler).__qualname__, scheduler.state_dict())
            for name, scheduler in self._schedulers()
        }
        # The model is not to carry its validation data or what watched it along.
        self.train_split = self._checkpoint = None
        self.callbacks_ = callbacks
        self.module_.zero_grad()
        if isinstance(self.optimizer_, FisherLBFGS):
            self.optimizer_.forget()

    def take_over(self, previous: MarginalizedNet, incremental: bool = False) -> None:
        """Go on from the weights, optimiser, random streams and record of another net.

        All of them are copies: the training changes nothing of the other net.
        """
        self.go_on_recording(previous, incremental)
        if self.lr == previous.lr:
            self._take_over_rates(previous)
        self.schedules_ = copy.deepcopy(previous.schedules_)
        groups = getattr(self.optimizer_, "param_groups", [])
        self._rates = [group["lr"] for group in groups]
        for group in groups:
            group.setdefault("initial_lr", group["lr"])
        own, state = learned_state(self), learned_state(previous)
        # Centres come and go with the activation function.
        common = {name: w for name, w in state["weights"].items() if name in own["weights"]}
        optimizer = own["optimizer"]
        if type(self.optimizer_) is type(previous.optimizer_):
            optimizer |= {"state": copy.deepcopy(state["optimizer"]["state"])}
        load_learned_state(
            self,
            state | {"fitted": {}, "weights": own["weights"] | common, "optimizer": optimizer},
        )

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

    def fit_loop(
        self, X: Any, y: Any = None, epochs: int | None = None, **fit_params: Any
    ) -> Self:
        if isinstance(self.optimizer_, FisherLBFGS) and not self.optimizer_.is_ready:
            raise RuntimeError(
                "A net of solver='lbfgs' is trained by its estimator: call fit, with "
                "warm_start=True to go on from here."
            )
        self.stop_reason_ = "max_iter"
        self.best_score_ = self._watch = self._final_objective = None
        self._in_epoch = False
        self.n_explosions_ = 0
        self.has_learned_, self.ending_ = False, None
        rows = self.get_dataset(X, y)
        if not isinstance(rows, Rows):
            raise TypeError(f"The net trains on arrays; got the data set {rows!r}.")
        epochs = self.max_epochs if epochs is None else epochs
        if self._rates is not None:
            self._go_on_with_schedules(self._rates)
            self._rates = None
        if self._checkpoint is not None:
            epochs -= self._checkpoint.restore(self)
        try:
            if self.ending_ is not None:
                raise StopTraining(self.ending_)
            super().fit_loop(rows, None, epochs, **fit_params)
        except StopTraining as stop:
            self.stop_reason_ = stop.reason
        except KeyboardInterrupt:
            self.stop_reason_ = "interrupted" if self._is_finite() else "diverged"
        finally:
            watch, self._watch, self._epoch_batches = self._watch, None, None
            if self._in_epoch:
                del self.history[-1]  # which was cut short
        if watch is None:
            return self
        # No epoch has seen what the last step led to; a validation score has.
        unseen = self.stop_reason_ not in ("interrupted", "diverged") and self.train_split is None
        try:
            if unseen:
                self._final_objective = self._evaluate(rows)
                if watch.has_exploded(self._final_objective):
                    self.stop_reason_ = "diverged"
        except KeyboardInterrupt:
            self.stop_reason_ = "interrupted" if self._is_finite() else "diverged"
        if self.stop_reason_ == "diverged":
            self.module_.load_state_dict(watch.weights)
            self.has_learned_ = watch.weights is not watch.initial_weights
        return self

    def _is_finite(self) -> Tensor:
        """Whether all parameters are finite, a tensor on the device."""
        return torch.stack([p.isfinite().all() for p in self.module_.parameters()]).all()

    def _predicts_finite(self, rows: Rows) -> bool:
        """Whether the means of the rows are finite; L-BFGS makes no step where they are not."""
        family = self.criterion_.family
        if not family.may_overflow or isinstance(self.optimizer_, FisherLBFGS):
            return True
        return bool(family.mean(self.engine_.linear_predictor(self, rows)).isfinite().all())

    def get_iterator(self, dataset: Any, training: bool = False) -> Iterable[Any]:
        if isinstance(dataset, Subset) and isinstance(dataset.dataset, Rows):
            dataset = dataset.dataset.subset(torch.as_tensor(dataset.indices, device="cpu"))
        if not isinstance(dataset, Rows):
            loader: Any = super().get_iterator(dataset, training)
            if getattr(loader, "generator", self) is None:
                # It would draw a seed for its workers from torch's global one.
                loader.generator = torch.Generator("cpu")
            found: Iterable[Any] = loader
            return found
        if not training:
            return [dataset]
        self._epoch_batches = self._batches(dataset, self.order_generator_)
        self._epoch_batches.unlabeled_left, self._unlabeled_left = self._unlabeled_left, []
        return self._epoch_batches

    def _batches(self, rows: Rows, order: torch.Generator) -> Batches:
        size = None if self.batch_size == -1 else self.batch_size
        return Batches(rows, size, self.shuffle, order)

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: StepFunction, **fit_params: Any
    ) -> None:
        if iterator is None:
            return
        if not training:
            (rows,) = iterator
            self._validate(rows)
            return
        self.history.new_batch()  # one for the whole epoch
        if self.loss_unit is None:
            means = self._run_batches(iterator, step_fn)
            if not math.isfinite(means.objective):
                raise StopTraining("diverged")
        else:
            means = self._run_watched(iterator, step_fn, self.loss_unit)
        self._record("train_loss", means.objective, len(iterator.rows))
        self.history.record("train_batch_count", len(iterator))
        # Ordinary dropout noises the loss itself: its penalty is in there, but not known.
        hidden = self.criterion_.method == "sampling" and iterator.rows.unlabeled is None
        self.history.record("penalty", math.nan if hidden else means.penalty)

    def _validate(self, rows: Rows) -> None:
        eta, family = self.engine_.linear_predictor(self, rows), self.criterion_.family
        if not family.mean(eta).isfinite().all():
            raise StopTraining("diverged")
        losses = family.loss(eta, rows.y)
        loss = losses.mean() if rows.weight is None else losses @ rows.weight / rows.weight.sum()
        self._record("valid_loss", float(loss), len(rows))
        self.history.record("valid_batch_count", 1)
        if self.scorer is not None:
            score = float(self.scorer(eta, rows.y, rows.weight))
            if not math.isfinite(score):
                raise StopTraining("diverged")
            self.history.record("valid_score", score)
        batch = (rows, self.decode(rows.y))
        self.notify("on_batch_end", batch=batch, y_pred=self.in_units(eta), training=False)

    def _run_watched(self, iterator: Batches, step_fn: StepFunction, unit: float) -> EpochMeans:
        """The same until the objective does not explode, with half the learning rate each time."""
        before = self.copy_weights()
        if self._watch is None:
            self._watch = Watch(self._evaluate(iterator.rows), before, unit)
        watch = self._watch
        means = self._run_batches(iterator, step_fn)
        while watch.has_exploded(means.objective):
            if watch.n_returns == MOST_RETURNS:
                raise StopTraining("diverged")
            watch.n_returns += 1
            self.n_explosions_ += 1
            before = watch.weights
            self.module_.load_state_dict(before)
            self.optimizer_.state.clear()
            self._scale_rate(0.5)
            means = self._run_batches(iterator, step_fn)
        watch.see(means.objective, before)
        return means

    @torch.no_grad()
    def _evaluate(self, rows: Rows) -> float:
        """The objective of the present weights, with noise of its own."""
        generator = torch.Generator(self.device).manual_seed(self.seed + self.engine_.part[0])
        order = torch.Generator().manual_seed(self.seed)
        total: Tensor | float = 0.0
        for batch in self._batches(rows, order):
            terms = self.engine_.evaluate(self, batch, generator)
            total += terms.total * len(batch.y)
        return self.engine_.sum(float(total) / len(rows))

    def _run_batches(self, iterator: Batches, step_fn: StepFunction) -> EpochMeans:
        """One pass over the batches; infinite where weights or scored means are not finite."""
        self._set_training(True)
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
                eta = self._predict(batch)
                is_finite &= self.criterion_.family.mean(eta).isfinite().all()
                step["y_pred"] = self.in_units(eta)
            self.notify("on_batch_end", batch=seen, training=True, **step)
        is_finite = (is_finite & self._is_finite()).to(sums.dtype)
        loss, penalty, l2, finite = torch.cat([sums / n_rows, is_finite[None]]).tolist()
        if not finite:
            return EpochMeans(math.inf, math.inf)
        return EpochMeans(loss + penalty + l2, penalty)

    def copy_weights(self) -> dict[str, Tensor]:
        """The present state of the module."""
        return {name: w.clone() for name, w in self.module_.state_dict().items()}

    def train_step(self, batch: WeightedRows, **fit_params: Any) -> dict[str, Any]:
        optimizer, engine, network = self.optimizer_, self.engine_, self.module_
        if isinstance(optimizer, FisherLBFGS):
            found: list[Terms] = []

            def evaluate() -> Tensor:
                with network.uncentred():
                    found.append(engine.differentiate(self, batch))
                network.centre_gradients()
                return found[-1].total

            with network.centred():
                optimizer.step(evaluate)
            return {"loss": found[-1].total, "terms": found[-1]}
        if isinstance(optimizer, Fisher):
            information = engine.mean_curvature(self, batch, penalty=True, centre=network.centre)
            information[0] += self.criterion_.alpha  # the curvature of the L2 penalty
            optimizer.accumulate(information, len(batch.y))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        terms = engine.differentiate(self, batch)
        self.notify(
            "on_grad_computed",
            named_parameters=TeeGenerator(network.named_parameters()),
            batch=batch,
            training=True,
        )
        network.centre_gradients()
        with network.centred():
            optimizer.step()
        return {"loss": terms.total, "terms": terms}

    @torch.no_grad()
    def _predict(self, batch: WeightedRows) -> Tensor:
        """Linear predictor of the labelled rows without noise."""
        eta: Tensor = self.module_(batch.x)
        return eta[: len(batch.y)]

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
