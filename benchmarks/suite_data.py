"""The varied data sets of `quality/out_of_the_box.py`, ready to fit and to score on.

What scikit-learn bundles or generates, and the images, texts and counts of `image_data.py` and
`text_data.py`.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn import datasets
from sklearn.compose import make_column_transformer
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from benchmarks import image_data, text_data

#: At most so many rows are scored on.
N_TEST = 5000


class Data(NamedTuple):
    """A data set and how much of it is learnt from.

    Attributes
    ----------
    kind : {"label", "normal", "poisson"}
        What is predicted: a label, a number or a count.
    rows : callable
        ``rows()`` returns all rows, as an array, a sparse array or texts, and the targets.
    n_train : int
    features : callable, default=StandardScaler
        ``features()`` is a transformer of the rows that is fitted to the training rows.
    local : bool, default=False
        It is read from the folder ``MARGDROP_DATA`` and is not available without it.
    sparse : bool, default=False
        The features are a sparse array.
    """

    kind: str
    rows: Callable
    n_train: int
    features: Callable = StandardScaler
    local: bool = False
    sparse: bool = False


def load(name, seed):
    """Rows to learn from and at most 5000 others, drawn by the seed.

    Returns
    -------
    X, y, X_test, y_test : ndarray or csr_array of shape (n, D), ndarray of shape (n,)
        Labels are 0 to K - 1. Numbers have mean 0 and variance 1 in the training rows.
    kind : {"label", "normal", "poisson"}
    """
    data = DATA[name]
    rows, y = data.rows()
    if data.kind == "label":
        y = np.unique(y, return_inverse=True)[1]
    index, index_test = train_test_split(
        np.arange(len(y)),
        train_size=data.n_train,
        test_size=min(N_TEST, len(y) - data.n_train),
        stratify=y if data.kind == "label" else None,
        random_state=seed,
    )
    features = data.features()
    X, X_test = (
        features.fit_transform(_take(rows, index)),
        features.transform(_take(rows, index_test)),
    )
    y, y_test = y[index], y[index_test]
    if data.kind == "normal":
        y, y_test = (y - y.mean()) / y.std(), (y_test - y.mean()) / y.std()
    return X, y, X_test, y_test, data.kind


def available(large=False):
    """Names of the data sets that can be loaded here; the large one only if it is wanted."""
    return [
        name
        for name, data in DATA.items()
        if (text_data.FOLDER or not data.local) and (large or name != LARGE)
    ]


def _take(rows, index):
    return [rows[i] for i in index] if isinstance(rows, list) else rows[index]


def _images(load):
    """All rows of images that come in two parts."""
    X, y, X_test, y_test = load()
    return np.concatenate([X, X_test]), np.concatenate([y, y_test])


@lru_cache
def _mnist():
    return _images(image_data.mnist)


@lru_cache
def _newsgroups():
    return text_data.newsgroups(NEWSGROUPS)


@lru_cache
def _imdb():
    texts, y, texts_test, y_test, _ = text_data.imdb()
    return [*texts, *texts_test], np.concatenate([y, y_test])


def _bicycles(log):
    X, y = text_data.bike_sharing()
    return X.toarray(), np.log(y) if log else y


def _svd(n_components):
    """Dense features of texts."""
    words = TfidfVectorizer(max_features=20_000, sublinear_tf=True)
    return make_pipeline(words, TruncatedSVD(n_components, random_state=0), StandardScaler())


def _unbalanced():
    """A dense table like ijcnn1: 22 columns, of which 15 are needed, and a label in ten."""
    return datasets.make_classification(
        15_000,
        n_features=22,
        n_informative=15,
        n_redundant=0,
        n_clusters_per_class=4,
        class_sep=0.7,
        weights=[0.9],
        flip_y=0,
        random_state=0,
    )


def _twenty_classes():
    return datasets.make_classification(
        8000, n_features=30, n_informative=12, n_classes=20, class_sep=1.5, random_state=0
    )


def _census():
    """Numbers, categories and the labels of a logistic model in which they interact.

    Some 15 % of the labels are noise that no model can predict. The categories are the last
    eight columns.
    """
    rng, n_rows = np.random.default_rng(0), 11_000
    numbers = rng.normal(size=(n_rows, N_NUMBERS))
    sizes = np.array([2, 2, 5, 6, 7, 9, 16, 40])
    categories = np.minimum(rng.geometric(2 / (sizes + 1), (n_rows, len(sizes))), sizes) - 1
    score = numbers @ rng.normal(size=N_NUMBERS)
    score += numbers[:, 0] * numbers[:, 1] - numbers[:, 2] ** 2
    for category, size in zip(categories.T, sizes, strict=True):
        offsets, slopes = rng.normal(size=(2, size))
        score += offsets[category] + slopes[category] * numbers[:, rng.integers(N_NUMBERS)]
    score = NOISE * (score - np.quantile(score, 0.7))
    return np.hstack([numbers, categories]), rng.random(n_rows) < 1 / (1 + np.exp(-score))


def _census_features():
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_column_transformer(
        (StandardScaler(), slice(N_NUMBERS)), remainder=encoder, sparse_threshold=0
    )


def _rare_features():
    """Binary features, each in fewer than 1 % of the rows, and the labels of a logistic model."""
    rng = np.random.default_rng(0)
    frequencies = 0.01 / np.arange(1, 4001) ** 0.15
    X = rng.random((10_000, len(frequencies)), dtype=np.float32) < 0.9 * frequencies
    score = X @ (1.5 * rng.normal(size=len(frequencies)))
    return csr_array(X.astype(float)), rng.random(len(X)) < 1 / (1 + np.exp(-score))


def _generated(make, *args, **options):
    return lambda: make(*args, random_state=0, **options)


_words = partial(text_data.vectorizer, min_df=2, max_features=20_000)
_hashes = partial(
    HashingVectorizer, n_features=2**12, binary=True, norm=None, alternate_sign=False
)
_tfidf = partial(TfidfVectorizer, max_features=20_000, sublinear_tf=True)
_bundled = partial(partial, return_X_y=True)
_digits = partial(_images, image_data.digits)

LARGE = "MNIST, 50,000 rows"
N_NUMBERS = 6
#: The scale of the log odds, by which 15 % of the labels differ from the likelier one.
NOISE = 0.7
NEWSGROUPS = (
    "alt.atheism",
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
    "rec.autos",
    "rec.motorcycles",
    "rec.sport.baseball",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "soc.religion.christian",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "talk.religion.misc",
)

DATA = {
    "iris": Data("label", _bundled(datasets.load_iris), 90),
    "wine": Data("label", _bundled(datasets.load_wine), 120),
    "breast cancer": Data("label", _bundled(datasets.load_breast_cancer), 284),
    "digits": Data("label", _digits, 898, FunctionTransformer),
    "MNIST, 1000 rows": Data("label", _mnist, 1000, FunctionTransformer),
    "MNIST, 5000 rows": Data("label", _mnist, 5000, FunctionTransformer),
    LARGE: Data("label", _mnist, 50_000, FunctionTransformer),
    "newsgroups, TF-IDF": Data("label", _newsgroups, 4000, _tfidf, sparse=True),
    "newsgroups, SVD": Data("label", _newsgroups, 6000, partial(_svd, 100)),
    "RT, hashed": Data("label", partial(text_data.load, "RT"), 4000, _hashes, True, True),
    "Subj, words": Data("label", partial(text_data.load, "Subj"), 3000, _words, True, True),
    "IMDB-2k, words": Data("label", partial(text_data.load, "IMDB-2k"), 1400, _words, True, True),
    "IMDB, SVD": Data("label", _imdb, 5000, partial(_svd, 200), True),
    "rare features": Data("label", _rare_features, 3000, FunctionTransformer, sparse=True),
    "moons": Data("label", _generated(datasets.make_moons, 5500, noise=0.3), 500),
    "ten squares": Data("label", _generated(datasets.make_hastie_10_2, 10_000), 5000),
    "shells": Data(
        "label",
        _generated(datasets.make_gaussian_quantiles, n_samples=8000, n_features=10, n_classes=3),
        3000,
    ),
    "unbalanced": Data("label", _unbalanced, 10_000),
    "twenty classes": Data("label", _twenty_classes, 4000),
    "census": Data("label", _census, 6000, _census_features),
    "diabetes": Data("normal", _bundled(datasets.load_diabetes), 221),
    "Friedman 1": Data("normal", _generated(datasets.make_friedman1, 6000, noise=1.0), 1000),
    "bicycles, logarithms": Data("normal", partial(_bicycles, log=True), 5000, local=True),
    "bicycles": Data("poisson", partial(_bicycles, log=False), 5000, local=True),
    "doctor visits": Data("poisson", text_data.doctor_visits, 5000, local=True),
}
