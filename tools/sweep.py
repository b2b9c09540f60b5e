#!/usr/bin/env python
"""Run a sweep, configs x options x seeds, on this machine or under Slurm, and report what came of it."""

import argparse
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pvt_mm.errors import InputError, command
from pvt_mm.sweep.display import Display
from pvt_mm.sweep.executors import Local, Slurm, submitit
from pvt_mm.sweep.report import write_report
from pvt_mm.sweep.spec import load_sweep
from pvt_mm.sweep.trials import Trials, last_lines

TAKEN = ('--seed', '--work-dir', '--launcher', '--resume', '--cfg-options')


def minutes(text: str) -> int:
    match = re.fullmatch(r'(?:(?:(\d+)-)?(\d+):)?(\d+)(:\d\d)?', text)
    if not match or bool(match[2]) != bool(match[4]) or not any(int(part or 0) for part in match.groups()[:3]):
        raise argparse.ArgumentTypeError(f'{text} is no time limit: give MINUTES or [DAYS-]HOURS:MINUTES:SECONDS')
    days, hours, rest = (int(part or 0) for part in match.groups()[:3])
    return (days * 24 + hours) * 60 + rest


def key_value(text: str) -> tuple[str, str]:
    key, separator, value = text.lstrip('-').partition('=')
    if not separator or not key:
        raise argparse.ArgumentTypeError(f'{text} is no KEY=VALUE')
    return key, value


def at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text} is no number of at least {least}')
        return int(text)

    return parse


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Run again, it skips what is finished, resumes what was cut off and reruns what failed. '
        'What follows -- is passed to every tools/train.py. The last line of the output is JSON.',
        epilog='Example: tools/sweep.py configs/sweeps/retinanet_backbones.py --executor slurm --partition gpu '
        '--gpus 8 --time 2-00:00:00 --slurm account=vision mem=200G -- --amp bf16',
    )
    parser.add_argument('sweep', help='the file of the sweep')
    parser.add_argument(
        '--work-dir', help="where the trials' work directories go (default: work_dirs/sweeps/<its name>)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--dry-run', action='store_true', help='list the trials and their commands, and run nothing')
    what.add_argument('--report', action='store_true', help='report what is finished so far, and run nothing')
    parser.add_argument('--executor', choices=('local', 'slurm'), default='local', help='default: %(default)s')
    parser.add_argument(
        '--jobs',
        type=at_least(1),
        metavar='N',
        help='how many run at a time (default: locally, as many as have GPUs; 1 on CPUs)',
    )
    parser.add_argument(
        '--gpus', type=at_least(0), metavar='N', help='GPUs of a trial (default: 1, locally 0 where there is none)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='override settings in every config, e.g. data_root',
    )
    parser.add_argument('--seeds', nargs='+', type=int, metavar='SEED', help="default: the sweep's")
    slurm = parser.add_argument_group('with --executor slurm')
    slurm.add_argument('--partition', help="default: the cluster's")
    slurm.add_argument(
        '--time', type=minutes, default=60 * 24, help='limit of a job, in minutes or [D-]HH:MM:SS (default: a day)'
    )
    slurm.add_argument(
        '--slurm', nargs='+', type=key_value, default=[], metavar='KEY=VALUE', help="sbatch's other options"
    )
    args = parser.parse_args(argv)
    if args.executor == 'local' and (args.partition or args.slurm):
        parser.error('--partition and --slurm go with --executor slurm')
    return args


def note_batches(trials: Trials) -> None:
    """Says where the trials' batches are not those that their configs' learning rates are for."""
    gpus = max(1, trials.gpus)
    others = {trial.gpus for trial in trials.sweep.trials} - {None, gpus}
    if others and '--auto-scale-lr' not in trials.flags:
        counts = ', '.join(f'{count:g}' for count in sorted(others))
        sys.stderr.write(
            f"note: the configs' learning rates are for the batches of {counts} GPUs, and a trial has {gpus}: add "
            f'--gpus {max(others):g}, or -- --auto-scale-lr\n'
        )


@command
def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    split = argv.index('--') if '--' in argv else len(argv)
    args, flags = parse_args(argv[:split]), argv[split + 1 :]
    if taken := [flag for flag in flags if flag.split('=')[0] in TAKEN]:
        raise InputError(
            f'-- {taken[0]}: the sweep sets that for each trial; give it before the --, if it is an option'
        )
    sweep = load_sweep(args.sweep, args.cfg_options, args.seeds)
    folder = Path(args.work_dir or Path('work_dirs/sweeps') / sweep.name)
    train = Path(__file__).with_name('train.py')
    executor = None
    if not args.dry_run and not args.report:
        submitit()
        if args.executor == 'local':
            executor = Local(args.jobs, args.gpus)
        else:
            gpus = 1 if args.gpus is None else args.gpus
            executor = Slurm(args.partition, gpus, args.time, dict(args.slurm), args.jobs)
    trials = Trials(sweep, folder, train, executor, flags, args.gpus)
    if args.dry_run:
        note_batches(trials)
        for trial, status in trials.statuses().items():
            print(f'{trial.name} ({status.state})\n  {shlex.join(trials.commands[trial])}')
        print(json.dumps({'trials': len(sweep.trials)}))
        return 0
    if args.report:
        statuses = trials.statuses()
    else:
        with trials.locked(), Display(sweep.metric) as display:
            note_batches(trials)
            statuses = trials.run(display.show)
    for trial, status in statuses.items():
        if status.state in ('failed', 'cut off'):
            print(f'\n{trial.name} {status.state}, {folder / trial.name / "train.log"}:')
            print(*(f'  {line}' for line in last_lines(folder / trial.name)), sep='\n')
    results = write_report(sweep, statuses, folder)
    counts = Counter(status.state for status in statuses.values())
    if counts['finished'] and results['best'] is None:
        sys.stderr.write(f'no finished trial has a {sweep.metric}: {folder / "sweep.md"} says why\n')
    print(json.dumps({'folder': str(folder), **counts, **results}))
    return 0 if args.report or counts['finished'] == len(statuses) else 1


if __name__ == '__main__':
    sys.exit(main())
