"""The generalised linear model for class labels."""

from __future__ import annotations

from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.metaestimators import available_if

from sklearn_margdrop.estimators.glm import BaseMarginalizedGLM, is_online
from sklearn_margdrop.estimators.predictors import BaseMarginalizedClassifier
from sklearn_margdrop.estimators.sklearn_private import StrOptions, checks_parameters
from sklearn_margdrop.estimators.validation import typed
from sklearn_margdrop.numerics.csr import MatrixLike


class MarginalizedDropoutGLMClassifier(BaseMarginalizedClassifier, BaseMarginalizedGLM):
    r"""Logistic regression regularised by marginalised dropout.

    The expected effect of dropping features at random is a penalty that adapts to the data: an
    L2 penalty scaled by the Fisher information, to second order. On sparse, high-dimensional
    data such as text it predicts better than the plain L2 penalty of `LogisticRegression`, at
    about the same cost, and learns from unlabelled rows. Minimised is ::

        mean over samples of (log loss + R) + alpha / 2 * ||coef||^2

    with one logit for two classes and one for each of more. Sparse `X` is never made dense. See
    the :ref:`user guide <glm>`.

    Parameters
    ----------
    noise : str, default="dropout"
        Name of the noise model that is marginalised. `"dropout"` multiplies a feature by
        Bernoulli(q)/q, with q the `retain_rate`; `"gaussian"` adds a normal with standard
        deviation `noise_std`. Both leave the mean of a feature as it is.

    retain_rate : float or "auto", default="auto"
        Probability q in (0, 1] that dropout keeps a feature; 1 is no noise. With `"auto"`,
        (1 - q) / q is half the number of features over the number of rows in which the typical
        feature occurs, less where features are far from zero, and at most 1: q is 0.5 for words,
        and near 1 for dense tables of many rows. The first chunk of a stream decides, as a part
        of 10,000 rows.

    noise_std : float, default=0.1
        Standard deviation of gaussian noise, in the units of the features. 0 is no noise.

    method : {"moments", "quadratic", "sampling"}, default="moments"
        How the expectation over the noise is evaluated. `"moments"` is the expectation of
        the loss itself: of a gaussian with the mean and variance of the noisy linear predictor
        (F), and exact where it has a closed form. `"quadratic"` is its second order, an L2
        penalty scaled by the Fisher information (W). `"sampling"` draws the noise: ordinary
        dropout, for online solvers.

    alpha : float or "auto", default="auto"
        Strength of the L2 penalty ``alpha / 2 * ||coef||^2``, added to the mean loss over the
        samples. (`LogisticRegression`'s ``C`` is ``1 / (n_samples * alpha)``.) It keeps the
        weights of features small that no labelled row holds.
        `"auto"` is in the units of the features: the median of their variances, each over
        the share of rows in which the feature is not zero, times 1e-4, or times
        ``(1 - v) / n_samples`` if that is more, with v = (1 - q) / q of dropout. Without noise it
        is that of ``LogisticRegression(C=1)`` on scaled features.

    fit_intercept : bool, default=True
        Whether to fit an intercept, which is neither noised nor penalised.

    solver : {"lbfgs", "sgd", "adagrad", "fisher"}, default="lbfgs"
        `"lbfgs"` takes all rows at once. It starts from the curvature of the objective, and of
        dense `X` from the correlations of the features as well, so that it needs no scaling;
        `X` may be a Dask array or frame, whose rows stay where they lie (:ref:`clusters`). The
        online solvers take batches and have a `partial_fit`: `"sgd"`, `"adagrad"`, and
        `"fisher"`, the dropout-Fisher update of W, which divides the gradient by the Fisher
        information of the rows seen so far.

    max_iter : int, default=500
        Largest number of iterations of L-BFGS, or of epochs of an online solver.

    tol : float, default=5e-3
        L-BFGS ends where the norm of the gradient is at most `tol`, in coordinates in which the
        curvature is about one, so that half its square is about the distance of the objective
        from its minimum, in nats, or in units of the loss of the best constant if that is less. An
        online solver ends when the objective goes for more than 5
        epochs without improving by more than ``tol / 10`` on its best. Where a fit gets stuck
        before, it warns.

    n_restarts : int, default=0
        Further fits from random coefficients, of which the best is kept: the penalty need not
        be convex. See `restart_objectives_`. A warm start and `partial_fit` make none.

    learning_rate_init : float or "auto", default="auto"
        Step size of an online solver. `"auto"` is 0.1 for `"sgd"`, over the curvature of the
        family where that is above 1, and 0.1 for `"adagrad"`. For `"fisher"` it is 1, with the
        accumulated information starting from that of as many batches as a row holds features; a
        number is the step size of W's update as it stands.

    batch_size : int, default=100
        Largest number of rows in a batch of an online solver; the rows are cut into batches of
        equal size.

    unlabeled_discount : float or "auto", default="auto"
        Weight d of an unlabelled row relative to a labelled one in the penalty, which is
        ``(R + d * R_unlabeled) / (n + d * m)`` for n labelled and m unlabelled rows (W). Too large
        a weight rewards confidence about the unlabelled rows, right or wrong. With `"auto"`,
        held-out labelled rows choose from those with which unlabelled rows make up 0, 3, 10 or
        30 % of the penalty; with online solvers and Dask collections it is 3 %.

    class_weight : dict or "balanced", default=None
        Weights of the classes, ``{label: weight}``; `"balanced"` weights them inversely to
        their frequency. Multiplies `sample_weight`.

    warm_start : bool, default=False
        Whether `fit` goes on from where the previous call ended.

    checkpoint : str or path-like, default=None
        Folder that keeps the state of `fit` at the end of each iteration. The same fit started
        again goes on from there, and ends at the same bits as one that was never interrupted;
        once it has ended, at once. ``"{fit}"`` in the path stands for a digest of the
        parameters and the data, so that the fits of a search have a folder each. Nothing in it
        is ever executed. See :ref:`checkpoints`.

    device : str or torch.device, default="auto"
        Where to compute: `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`, ... `"auto"` is the CUDA
        GPU if there is one, else the CPU; the workers of a search take several GPUs in turn.

    random_state : int, RandomState instance or None, default=None
        Seeds the order of the rows, the noise and the restarts. L-BFGS without restarts is
        deterministic.

    verbose : bool or int, default=False
        Whether to print the objective, penalty and seconds of each iteration.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, sorted.

    coef_ : ndarray of shape (1, n_features) or (n_classes, n_features)
        Coefficients of the features, as in `LogisticRegression`.

    intercept_ : ndarray of shape (1,) or (n_classes,)
        Intercepts; 0 without `fit_intercept`.

    retain_rate_ : float or None
        The retain rate of the fit; None for noise that has none.

    alpha_ : float
        The strength of L2 of the fit.

    unlabeled_discount_ : float or None
        The discount of unlabelled rows in the last call; None where there were none.

    n_iter_ : int
        Iterations run, over all calls with `warm_start` or `partial_fit`.

    loss_curve_ : list of float
        Objective (loss + penalty + L2) after each iteration of L-BFGS, in nats per sample; for
        an online solver its mean over the batches of each epoch.

    objective_ : float
        The last of them.

    penalty_ : float
        The noise penalty's part of it; nan where ``method="sampling"`` noises the loss itself.

    fisher_diagonal_ : ndarray of the shape of `coef_`
        Fisher information of each coefficient, the mean of :math:`A''(\eta) x_j^2` over the rows
        that the penalty takes its mean over: the scale that the data give each coefficient. With
        dropout and ``method="quadratic"``, and one column of coefficients, `penalty_` is
        ``(1 - q) / (2 * q) * (fisher_diagonal_ * coef_**2).sum()`` (W). After `partial_fit`, the
        mean over all the rows seen, each at the coefficients of its time.

    restart_objectives_ : ndarray of shape (n_fits,)
        The objective that the fit, and each restart, ended at; inf where it failed.

    net_ : skorch.NeuralNet
        The fitted net: ``net_.module_`` is the torch module, ``net_.history`` the record.
        Predictions are made of `coef_` and `intercept_`, not of its weights.

    n_features_in_ : int
        Number of features seen during `fit`.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features seen during `fit`, where they are all strings.

    See Also
    --------
    MarginalizedDropoutGLMRegressor : The same for real-valued targets and counts.
    MarginalizedDropoutClassifier : The same with hidden layers.
    sklearn.linear_model.LogisticRegression : With a plain L2 penalty.

    References
    ----------
    .. [W] S. Wager, S. Wang, P. Liang, "Dropout training as adaptive regularization",
       NIPS 2013.
    .. [F] S. Wang, C. Manning, "Fast dropout training", ICML 2013.

    Examples
    --------
    >>> from sklearn.feature_extraction.text import CountVectorizer
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn_margdrop import MarginalizedDropoutGLMClassifier
    >>> texts = ["a good film", "good fun", "a bad film", "bad, and no fun"]
    >>> clf = make_pipeline(CountVectorizer(binary=True), MarginalizedDropoutGLMClassifier())
    >>> clf.fit(texts, [1, 1, 0, 0]).predict(["a good one", "no"])
    array([1, 0])
    """

    intercept_: NDArray[Any]

    _parameter_constraints: dict[str, Any] = {
        **BaseMarginalizedGLM._parameter_constraints,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        *,
        noise: str = "dropout",
        retain_rate: float | str = "auto",
        noise_std: float = 0.1,
        method: str = "moments",
        alpha: float | str = "auto",
        fit_intercept: bool = True,
        solver: str = "lbfgs",
        max_iter: int = 500,
        tol: float = 5e-3,
        n_restarts: int = 0,
        learning_rate_init: float | str = "auto",
        batch_size: int = 100,
        unlabeled_discount: float | str = "auto",
        class_weight: dict[Any, Any] | str | None = None,
        warm_start: bool = False,
        checkpoint: str | PathLike[str] | None = None,
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool | int = False,
    ):
        self.noise = noise
        self.retain_rate = retain_rate
        self.noise_std = noise_std
        self.method = method
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.n_restarts = n_restarts
        self.learning_rate_init = learning_rate_init
        self.batch_size = batch_size
        self.unlabeled_discount = unlabeled_discount
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @typed(available_if(is_online))
    @checks_parameters(skip_nested=True)
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
        y : array-like of shape (n_samples,)
            Class labels.
        classes : array-like of shape (n_classes,), default=None
            All the classes that will ever occur. Required in the first call.
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
        >>> from sklearn_margdrop import MarginalizedDropoutGLMClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = MarginalizedDropoutGLMClassifier(solver="adagrad", random_state=0)
        >>> for chunk in (slice(0, 150, 2), slice(1, 150, 2)):
        ...     clf = clf.partial_fit(X[chunk], y[chunk], classes=[0, 1, 2])
        >>> clf.n_iter_
        2
        """
        return self._partial_fit(X, y, sample_weight, X_unlabeled, classes)
