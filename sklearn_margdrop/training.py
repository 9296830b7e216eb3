"""Training: the skorch net whose loss is the marginalized objective."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EpochTimer, PrintLog
from skorch.helper import predefined_split
from skorch.utils import TeeGenerator
from torch import Tensor

from sklearn_margdrop.batches import Batches, Features, Rows, blocks
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.objective import Objective, Terms
from sklearn_margdrop.optimizers import Fisher, FisherLBFGS


class StopTraining(Exception):
    """Raised at the end of an epoch to end the training.

    Parameters
    ----------
    reason : {"converged", "diverged"}
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class MarginalizedNet(NeuralNet):
    """A skorch net that trains a :class:`NoisyNetwork` on an :class:`Objective`.

    An epoch is recorded in ``history`` as ``train_loss`` (the objective), ``penalty`` and, with
    a validation set, ``valid_score``; the device is read once an epoch, not once a batch.

    Parameters
    ----------
    seed : int, default=0
        Seed of the noise, of the probes and of the order of the rows.
    shuffle : bool, default=True
        Whether to visit the rows in a new order each epoch.
    scorer : callable, default=None
        ``scorer(eta, y, weight)`` of the validation rows' tensors returns a float.
    **kwargs
        skorch's own parameters.

    Attributes
    ----------
    stop_reason_ : {"max_iter", "converged", "interrupted", "diverged"}
        Why the last call of ``fit`` or ``partial_fit`` ended.
    best_score_ : float or None
        The best validation score of that call, whose weights were restored at its end.
    """

    def __init__(
        self,
        module=NoisyNetwork,
        criterion=Objective,
        *,
        seed: int = 0,
        shuffle: bool = True,
        scorer: Callable[[Tensor, Tensor, Tensor | None], float] | None = None,
        **kwargs,
    ):
        super().__init__(module, criterion, **kwargs)
        self.seed = seed
        self.shuffle = shuffle
        self.scorer = scorer

    @property
    def _default_callbacks(self):
        # skorch's own list scores every batch, which would read the device each time.
        log = [("print_log", PrintLog())] if self.verbose else []
        return [("epoch_timer", EpochTimer()), *log]

    def initialize(self):
        super().initialize()
        self.generator_ = torch.Generator(self.device).manual_seed(self.seed)
        self.order_generator_ = torch.Generator().manual_seed(self.seed)
        return self

    def train(self, rows: Rows, valid: Rows | None, epochs: int):
        """Train for at most so many epochs; ``stop_reason_`` says why it ended."""
        self.train_split = None if valid is None else predefined_split(valid)
        self.max_epochs = epochs
        self.partial_fit(rows)
        self.train_split = None  # the model is not to carry its validation data along
        self.module_.zero_grad()
        if isinstance(self.optimizer_, FisherLBFGS):
            self.optimizer_.forget()

    def take_over(self, previous: MarginalizedNet):
        """Go on from the weights, optimiser, random streams and history of another net."""
        self.module_.load_state_dict(previous.module_.state_dict())
        self.history = copy.copy(previous.history)
        if type(self.optimizer_) is type(previous.optimizer_):
            state = previous.optimizer_.state_dict()["state"]
            self.optimizer_.load_state_dict(self.optimizer_.state_dict() | {"state": state})
        self.order_generator_.set_state(previous.order_generator_.get_state())
        # The streams of two kinds of device have nothing in common.
        if self.generator_.device.type == previous.generator_.device.type:
            self.generator_.set_state(previous.generator_.get_state())

    def notify(self, method_name, **cb_kwargs):
        super().notify(method_name, **cb_kwargs)
        if method_name == "on_epoch_end" and self.has_converged_:
            raise StopTraining("converged")  # now that all have seen the epoch

    def fit_loop(self, X, y=None, epochs=None, **fit_params):
        self.stop_reason_ = "max_iter"
        self.has_converged_ = False
        self.best_score_ = None
        try:
            return super().fit_loop(X, y, epochs, **fit_params)
        except StopTraining as stop:
            self.stop_reason_ = stop.reason
        except KeyboardInterrupt:
            self.stop_reason_ = "interrupted" if self._is_finite() else "diverged"
        finally:
            if self.history and "dur" not in self.history[-1]:
                del self.history[-1]  # the epoch that was cut short
        return self

    def _is_finite(self) -> Tensor:
        """Whether all parameters are finite, a tensor on the device."""
        return torch.stack([p.isfinite().all() for p in self.module_.parameters()]).all()

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        """Record nothing: histories of every batch would outgrow small models."""

    def get_iterator(self, dataset, training=False):
        if not isinstance(dataset, Rows):
            return super().get_iterator(dataset, training)
        if not training:
            return dataset
        return Batches(dataset, self.batch_size, self.shuffle, self.order_generator_)

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        if iterator is None:
            return
        if not training:
            eta = self.linear_predictor(iterator.features, iterator.index)
            if not self.criterion_.family.mean(eta).isfinite().all():
                raise StopTraining("diverged")
            score = float(self.scorer(eta, iterator.y, iterator.weight))
            if not math.isfinite(score):
                raise StopTraining("diverged")
            self.history.record("valid_score", score)
            return
        self._set_training(True)
        sums = torch.zeros((), device=self.device)
        n_rows = 0
        for batch in iterator:
            self.notify("on_batch_begin", batch=batch, training=True)
            step = step_fn(batch)
            sums = torch.add(sums, torch.stack(step["terms"]), alpha=len(batch.y))
            n_rows += len(batch.y)
            self.notify("on_batch_end", batch=batch, training=True, **step)
        finite = self._is_finite().to(sums.dtype)
        *means, finite = torch.cat([sums / n_rows, finite[None]]).tolist()
        terms = Terms(*means)
        if not (finite and math.isfinite(terms.total)):
            raise StopTraining("diverged")
        self.history.record("train_loss", terms.total)
        # Ordinary dropout noises the loss itself: its penalty is in there, but not known.
        hidden = self.criterion_.method == "sampling" and iterator.rows.unlabeled is None
        self.history.record("penalty", math.nan if hidden else terms.penalty)

    def train_step(self, batch, **fit_params):
        optimizer, objective = self.optimizer_, self.criterion_
        if isinstance(optimizer, FisherLBFGS):
            terms = None

            def evaluate():
                nonlocal terms
                terms = objective.backward(self.module_, batch, self.generator_)
                return terms.total

            optimizer.step(evaluate)
            return {"loss": terms.total, "terms": terms}
        if isinstance(optimizer, Fisher):
            information = objective.mean_curvature(self.module_, batch, penalty=True)
            information[0] += objective.alpha  # the curvature of the L2 penalty
            optimizer.accumulate(information, len(batch.y))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        terms = objective.backward(self.module_, batch, self.generator_)
        self.notify(
            "on_grad_computed",
            named_parameters=TeeGenerator(self.module_.named_parameters()),
            batch=batch,
            training=True,
        )
        optimizer.step()
        return {"loss": terms.total, "terms": terms}

    @torch.no_grad()
    def linear_predictor(self, features: Features, index: Tensor | None = None) -> Tensor:
        """Linear predictor without noise, shape (n_samples, K), in blocks of bounded memory."""
        self._set_training(False)
        widest = max(linear.out_features for linear in self.module_.linears)
        n_rows = len(features) if index is None else len(index)
        cut = blocks(n_rows, max(widest, features.shape[1]))
        return torch.cat(
            [self.module_(features.take(b if index is None else index[b])) for b in cut]
        )

    def __getstate__(self):
        state = super().__getstate__()
        if "generator_" in state:
            # A CUDA generator cannot be unpickled where there is no GPU: keep its state.
            state["generator_"] = state["generator_"].get_state()
        return state

    def __setstate__(self, state):
        device = state["device"]
        super().__setstate__(state)
        if "generator_" in state:
            generator = torch.Generator(self.device).manual_seed(self.seed)
            # The streams of two kinds of device have nothing in common: start afresh there.
            if torch.device(self.device).type == torch.device(device).type:
                generator.set_state(self.generator_)
            self.generator_ = generator


class InverseDecay(Callback):
    """Learning rate / (1 + decay * epoch), counting epochs from 0 (P, section 3.1)."""

    def __init__(self, decay: float):
        self.decay = decay

    def on_epoch_begin(self, net, **kwargs):
        epoch = len(net.history) - 1
        for group in net.optimizer_.param_groups:
            initial = group.setdefault("initial_lr", group["lr"])
            group["lr"] = initial / (1 + self.decay * epoch)


class GradientStopping(Callback):
    """Stops :class:`FisherLBFGS` where the norm of the gradient is at most `tol`.

    The gradient is that of coordinates in which the curvature is about one, so that half its
    square is, roughly, how far above its minimum the objective is.
    """

    def __init__(self, tol: float):
        self.tol = tol

    def on_epoch_end(self, net, **kwargs):
        # A step that no longer moves has reached what the precision allows.
        if net.optimizer_.stalled or net.optimizer_.decrement <= self.tol:
            net.has_converged_ = True


class Stopping(Callback):
    """Stops when the monitored value goes more than `patience` epochs without improving by `tol`.

    Parameters
    ----------
    monitor : {"train_loss", "valid_score"}
        Losses are to fall, scores to rise. With scores the best weights are restored at the
        end, whatever ends the training.
    tol : float
    patience : int
    """

    def __init__(self, monitor: str, tol: float, patience: int):
        self.monitor = monitor
        self.tol = tol
        self.patience = patience

    def on_train_begin(self, net, **kwargs):
        self.best_ = -math.inf
        self.misses_ = 0
        self.best_weights_ = None

    def on_epoch_end(self, net, **kwargs):
        keep_best = self.monitor == "valid_score"
        value = net.history[-1, self.monitor] * (1 if keep_best else -1)
        self.misses_ = self.misses_ + 1 if value <= self.best_ + self.tol else 0
        if value > self.best_:
            self.best_ = value
            if keep_best:
                weights = net.module_.state_dict()
                self.best_weights_ = {name: w.clone() for name, w in weights.items()}
        if self.misses_ > self.patience:
            net.has_converged_ = True

    def on_train_end(self, net, **kwargs):
        if self.best_weights_ is not None:
            net.module_.load_state_dict(self.best_weights_)
            net.best_score_ = self.best_
            self.best_weights_ = None
