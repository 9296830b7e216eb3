"""What `alpha` and `retain_rate` of "auto" stand for in generalised linear models."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: L2 for features of zeros and ones, where dropout does most.
_LEAST_ALPHA = 1e-4


class ColumnSums(NamedTuple):
    """What the strengths depend on, for each feature.

    Parameters
    ----------
    occurrences : ndarray of shape (n_features,)
        In how many rows it is not zero.
    about_zero, about_mean : ndarray of shape (n_features,)
        The sums of its squares about zero, which dropout multiplies, and about its mean, which an
        intercept leaves to be predicted from. Without an intercept both are the first.
    """

    occurrences: NDArray[np.float64]
    about_zero: NDArray[np.float64]
    about_mean: NDArray[np.float64]


def auto_retain_rate(sums: ColumnSums) -> float:
    r"""The retain rate of as much dropout as the data need.

    The variance (1 - q) / q of the noise is half the number of features over the number of rows
    in which the typical feature occurs, and at most one. So words have q = 1/2: there are about as
    many as texts, and most are rare. For a dense table the variance is half the ratio of columns
    to rows: little where a linear model hardly overfits. Dropout grows with the distance from
    zero: it is divided by the mean ratio of the squares about zero to those about the mean.

    Parameters
    ----------
    sums : ColumnSums

    Returns
    -------
    float
        In [0.5, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_margdrop.estimators.scales import ColumnSums, auto_retain_rate
    >>> occurrences, squares = np.full(10, 95.0), np.ones(10)
    >>> round(auto_retain_rate(ColumnSums(occurrences, squares, squares)), 3)
    0.95
    >>> occurrences = np.array([300.0, 20.0, 2.0, 1.0, 1.0])
    >>> auto_retain_rate(ColumnSums(occurrences, occurrences, occurrences))
    0.5
    """
    varying = sums.about_mean > 0
    if not varying.any():
        return 0.5
    typical = np.median(sums.occurrences[varying])
    distance = np.mean(sums.about_zero[varying] / sums.about_mean[varying])
    return float(1 / (1 + min(1.0, varying.sum() / (2 * typical * distance))))


def auto_alpha(sums: ColumnSums, n_rows: float, noise_variance: float) -> float:
    """The strength of L2, in the units of the features, for what dropout leaves to do.

    Without noise it is that of `LogisticRegression`, 1 / n, and with a retain rate of 1/2 it is
    1e-4, both for standardised features and for rare ones that are zero or one. For others it is
    multiplied by the median of their squares about the mean, for each row in which they are not
    zero.

    Parameters
    ----------
    sums : ColumnSums
    n_rows : float
    noise_variance : float
        (1 - q) / q of dropout; zero without it.

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_margdrop.estimators.scales import ColumnSums, auto_alpha
    >>> words = np.array([5.0, 1.0])
    >>> auto_alpha(ColumnSums(words, words, words), 1000, 1.0)
    0.0001
    >>> squares = np.array([2000.0])
    >>> auto_alpha(ColumnSums(np.array([500.0]), squares, squares), 500, 0.0)
    0.008
    """
    # Where nothing varies, as in the first row of a stream, the distance from zero is the unit.
    squares = sums.about_mean if sums.about_mean.any() else sums.about_zero
    present = squares > 0
    unit = np.median(squares[present] / sums.occurrences[present]) if present.any() else 1.0
    return float(unit * max(_LEAST_ALPHA, max(0.0, 1 - noise_variance) / n_rows))
