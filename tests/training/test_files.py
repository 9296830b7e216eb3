"""Files that are written whole or not at all."""

import os

from sklearn_margdrop.training.files import write_file


def test_written_files_are_as_others(tmp_path):
    """In their permissions, and where a link or a device stands for the file."""
    target, link = tmp_path / "target", tmp_path / "link"
    (tmp_path / "plain").touch()
    write_file(target, b"first")
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode
    link.symlink_to(target)
    write_file(link, b"second")
    assert link.is_symlink()
    assert target.read_bytes() == b"second"
    if os.path.exists(os.devnull):
        before = os.stat(os.devnull).st_mode
        write_file(os.devnull, b"nothing")
        assert os.stat(os.devnull).st_mode == before
