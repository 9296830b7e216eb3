"""The network for class labels."""

from __future__ import annotations

from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike

from sklearn_margdrop.estimators.base import Call
from sklearn_margdrop.estimators.labels import Labels, labels_or_indicators
from sklearn_margdrop.estimators.network import BaseMarginalizedNetwork
from sklearn_margdrop.estimators.predictors import BaseMarginalizedClassifier
from sklearn_margdrop.estimators.sklearn_private import StrOptions, checks_parameters
from sklearn_margdrop.numerics.csr import MatrixLike


class MarginalizedDropoutClassifier(BaseMarginalizedClassifier, BaseMarginalizedNetwork):
    r"""Neural network classifier regularised by marginalised dropout.

    Instead of the log loss under a random draw of dropout, training minimises its expectation::

        mean over samples of (loss + R) + alpha / 2 * ||weights||^2

    where R, the penalty, is what the noise adds: to second order the curvature of the loss times
    the variance that the noise gives the logits. Rows have a label each, or several: `y` is then
    an indicator matrix, dense or sparse, of zeros and ones with a column for each label, and the
    outputs are independent. See the :ref:`user guide <user_guide>`.

    Parameters
    ----------
    hidden_layer_sizes : int or array-like of shape (n_hidden,), default=(256,)
        Width of each hidden layer. ``()`` is a generalised linear model.

    activation : {"relu", "logistic", "tanh", "identity"}, default="relu"
        Activation function of the hidden layers.

    noise : str, default="dropout"
        Name of the noise model that is marginalised. `"dropout"` multiplies a unit by
        Bernoulli(q)/q, with q the `retain_rate`; `"gaussian"` adds a normal with standard
        deviation `noise_std`. Both leave the mean of a unit as it is.

    noise_placement : {"both", "input", "hidden", "none"} or array-like of int, default="both"
        Which sites are noisy. A sequence lists them: 0 is the input, l the output of hidden
        layer l. `"both"` is every site, `"none"` is an ordinary network.

    retain_rate : float, "auto" or array-like of shape (n_noisy_sites,), default="auto"
        Probability in (0, 1] that dropout keeps a unit; one for all noisy sites, or one for
        each in the order of `noise_placement`. 1 is no noise. No rate is right for all data, so
        `"auto"` lets each `fit` choose: 0.95, 0.8 or 0.5 at the input with 0.5 at hidden layers,
        or no noise at all. Each of these four is tried in a short training of 250 steps on 80 %
        of the rows, whatever `random_state` is, and judged by its loss on the others; 0.95 and
        0.5 are kept unless another one is clearly better, by more than a standard error.
        `partial_fit` takes 0.95 and 0.5.

    noise_std : float or array-like of shape (n_noisy_sites,), default=0.1
        Standard deviation of gaussian noise, in the units of the activations (of the features,
        at the input). 0 is no noise.

    method : {"diagonal", "moments", "quadratic", "sampling"}, default="moments"
        How the expectation over the noise is evaluated. `"moments"` is the expectation itself,
        estimated by pairs of opposite noise that go through the layers with the rows: about the
        cost of a second forward pass. `"quadratic"` is the second order (P, Eq. 8), estimated by
        random tangents at the same cost. `"diagonal"` is the second order without the cross terms
        between units (P, Eq. 9); it draws nothing. `"sampling"` draws the noise itself: ordinary
        dropout.

    n_probes : int or None, default=1
        With ``method="moments"`` and ``method="quadratic"``, the pairs or tangents of each row,
        whose mean is taken; their signs are drawn anew in each step. None draws nothing:
        `"quadratic"` is exact then, at a cost that grows with the number of outputs, and
        `"moments"` is the expectation under noise whose variances pass the hidden layers as in
        `"diagonal"`. Without hidden layers nothing is ever drawn.

    alpha : float, default=3e-4
        Strength of the L2 penalty ``alpha / 2 * ||weights||^2``, added to the mean loss over
        the samples. `MLPClassifier` divides its `alpha` by the rows of a batch.

    unlabeled_discount : float or "auto", default="auto"
        Weight d of an unlabelled row relative to a labelled one in the penalty, which is
        ``(R + d * R_unlabeled) / (n + d * m)`` for n labelled and m unlabelled rows (W). Too large
        a weight rewards confidence about the unlabelled rows, right or wrong. With `"auto"`,
        unlabelled rows make up 10 % of the penalty.

    solver : {"adam", "sgd"}, default="adam"
        Optimiser of the weights.

    batch_size : int or "auto", default=100
        Largest number of rows in a batch; the rows are cut into batches of equal size. `"auto"`
        is ``min(200, n_samples)``.

    learning_rate : {"constant", "cosine"}, default="cosine"
        How the step size goes on from `learning_rate_init`. `"constant"` keeps it, but for
        `learning_rate_decay`, until `tol` or `max_iter` ends the fit. `"cosine"` lets it fall to
        almost zero along half a cosine, step by step over the whole of `max_iter`, which each call
        of `fit` then trains for: neither `tol` nor `n_iter_no_change` ends it, and its end is no
        `ConvergenceWarning`. As the length of a stream is not known, `partial_fit` keeps the step
        size constant in either case. Other schedules, `learning_rate_decay` or an `LRScheduler`
        among `callbacks`, need `"constant"`.

    learning_rate_init : float, default=0.004
        Step size at the beginning. With ``solver="adam"`` the weights of the features move by
        it over the features' typical size (the root mean square of those that are not zero), so
        that the units of `X` do not matter. Where the objective explodes, training goes back to
        the best weights so far and on at half of it, with a warning at the end.

    learning_rate_decay : float, default=0.0
        The step size of epoch i = 0, 1, ... is ``learning_rate_init / (1 + decay * i)``, with
        ``learning_rate="constant"``.

    momentum : float, default=0.9
        Momentum in [0, 1] of ``solver="sgd"``.

    max_iter : int or "auto", default="auto"
        Largest number of epochs (passes over the labelled rows) of a fit; with
        ``learning_rate="cosine"`` their number. `"auto"` is 200, and with a cosine as many as make
        about 3000 steps (batches), but at least 20 and at most 200.

    tol : float, default=2e-3
        The fit ends when the objective, or with `early_stopping` the validation score, goes for
        more than `n_iter_no_change` epochs without improving by more than `tol` on its best.
        A regressor's objective is measured in units of the loss of the best constant.

    n_iter_no_change : int or float, default=10
        See `tol`. ``np.inf`` runs all `max_iter` epochs, as ``learning_rate="cosine"`` does.

    early_stopping : bool, default=False
        Whether to set a part of the training data aside, stop when the score on it no longer
        improves (with ``learning_rate="constant"``), and keep the weights that scored best.

    validation_fraction : float, default=0.1
        That part, between 0 and 1. Used only with `early_stopping`.

    shuffle : bool, default=True
        Whether to visit the rows in a new order each epoch.

    warm_start : bool, default=False
        Whether `fit` goes on from where the previous call ended, also with what explosions left
        of `learning_rate_init` unless that has been set anew. With ``learning_rate="cosine"`` each
        call runs a whole schedule.

    checkpoint : str or path-like, default=None
        Folder that keeps the state of `fit` at the end of each epoch. The same fit started
        again goes on from there, and ends at the same bits as one that was never interrupted;
        once it has ended, at once. ``"{fit}"`` in the path stands for a digest of the
        parameters and the data, so that the fits of a search have a folder each. Nothing in it
        is ever executed. See :ref:`checkpoints`.

    class_weight : dict or "balanced", default=None
        Weights of the classes, ``{label: weight}``; `"balanced"` weights them inversely to
        their frequency. Multiplies `sample_weight`. Not for several labels per row.

    pretrainer : transformer, default=None
        Initialises the hidden layers one after the other: a clone of it, with as many
        components as the layer has units, is fitted to what enters the layer, and its
        `components_` and `intercept_hidden_` become the layer's initial weights.
        :class:`~sklearn.neural_network.BernoulliRBM` is such a transformer, for features in
        [0, 1] and logistic units. It sees the training rows and `X_unlabeled` (also where
        `unlabeled_discount` is 0), without weights, in the first call. None is random weights.

    callbacks : list of skorch.callbacks.Callback, default=None
        Callbacks of skorch (`Checkpoint`, `LRScheduler`, `EpochScoring`, ...), or pairs of a name
        and a callback. Clones of them see the training; ``net_.callbacks_`` holds these, and
        ``net_.history`` what they record. scikit-learn's own are set by `set_callbacks`.

    accelerator : accelerate.Accelerator, default=None
        Several processes, on CPUs or GPUs, fit this model together: each takes a part of the rows
        of every batch, see :ref:`data_parallel`. All of them call `fit` (or `partial_fit`) with
        the same parameters and data. Copies share it; pickles do without. None, or an
        accelerator of a single process, is an ordinary fit.

    device : str or torch.device, default="auto"
        Where to compute: `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`, ... `"auto"` is the CUDA
        GPU if there is one, else the CPU; the workers of a search take several GPUs in turn.

    random_state : int, RandomState instance or None, default=None
        Seeds the initial weights, a pretrainer without a seed of its own, the order of the rows,
        the validation split and the noise.
        An int gives the same result, to the last bit, on the same machine; None draws a seed
        from the operating system.

    verbose : bool or int, default=False
        Whether to print the objective, penalty, validation score and seconds of each epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, sorted; with several labels per row, the positions of the columns.

    coefs_ : list of ndarray of shape (fan_in, fan_out)
        Weights of each layer, from the input to the output: copies that cannot be written to.
        The weights themselves are tensors, ``net_.module_.linears[l].weight``.

    intercepts_ : list of ndarray of shape (fan_out,)
        Intercepts of each layer, likewise.

    unlabeled_discount_ : float or None
        The discount of unlabelled rows in the last call; None where there were none.

    n_iter_ : int
        Epochs run, over all calls with `warm_start` or `partial_fit`.

    loss_curve_ : list of float
        Objective (loss + penalty + L2) of each epoch, in nats per sample, averaged over its
        batches.

    penalty_curve_ : list of float
        The noise penalty's part of it; nan where ``method="sampling"`` noises the loss itself.

    validation_scores_ : list of float or None
        Score of the validation set after each epoch, with `early_stopping`.

    best_validation_score_ : float or None
        The best score of an epoch of the last call, whose weights it kept (where no callback
        put back others), with `early_stopping`.

    net_ : skorch.NeuralNet
        The fitted net: ``net_.module_`` is the torch module, ``net_.history`` the record.

    retain_rate_ : tuple of (float, float) or None
        The rates at the input and at hidden layers that ``retain_rate="auto"`` has chosen; None
        where rates were given.

    pretrainers_ : list of transformer
        The fitted clone of `pretrainer` for each hidden layer; empty where it is None.

    n_features_in_ : int
        Number of features seen during `fit`.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features seen during `fit`, where they are all strings.

    See Also
    --------
    MarginalizedDropoutRegressor : The same network for real-valued targets and counts.
    sklearn.neural_network.MLPClassifier : The network without noise.

    References
    ----------
    .. [P] "Regularization from marginalized noise in deep nets", Eqs. 1-9.
    .. [W] S. Wager, S. Wang, P. Liang, "Dropout training as adaptive regularization",
       NIPS 2013.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_margdrop import MarginalizedDropoutClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MarginalizedDropoutClassifier(random_state=0).fit(X, y)
    >>> clf.predict(X[:3])
    array([0, 0, 0])
    >>> clf.score(X, y) > 0.95
    True
    """

    _parameter_constraints: dict[str, Any] = {
        **BaseMarginalizedNetwork._parameter_constraints,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        hidden_layer_sizes: ArrayLike = (256,),
        *,
        activation: str = "relu",
        noise: str = "dropout",
        noise_placement: str | ArrayLike = "both",
        retain_rate: str | ArrayLike = "auto",
        noise_std: ArrayLike = 0.1,
        method: str = "moments",
        n_probes: int | None = 1,
        alpha: float = 3e-4,
        unlabeled_discount: float | str = "auto",
        solver: str = "adam",
        batch_size: int | str = 100,
        learning_rate: str = "cosine",
        learning_rate_init: float = 0.004,
        learning_rate_decay: float = 0.0,
        momentum: float = 0.9,
        max_iter: int | str = "auto",
        tol: float = 2e-3,
        n_iter_no_change: float = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        shuffle: bool = True,
        warm_start: bool = False,
        checkpoint: str | PathLike[str] | None = None,
        class_weight: dict[Any, Any] | str | None = None,
        pretrainer: Any = None,
        callbacks: list[Any] | tuple[Any, ...] | None = None,
        accelerator: Any = None,
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool | int = False,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.noise = noise
        self.noise_placement = noise_placement
        self.retain_rate = retain_rate
        self.noise_std = noise_std
        self.method = method
        self.n_probes = n_probes
        self.alpha = alpha
        self.unlabeled_discount = unlabeled_discount
        self.solver = solver
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.learning_rate_decay = learning_rate_decay
        self.momentum = momentum
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.shuffle = shuffle
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.class_weight = class_weight
        self.pretrainer = pretrainer
        self.callbacks = callbacks
        self.accelerator = accelerator
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @checks_parameters(skip_nested=False)
    def partial_fit(
        self,
        X: MatrixLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        X_unlabeled: MatrixLike | None = None,
    ) -> Self:
        """Train for one epoch on the given rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            A chunk of the training data.
        y : {array-like, sparse matrix} of shape (n_samples,) or (n_samples, n_labels)
            Class labels, or an indicator matrix of several labels per row.
        classes : array-like of shape (n_classes,), default=None
            All the classes that will ever occur; for an indicator matrix ``range(n_labels)``.
            Required in the first call.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights, relative to a row of weight 1.
        X_unlabeled : {array-like, sparse matrix} of shape (n_unlabeled, n_features), default=None
            Rows without a label that sharpen the penalty.

        Returns
        -------
        self : object
            The fitted estimator.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_margdrop import MarginalizedDropoutClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = MarginalizedDropoutClassifier(random_state=0)
        >>> for chunk in (slice(0, 150, 2), slice(1, 150, 2)):
        ...     clf = clf.partial_fit(X[chunk], y[chunk], classes=[0, 1, 2])
        >>> clf.n_iter_
        2
        """
        return self._partial_fit(X, y, sample_weight, X_unlabeled, classes)

    def _encode(self, y: Any, call: Call) -> tuple[Labels, np.ndarray]:
        return labels_or_indicators(y, call.dtype, call.known, call.classes)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
