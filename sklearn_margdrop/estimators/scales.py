"""What `alpha` and `retain_rate` of "auto" stand for in generalised linear models."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: L2 for features of zeros and ones, where dropout does most.
_LEAST_ALPHA = 1e-4


def auto_retain_rate(occurrences: NDArray[np.float64]) -> float:
    r"""The retain rate of as much dropout as the data need.

    The variance (1 - q) / q of the noise is half the number of features over the number of rows
    in which the typical feature occurs, and at most one. So words have q = 1/2: there are about as
    many as texts, and most are rare. For a dense table the variance is half the ratio of columns
    to rows: little where a linear model hardly overfits.

    Parameters
    ----------
    occurrences : ndarray of shape (n_features,)
        In how many rows each feature is not zero.

    Returns
    -------
    float
        In [0.5, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_margdrop.estimators.scales import auto_retain_rate
    >>> auto_retain_rate(np.full(10, 95.0))  # 10 columns, 95 rows
    0.95
    >>> auto_retain_rate(np.array([300.0, 20.0, 2.0, 1.0, 1.0]))
    0.5
    """
    occurring = occurrences[occurrences > 0]
    if not len(occurring):
        return 0.5
    return float(1 / (1 + min(1.0, len(occurring) / (2 * np.median(occurring)))))


def auto_alpha(
    occurrences: NDArray[np.float64],
    squares: NDArray[np.float64],
    n_rows: float,
    noise_variance: float,
) -> float:
    """The strength of L2, in the units of the features, for what dropout leaves to do.

    Without noise it is that of `LogisticRegression`, 1 / n, and with a retain rate of 1/2 it is
    1e-4, both for standardised features and for rare ones that are zero or one. For others it is
    multiplied by the harmonic mean of their squares about the mean, for each row in which they are
    not zero.

    Parameters
    ----------
    occurrences : ndarray of shape (n_features,)
        In how many rows each feature is not zero.
    squares : ndarray of shape (n_features,)
        The sums of the squares of each feature about its mean, or about zero without an intercept.
    n_rows : float
    noise_variance : float
        (1 - q) / q of dropout; zero without it.

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_margdrop.estimators.scales import auto_alpha
    >>> auto_alpha(np.array([5.0, 1.0]), np.array([5.0, 1.0]), 1000, 1.0)
    0.0001
    >>> auto_alpha(np.array([500.0]), np.array([2000.0]), 500, 0.0)
    0.008
    """
    present = (occurrences > 0) & (squares > 0)
    unit = 1.0
    if present.any():
        # The smallest of the mean squares is taken out, for their reciprocals may overflow.
        mean_squares = squares[present] / occurrences[present]
        least = mean_squares.min()
        unit = float(least / np.mean(least / mean_squares))
    return unit * max(_LEAST_ALPHA, max(0.0, 1 - noise_variance) / n_rows)
