"""Errors that a command reports as one line, with exit code 2."""

import contextlib
import errno
import functools
import inspect
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

# What building a part of a config raises where its type or an argument is wrong. Running out of memory is not included.
WRONG_CONFIG = (AssertionError, AttributeError, ImportError, LookupError, TypeError, ValueError, OSError)


class InputError(ValueError):
    """The user's input is invalid. The message is one line: what is wrong, where, and what to do."""


class CheckpointError(InputError):
    """A checkpoint cannot be read, is damaged, contains no PVT, or does not fit the model."""


@contextlib.contextmanager
def config_errors(what: str, *more: type[Exception]) -> Iterator[None]:
    """Turns errors from building a part of a config, and those of the types ``more``, into an InputError.

    Raises:
        InputError: ``{what}: {type of the error}: {its message}``; without the type if it is an InputError itself.
    """
    try:
        yield
    except InputError as error:
        raise type(error)(f'{what}: {error}') from error
    except (*WRONG_CONFIG, *more) as error:
        raise InputError(f'{what}: {type(error).__name__}: {error}{_arguments(error)}') from error


def _arguments(error: BaseException) -> str:
    """Returns '; CLASS takes ...' where an error says that a class does not take an argument, and ''."""
    name = re.match(r'(\w+)\.__init__\(\) got an unexpected keyword argument', str(error))
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not name or not frames:
        return ''
    for kind in filter(inspect.isclass, frames[-1].f_locals.values()):  # of the caller
        for base in kind.__mro__:
            if base.__qualname__ == name[1]:
                return f'; {name[1]} takes {", ".join(inspect.signature(base).parameters)}'
    return ''


@contextlib.contextmanager
def import_errors(what: str, package: str) -> Iterator[None]:
    """Turns what a failed import of something optional raises into an InputError that says how to install it.

    ``what`` needs it, and ``package`` is what pip installs, such as an extra of setup.py: ``pvt_mm[onnx]``.
    """
    try:
        yield
    except Exception as error:  # packages for another PyTorch raise anything
        raise InputError(f"{what}: {type(error).__name__}: {error}; pip install '{package}'") from error


def command(main: Callable) -> Callable[[Sequence[str] | None], int]:
    """Makes a tool's ``main(argv=None)`` print an :class:`InputError` as one line on stderr and return 2.

    So is an OSError that names a file or says that the disk is full or read-only. With ``PVT_MM_DEBUG=1`` in the
    environment the traceback is shown instead. Ctrl-C returns 130, as in shells.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors='backslashreplace')  # for file names that are not valid text
        try:
            return main(argv) or 0
        except (InputError, OSError) as error:
            message = _message(error)
            if message is None or os.environ.get('PVT_MM_DEBUG') == '1':
                raise
            sys.stderr.write(f'error: {" ".join(message.split())}\n')
            return 2
        except (KeyboardInterrupt, SyntaxError) as error:
            # MMEngine turns any exception while it formats a config, Ctrl-C included, into a SyntaxError.
            if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
                raise
            sys.stderr.write('interrupted\n')
            return 130

    return run


def is_port_in_use(error: RuntimeError) -> bool:
    """Returns whether an error of ``torch.distributed`` says that its port is taken."""
    return bool(re.search('EADDRINUSE|address already in use', str(error), re.IGNORECASE))


def _message(error: InputError | OSError) -> str | None:
    """Returns what to tell the user of an error, or None if it is not about the user's files."""
    if isinstance(error, InputError):
        in_a_worker = str(error).startswith('Caught InputError in DataLoader worker')  # followed by its traceback
        return str(error).rsplit('InputError: ', 1)[-1] if in_a_worker else str(error)
    if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    return ': '.join(str(part) for part in (error.filename, error.strerror) if part is not None)
