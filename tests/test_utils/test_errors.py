"""Errors that a command reports as one line."""

import errno
from pathlib import Path

import pytest

from pvt_mm.utils.errors import CheckpointError, InputError, command, config_errors, import_errors
from pvt_mm.utils.text import shorten


def run(error: BaseException | None) -> int:
    @command
    def main(argv=None):
        if error:
            raise error

    return main()


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (InputError('two\nlines'), 'two lines'),
        (CheckpointError('a.pth is damaged'), 'a.pth is damaged'),
        (FileNotFoundError(errno.ENOENT, 'No such file', 'a.txt'), 'a.txt: No such file'),
        (OSError(errno.ENOSPC, 'No space left on device'), 'No space left on device'),
        (
            InputError(
                'Caught InputError in DataLoader worker process 0.\nTraceback\n  File\nx.InputError: it is bad\n'
            ),
            'it is bad',
        ),
    ],
)
def test_bad_input_is_one_line(error, line, capsys, monkeypatch):
    assert run(error) == 2
    assert capsys.readouterr().err == f'error: {line}\n'
    monkeypatch.setenv('PVT_MM_DEBUG', '1')
    with pytest.raises(type(error)):
        run(error)


@pytest.mark.parametrize('error', [OSError('no file'), ValueError('a bug'), SyntaxError('a bug')])
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run(error)


def test_interrupts_and_success(capsys):
    hidden = SyntaxError('MMEngine formats a config')
    hidden.__context__ = KeyboardInterrupt()
    for error, code in ((KeyboardInterrupt(), 130), (hidden, 130), (None, 0)):
        assert run(error) == code
    assert capsys.readouterr().err == 'interrupted\n' * 2


def test_file_names_that_are_too_long_or_not_text(capsys):
    @command
    def main(argv):
        print(argv[0])
        return Path(argv[0]).is_dir()

    assert main(['x' * 300]) == 2
    assert capsys.readouterr().err == f'error: {"x" * 300}: File name too long\n'
    assert main(['\udcff']) == 0


def test_errors_of_a_config():
    for error in (KeyError('a'), IndexError('a'), TypeError('a'), AssertionError('a'), FileNotFoundError('a')):
        with pytest.raises(InputError, match=rf"^it fails: {type(error).__name__}: '?a'?$"), config_errors('it fails'):
            raise error
    with pytest.raises(CheckpointError, match=r'^it fails: a is damaged$'), config_errors('it fails'):
        raise CheckpointError('a is damaged')
    with pytest.raises(RuntimeError, match='out of memory'), config_errors('it fails'):
        raise RuntimeError('out of memory')
    with pytest.raises(InputError, match='RecursionError'), config_errors('it', RecursionError):
        raise RecursionError


def test_a_failed_import_of_something_optional():
    message = r"^plots need it: RuntimeError: for another torch; pip install 'pvt_mm\[plots\]'$"
    with pytest.raises(InputError, match=message), import_errors('plots need it', 'pvt_mm[plots]'):
        raise RuntimeError('for another torch')


def test_long_lists_are_shortened():
    assert shorten([]) == ''
    assert shorten('abcde') == 'a, b, c, d, e'
    assert shorten(map(str, range(9))) == '0, 1, 2, 3, 4 and 4 more'
    assert shorten(['a\nb', 'c'], limit=1) == 'a b and 1 more'
    assert shorten(['c' * 300]) == 'c' * 200
