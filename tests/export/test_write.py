"""Writing a model to a file, and what keeps it from being written."""

import os
import stat
import sys

import pytest
from exported import (
    ESTIMATORS,
    fitted,
    session,
)
from sklearn.exceptions import NotFittedError

from sklearn_margdrop.export.converters import register_onnx_converters

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_not_fitted(cls, path):
    with pytest.raises(NotFittedError):
        cls().to_onnx(path)
    assert not path.exists()


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_without_onnx(cls, path, monkeypatch):
    model = fitted(cls)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        ImportError, match=r'needs the package onnx: pip install "sklearn-marg.*x\]"'
    ):
        model.to_onnx(path)
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(ImportError, match=r"needs the package skl2onnx: pip install"):
        register_onnx_converters()
    assert not path.exists()


@pytest.mark.parametrize("kind", [str, os.fsencode, lambda path: path])
def test_kinds_of_paths(kind, path):
    fitted(ESTIMATORS[0]).to_onnx(kind(path))
    assert session(str(path)).get_inputs()


@pytest.mark.parametrize("path", [None, 3, b"a".hex, object()])
def test_what_is_no_path(path):
    with pytest.raises(TypeError, match="PathLike"):
        fitted(ESTIMATORS[0]).to_onnx(path)


def test_unwritable_paths(tmp_path):
    model = fitted(ESTIMATORS[0])
    missing = tmp_path / "missing" / "model.onnx"
    with pytest.raises(FileNotFoundError, match=r"missing/model\.onnx"):
        model.to_onnx(missing)
    with pytest.raises(IsADirectoryError):
        model.to_onnx(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        model.to_onnx(tmp_path / "file" / "model.onnx")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write")
def test_files_that_may_not_be_written(path):
    path.write_bytes(b"good")
    path.chmod(stat.S_IREAD)
    with pytest.raises(PermissionError):
        fitted(ESTIMATORS[0]).to_onnx(path)
    assert path.read_bytes() == b"good"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_good_file_stays_when_writing_fails(error, path, monkeypatch):
    path.write_bytes(b"good")

    def fail(*args):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)) as caught:
        fitted(ESTIMATORS[0]).to_onnx(path)
    assert path.read_bytes() == b"good"
    assert os.listdir(path.parent) == [path.name]
    if isinstance(error, OSError):
        assert str(path) in str(caught.value)
