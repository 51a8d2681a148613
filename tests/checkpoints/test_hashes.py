from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import pytest

from cvt_dense.checkpoints.hashes import compare_hash


def test_a_file_that_changed_since_its_first_download_is_a_warning_each_time(tmp_path: Path) -> None:
    target, new = tmp_path / 'a.pth', tmp_path / 'partial'
    new.write_bytes(b'first')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compare_hash('https://example.org/a.pth', new, target)
        compare_hash('https://example.org/a.pth', new, target)
    first = hashlib.sha256(b'first').hexdigest()
    assert (tmp_path / 'a.pth.sha256').read_text() == f'{first}  a.pth\n'
    new.write_bytes(b'second')
    for _ in range(2):
        with pytest.warns(UserWarning, match=f'^https://example.org/a.pth is not the file .* was {first}; delete .*'):
            compare_hash('https://example.org/a.pth', new, target)
    (tmp_path / 'a.pth.sha256').unlink()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compare_hash('https://example.org/a.pth', new, target)
