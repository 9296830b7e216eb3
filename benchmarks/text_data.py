"""Real text and counts for the benchmarks, from scikit-learn's fetchers or a local folder.

Where the environment variable ``MARGDROP_DATA`` names a folder, all of these are read from it:
``20news_bydate``, ``imdb_maas2011``, ``rt_polarity``, ``subj``, ``imdb2k_polarity_v2``,
``bike_sharing_hour`` and ``randhie``. Without it there are the newsgroups, which scikit-learn
downloads.
"""

import csv
import gzip
import io
import json
import lzma
import os
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import fetch_20newsgroups
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import OneHotEncoder

#: The folder of local data, or None.
FOLDER = Path(os.environ["MARGDROP_DATA"]) if "MARGDROP_DATA" in os.environ else None

PAIRS = {
    "XGraph": ("comp.graphics", "comp.windows.x"),
    "BbCrypt": ("rec.sport.baseball", "sci.crypt"),
    "AthR": ("alt.atheism", "talk.religion.misc"),
}


def vectorizer(token_pattern=r"(?u)\b\w+\b|[!?]", **options):
    """Binary bags of words, of which "!" and "?" are two."""
    return CountVectorizer(binary=True, dtype=np.float64, token_pattern=token_pattern, **options)


def available():
    """Names of the text data sets that can be loaded here."""
    return ["Subj", "RT", "IMDB-2k", *PAIRS] if FOLDER else list(PAIRS)


def load(name):
    """Texts, and labels 0 or 1."""
    if name in PAIRS:
        texts, groups = newsgroups(PAIRS[name])
        return texts, (groups == PAIRS[name][1]).astype(int)
    return {"Subj": _subj, "RT": _rt, "IMDB-2k": _imdb2k}[name]()


def newsgroups(groups):
    """The posts of some newsgroups, with their headers, and the group of each."""
    if FOLDER is None:
        bunch = fetch_20newsgroups(subset="all", categories=groups, shuffle=False)
        return bunch.data, np.array(bunch.target_names)[bunch.target]
    lines = [x for part in ("train", "test") for x in _lines(f"20news_bydate/{part}.jsonl.xz")]
    lines = [x for x in lines if x["group"] in groups]
    return [x["text"] for x in lines], np.array([x["group"] for x in lines])


def imdb():
    """Texts and labels of the training and of the test reviews, and the unlabelled texts."""
    parts = {}
    for part in ("train", "test"):
        reviews = [_lines(f"imdb_maas2011/{part}_{kind}.jsonl.xz") for kind in ("neg", "pos")]
        texts = [x["text"] for kind in reviews for x in kind]
        labels = np.repeat([0, 1], [len(kind) for kind in reviews])
        parts[part] = texts, labels
    unlabeled = [x["text"] for x in _lines("imdb_maas2011/train_unsup.jsonl.xz")]
    return *parts["train"], *parts["test"], unlabeled


def bike_sharing():
    """One-hot encoded hours, days and weather, and the hourly count of rented bicycles."""
    rows = _table("bike_sharing_hour/hour.csv.gz")
    kinds = ["season", "yr", "mnth", "hr", "holiday", "weekday", "workingday", "weathersit"]
    X = OneHotEncoder().fit_transform([[row[kind] for kind in kinds] for row in rows])
    return X, np.array([float(row["cnt"]) for row in rows])


def doctor_visits():
    """Standardised characteristics of insured people, and their visits to a doctor."""
    rows = _table("randhie/randhie.csv.gz")
    X = np.array([[float(v) for k, v in row.items() if k != "mdvis"] for row in rows])
    return (X - X.mean(0)) / X.std(0), np.array([float(row["mdvis"]) for row in rows])


def _subj():
    return _two_files("subj/subjectivity.zip", "quote.tok", "plot.tok")


def _rt():
    return _two_files("rt_polarity/sentence_polarity.zip", ".neg", ".pos")


def _two_files(path, *marks):
    texts, labels = [], []
    for name, text in _unzip(path):
        for label, mark in enumerate(marks):
            if mark in name:
                lines = [line for line in text.split("\n") if line.strip()]
                texts += lines
                labels += [label] * len(lines)
    return texts, np.array(labels)


def _imdb2k():
    files = _unzip("imdb2k_polarity_v2/movie_reviews.zip")
    files = [(name, text) for name, text in files if "/neg/" in name or "/pos/" in name]
    return [text for _, text in files], np.array([int("/pos/" in name) for name, _ in files])


def _unzip(path):
    with zipfile.ZipFile(FOLDER / path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        return [(name, archive.read(name).decode("latin-1")) for name in names]


def _lines(path):
    # Some texts hold line separators other than the newline.
    text = lzma.decompress((FOLDER / path).read_bytes()).decode()
    return [json.loads(line) for line in text.split("\n") if line]


def _table(path):
    with gzip.open(FOLDER / path) as file:
        return list(csv.DictReader(io.TextIOWrapper(file)))
