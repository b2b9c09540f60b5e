"""Files that are written atomically."""

import os
import platform

import pytest

from pvt_mm.utils.files import atomic_write, check_writable, read_json, write_json


def test_a_write_replaces_the_file_at_its_end(tmp_path):
    path = tmp_path / 'folder/a.json'
    assert read_json(path) == {}
    write_json(path, dict(a=1))
    with atomic_write(path) as temporary:
        temporary.write_text('{"a": 2}')
        assert read_json(path) == dict(a=1)
    assert read_json(path) == dict(a=2)
    assert list(path.parent.iterdir()) == [path]


def test_two_processes_of_one_id_write_one_file(tmp_path, monkeypatch):
    """As in containers on two machines, whose processes often have id 1."""
    monkeypatch.setattr(os, 'getpid', lambda: 1)
    path = tmp_path / 'a.json'
    with atomic_write(path) as first:
        first.write_text('{"a": 1}')
        write_json(path, dict(a=2))
        assert read_json(path) == dict(a=2)
        assert first.read_text() == '{"a": 1}'
        monkeypatch.setattr(platform, 'node', lambda: 'node7')
        with atomic_write(path) as second:
            second.write_text('{}')
            assert second.name.startswith('.a.json.node7.1.')
    assert read_json(path) == dict(a=1)
    assert list(tmp_path.iterdir()) == [path]


def write_and_raise(path, error):
    path.write_text('half')
    raise error


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_only(error, tmp_path):
    path = tmp_path / 'a.json'
    write_json(path, dict(a=1))
    with pytest.raises(error), atomic_write(path) as temporary:
        write_and_raise(temporary, error)
    assert read_json(path) == dict(a=1)
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'folder').mkdir()
    for path, named in ((tmp_path / 'file/a', tmp_path / 'file'), (tmp_path / 'folder', tmp_path / 'folder')):
        with pytest.raises(OSError, match=f"'{named}'"):
            check_writable(path)
        with pytest.raises(OSError, match=f"'{named}'"), atomic_write(path) as temporary:
            temporary.write_text('text')
    check_writable(tmp_path / 'folder/a')
    assert [path.name for path in tmp_path.rglob('*')] == ['file', 'folder']
