#!/usr/bin/env python
"""Check all data that training and testing with a config would read, and report all faults at once."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, add_cfg_options, starting
from pvt_mm.utils.errors import command
from pvt_mm.utils.text import json_text


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' The exit code is 1 if there are faults. The last line of the output is JSON.',
        epilog='Example: tools/check_dataset.py configs/retinanet/pvt_s_1x.py --cfg-options data_root=/data/coco',
    )
    parser.add_argument('config', help='the config file')
    add_cfg_options(parser, ', e.g. data_root=/data/coco')
    parser.add_argument('--out', default='dataset.png', help='figure of annotated images (default: %(default)s)')
    parser.add_argument('--all', action='store_true', help='list all faults, not 10 of each kind')
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from rich.console import Console
    from rich.table import Table

    from pvt_mm.analysis import dataset_check, figures, samples
    from pvt_mm.apis.config import load_config
    from pvt_mm.utils.files import check_writable


def print_summary(splits: Sequence[dataset_check.Split]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column('data')
    for name in ('images', 'examples', 'of other classes', 'classes seen', 'faults'):
        table.add_column(name, justify='right')
    for split in splits:
        others = split.seen[None]
        seen = f'{sum(label is not None for label in split.seen)} of {len(split.classes)}'
        counts = (len(split.items), split.seen.total() - others, others)
        table.add_row(split.name, *(f'{count:,}' for count in counts), seen, f'{len(split.faults):,}')
    Console().print(table)
    for split in splits:
        for remark in split.remarks:
            print(f'remark: {split.name}: {remark}')


def print_faults(faults: Sequence[dataset_check.Fault], limit: int) -> None:
    for kind, count in Counter(fault.kind for fault in faults).most_common():
        print(f'\n{kind}: {count}')
        for fault in [fault for fault in faults if fault.kind == kind][:limit]:
            print(f'  {fault.split}: {fault.text}')
        if count > limit:
            print(f'  and {count - limit} more: --all lists them')


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    figures.check_out(args.out)
    check_writable(args.out)
    config = load_config(args.config, args.cfg_options)
    splits = dataset_check.check_datasets(config)
    faults = [fault for split in splits for fault in split.faults]
    print_summary(splits)
    print_faults(faults, limit=len(faults) if args.all else 10)
    figure = samples.plot_samples(splits, title=f'{Path(args.config).stem}: samples of the data')
    if figure:
        figures.save_figure(figure, args.out)
        print(f'\n{args.out}')
    kinds = dict(Counter(fault.kind for fault in faults))
    images = {split.name: len(split.items) for split in splits}
    print(json_text({'faults': len(faults), 'kinds': kinds, 'images': images, 'out': args.out if figure else None}))
    return int(bool(faults))


if __name__ == '__main__':
    sys.exit(main())
