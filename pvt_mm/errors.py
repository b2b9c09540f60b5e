"""Errors that a command answers with one line and exit code 2."""

import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence

# What building a part of a config raises where its type or an argument is wrong. A lack of memory is none of these.
WRONG_CONFIG = (AssertionError, AttributeError, ImportError, KeyError, TypeError, ValueError, FileNotFoundError)


class InputError(ValueError):
    """What the user gave cannot be worked with. The message is one line: what is wrong, where, and what to do."""


class CheckpointError(InputError):
    """A checkpoint cannot be read, is damaged, holds no PVT, or does not fit the model."""


def command(main: Callable) -> Callable[[Sequence[str] | None], int]:
    """Makes a tool's ``main(argv=None)`` return 2 with one line on stderr for an :class:`InputError`.

    An OSError that names a file, one whose name is too long or that may not be read, is answered in the same way.
    With ``PVT_MM_DEBUG=1`` in the environment the traceback is shown instead. Ctrl-C returns 130, as shells have it.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors='backslashreplace')  # for names of files that are no text
        try:
            return main(argv) or 0
        except (InputError, OSError) as error:
            of_disk = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
            of_file = isinstance(error, InputError) or error.filename is not None or of_disk
            if os.environ.get('PVT_MM_DEBUG') == '1' or not of_file:
                raise
            message = (
                str(error)
                if isinstance(error, InputError)
                else ': '.join(filter(None, (error.filename, error.strerror)))
            )
            if message.startswith('Caught InputError in DataLoader worker'):  # with its traceback before it
                message = message.rsplit('InputError: ', 1)[-1]
            sys.stderr.write(f'error: {" ".join(message.split())}\n')
            return 2
        except (KeyboardInterrupt, SyntaxError) as error:
            # MMEngine turns whatever stops it while it formats a config, Ctrl-C too, into a SyntaxError.
            if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
                raise
            sys.stderr.write('interrupted\n')
            return 130

    return run
