"""How a tool starts: its arguments first, then the libraries, which take seconds to import.

Only the standard library is imported here, so that a usage error is quick, and a Python without the libraries named.
"""

import argparse
import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')  # the launchers' variables


class Parser(argparse.ArgumentParser):
    """A parser whose usage errors are one line, of the first rank only."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Parses ``args``, and ``--cfg-options`` after all else, as MMEngine is imported for them."""
        parsed = super().parse_args(args, namespace)
        if isinstance(given := getattr(parsed, 'cfg_options', None), _Pairs):
            try:
                parsed.cfg_options = parse_options(given)
            except ValueError as error:
                self.error(str(error))
        return parsed

    def error(self, message: str) -> NoReturn:
        """Exits with 2 and one line, with a similar option where one is unknown."""
        name, _, unknown = message.partition('unrecognized arguments: ')
        near = difflib.get_close_matches(
            unknown.split('=')[0].split(' ')[0], self._option_string_actions, n=1, cutoff=0.7
        )
        if not name and near:
            message += f' (did you mean {near[0]}?)'
        _exit(2, f'{self.prog}: error: {" ".join(message.split())}; {self.prog} --help lists all options')


class CfgOptions(argparse.Action):
    """Collects the pairs of ``--cfg-options``, which may be given several times, for :func:`parse_options`."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None):
        if wrong := [pair for pair in values if '=' not in pair]:
            parser.error(f'--cfg-options takes KEY=VALUE pairs, got {wrong[0]!r}')
        setattr(namespace, self.dest, _Pairs([*(getattr(namespace, self.dest) or ()), *values]))


class _Pairs(list):
    pass


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Returns the settings in ``KEY=VALUE`` pairs as MMEngine reads them, or raises a ValueError."""
    from mmengine.config import DictAction

    holder = argparse.Namespace(options=None)
    try:
        DictAction(['--cfg-options'], 'options')(argparse.ArgumentParser(), holder, list(pairs))
    except (ValueError, AssertionError, RecursionError) as error:
        raise ValueError(f'--cfg-options takes KEY=VALUE pairs, got {" ".join(pairs)!r} ({error})') from error
    return holder.options


def add_cfg_options(parser: argparse.ArgumentParser, more: str = '') -> None:
    """Adds ``--cfg-options``, with ``more`` at the end of its help."""
    what = f'override settings of the config{more}'
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE', help=what)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust``, which lifts the allow-list of :func:`pvt_mm.checkpoint.reader.safe_reading`."""
    parser.add_argument(
        '--trust',
        action='store_true',
        help='read checkpoints without the allow-list: a file may then run any code on this machine; use it only for '
        'files whose author you trust',
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and results (default: work_dirs/<name of the config>)')
    more = ', e.g. model.backbone.drop_path_rate=0.2; lists as key="[a,b]" or key=a,b; '
    add_cfg_options(parser, more + 'data_root=PATH moves all data sets of the config')
    add_trust(parser)
    parser.add_argument(
        '--compile',
        action='store_true',
        help='compile backbone, neck and dense heads with torch.compile: pvt_mm.CompileHook',
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none', help='job launcher')
    # torchrun and torch.distributed.launch pass it in either spelling
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


@contextlib.contextmanager
def starting(name: str, parse_args: Callable[[None], Any] | None = None) -> Iterator[None]:
    """Surrounds a tool's imports, and parses its arguments before them if the tool is run (``name`` is ``__main__``).

    Raises:
        SystemExit: Of one line. With 1 if an import fails: it says which Python has the packages, or names
            tools/doctor.py; with 2 for a usage error; with 130 for Ctrl-C.
    """
    try:
        if name == '__main__' and parse_args is not None:
            _check_paths(parse_args(None))
        yield
    except BaseException as error:  # a wrong MMCV raises AssertionError, a wrong NumPy ValueError
        if isinstance(error, SystemExit) or os.environ.get('PVT_MM_DEBUG') == '1':
            raise
        if _is_interrupt(error):
            _exit(130, 'interrupted')
        _exit(1, f'error: {_advice(error)}')


def _check_paths(arguments: argparse.Namespace | None) -> None:
    """Exits with 2 and one line if the config or the user's data does not exist; the tool itself checks all else."""
    config, data = (getattr(arguments, name, None) for name in ('config', 'data'))
    installed = ROOT / 'pvt_mm/.mim'
    if isinstance(config, str) and not os.path.isfile(config) and not (installed / config).is_file():
        what = 'is a folder' if os.path.isdir(config) else f'does not exist{suggest_path(config)}'
        _exit(2, f'error: the config {config} {what}')
    for path in data if isinstance(data, list) else ():
        if not os.path.exists(path):
            hint = suggest_path(path) or ': give a folder, or COCO json files'
            _exit(2, f'error: --data {path} does not exist{hint}')


def suggest_path(path: str) -> str:
    """Returns '; did you mean ...?' with a similar path of the same suffix, or '' if there is none."""
    folder = Path(path).parent
    if not folder.is_dir():
        folders = [str(other) for other in folder.parent.glob('*') if other.is_dir()]
        folder = Path(*difflib.get_close_matches(str(folder), folders, n=1))
    others = [str(other) for other in folder.glob(f'*{Path(path).suffix}')]
    near = difflib.get_close_matches(path, others, n=1, cutoff=0.5)
    return f'; did you mean {near[0]}?' if near else ''


def _is_interrupt(error: BaseException | None) -> bool:
    """Returns whether an error is due to Ctrl-C, in place of which libraries raise an error of their own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _advice(error: BaseException) -> str:
    """Returns what is wrong where an import failed, and which Python to use."""
    if not isinstance(error, ModuleNotFoundError) or (error.name or '').startswith('pvt_mm'):
        return f'{type(error).__name__}: {error}; tools/doctor.py says how to fix it'
    what = f'this Python, {sys.executable}, has no {error.name}'
    python = made_environment()
    if python is None:
        return f'{what}: run `make setup`, or activate an environment with PyTorch and MMEngine'
    if os.path.abspath(python) == os.path.abspath(sys.executable):
        return f'{what}: tools/doctor.py says how to fix it'
    return f'{what}: use {python} {sys.argv[0]}, or activate that environment'


def made_environment() -> str | None:
    """Returns the interpreter that `make` has set up, None if there is none."""
    with contextlib.suppress(OSError):
        made = (ROOT / 'build/python').read_text().strip()
        if os.access(made, os.X_OK):
            return made
    venv = ROOT / '.venv/bin/python'
    return str(venv) if os.access(venv, os.X_OK) else None


def _exit(code: int, line: str) -> NoReturn:
    """Exits with a line, which only the first rank writes."""
    if all(os.environ.get(name, '0') == '0' for name in RANKS):
        sys.stderr.write(f'{line}\n')
    raise SystemExit(code)
