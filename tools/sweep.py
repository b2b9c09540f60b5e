#!/usr/bin/env python
"""Run a sweep, configs x options x seeds, on this machine or under Slurm, and report its results."""

import argparse
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, starting
from pvt_mm.utils.errors import InputError, command
from pvt_mm.utils.text import json_text

RESERVED = ('--seed', '--work-dir', '--launcher', '--resume', '--cfg-options')


def minutes(text: str) -> int:
    match = re.fullmatch(r'(?:(?:(\d+)-)?(\d+):)?(\d+)(:\d\d)?', text)
    if not match or bool(match[2]) != bool(match[4]) or not any(int(part or 0) for part in match.groups()[:3]):
        raise argparse.ArgumentTypeError(f'{text} is not a time limit: use MINUTES or [DAYS-]HOURS:MINUTES:SECONDS')
    days, hours, rest = (int(part or 0) for part in match.groups()[:3])
    return (days * 24 + hours) * 60 + rest


def key_value(text: str) -> tuple[str, str]:
    key, separator, value = text.lstrip('-').partition('=')
    if not separator or not key:
        raise argparse.ArgumentTypeError(f'{text} is not KEY=VALUE')
    return key, value


def at_least(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f'{text} is not an integer of at least {minimum}')
        return int(text)

    return parse


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' When run again, it skips finished trials, resumes interrupted ones and restarts failed '
        'ones. Arguments after -- are passed to every tools/train.py. The last line of the output is JSON.',
        epilog='Example: tools/sweep.py configs/sweeps/retinanet_backbones.py --executor slurm --partition gpu '
        '--gpus 8 --time 2-00:00:00 --slurm account=vision mem=200G -- --amp bf16',
    )
    parser.add_argument('sweep', help='file of the sweep')
    parser.add_argument('--work-dir', help="parent of the trials' work directories (default: work_dirs/sweeps/<name>)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        '--dry-run',
        action='store_true',
        help='list the trials, their commands and what each asks for, without running them',
    )
    what.add_argument('--report', action='store_true', help='report the finished trials without running others')
    parser.add_argument('--executor', choices=('local', 'slurm'), default='local', help='default: %(default)s')
    parser.add_argument(
        '--jobs',
        type=at_least(1),
        metavar='N',
        help='maximum number of trials at a time (default: locally, as many as there are GPUs for, 1 without GPUs)',
    )
    gpus = 'GPUs of a trial, on all of its nodes (default: 1; locally 0 without GPUs)'
    parser.add_argument('--gpus', type=at_least(0), metavar='N', help=gpus)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='override settings of every config, e.g. data_root=PATH',
    )
    parser.add_argument('--seeds', nargs='+', type=int, metavar='SEED', help='default: the seeds of the sweep')
    slurm = parser.add_argument_group('with --executor slurm')
    slurm.add_argument('--partition', help='default: that of the cluster')
    slurm.add_argument('--nodes', type=at_least(1), default=1, metavar='N', help='nodes of a trial (default: 1)')
    slurm.add_argument(
        '--time', type=minutes, default=60 * 24, help='time limit of a job, in minutes or [D-]HH:MM:SS (default: 1 day)'
    )
    slurm.add_argument(
        '--slurm', nargs='+', type=key_value, default=[], metavar='KEY=VALUE', help='other options of sbatch'
    )
    argv = list(sys.argv[1:] if argv is None else argv)
    split = argv.index('--') if '--' in argv else len(argv)
    args = parser.parse_args(argv[:split])
    args.flags = argv[split + 1 :]
    if args.executor == 'local' and (args.partition or args.slurm or args.nodes > 1):
        parser.error('--partition, --nodes and --slurm need --executor slurm')
    return args


with starting(__name__, parse_args):
    from pvt_mm.sweep.display import display
    from pvt_mm.sweep.executors import Local, Slurm
    from pvt_mm.sweep.report import write_report
    from pvt_mm.sweep.spec import load_sweep
    from pvt_mm.sweep.trials import Trials, last_lines


def warn_of_batch_size(trials: Trials) -> None:
    """Prints a note if the trials' batch sizes differ from those that their learning rates are for."""
    gpus = max(1, trials.gpus)
    others = {trial.gpus for trial in trials.sweep.trials} - {None, gpus}
    if others and '--auto-scale-lr' not in trials.flags:
        counts = ', '.join(f'{count:g}' for count in sorted(others))
        sys.stderr.write(
            f"note: the configs' learning rates are for the batch size of {counts} GPUs, and a trial has {gpus}: add "
            f'--gpus {max(others):g}, or -- --auto-scale-lr\n'
        )


def make_executor(args: argparse.Namespace) -> Local | Slurm:
    if args.executor == 'local':
        return Local(args.jobs, args.gpus)
    gpus = 1 if args.gpus is None else args.gpus
    return Slurm(args.partition, gpus, args.time, dict(args.slurm), args.jobs, args.nodes)


def note_what_is_missing(executor: Local | Slurm) -> None:
    """Prints a note if this machine cannot run the sweep: commands can be listed on another one."""
    try:
        executor.check_installed()
    except InputError as error:
        sys.stderr.write(f'note: {error}\n')


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if reserved := [flag for flag in args.flags if flag.split('=')[0] in RESERVED]:
        raise InputError(f'-- {reserved[0]}: the sweep sets it for each trial; see --help for flags before the --')
    sweep = load_sweep(args.sweep, args.cfg_options, args.seeds)
    folder = Path(args.work_dir or Path('work_dirs/sweeps') / sweep.name)
    train = Path(__file__).with_name('train.py')
    executor = None if args.report else make_executor(args)
    trials = Trials(sweep, folder, train, executor, args.flags)
    if args.dry_run:
        note_what_is_missing(executor)
        warn_of_batch_size(trials)
        for trial, status in trials.statuses().items():
            print(f'{trial.name} ({status.state})\n  {shlex.join(trials.commands[trial])}')
        print(executor.request)
        print(json_text({'trials': len(sweep.trials)}))
        return 0
    if args.report:
        statuses = trials.statuses()
    else:
        executor.check_installed()
        with trials.locked(), display(sweep.metric) as show:
            warn_of_batch_size(trials)
            statuses = trials.run(show)
    for trial, status in statuses.items():
        if status.state in ('failed', 'interrupted'):
            print(f'\n{trial.name} {status.state}, {folder / trial.name / "train.log"}:')
            print(*(f'  {line}' for line in last_lines(folder / trial.name)), sep='\n')
    results = write_report(sweep, statuses, folder)
    counts = Counter(status.state for status in statuses.values())
    if counts['finished'] and results['best'] is None:
        sys.stderr.write(f'no finished trial has a {sweep.metric}: see {folder / "sweep.md"} for the reasons\n')
    print(json_text({'folder': str(folder), **counts, **results}))
    return 0 if args.report or counts['finished'] == len(statuses) else 1


if __name__ == '__main__':
    sys.exit(main())
