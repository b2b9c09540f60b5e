#!/usr/bin/env python
"""Read all that training and testing with a config would read, and report every broken thing at once."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pvt_mm.analysis import dataset_check, figures
from pvt_mm.engine import run
from pvt_mm.errors import command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' The exit code is 1 where something is broken; the last line of the output is JSON.',
        epilog='Example: tools/check_dataset.py configs/retinanet/pvt_s_1x.py --cfg-options data_root=/data/coco',
    )
    parser.add_argument('config', help='the config file')
    run.add_cfg_options(parser, ', e.g. data_root=/data/coco')
    parser.add_argument('--out', default='dataset.png', help='a picture of annotated samples (default: %(default)s)')
    parser.add_argument('--all', action='store_true', help='list everything broken, not 10 of a kind')
    return parser.parse_args(argv)


def print_summary(splits: Sequence[dataset_check.Split]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column('data')
    for name in ('images', 'examples', 'of other classes', 'classes seen', 'broken'):
        table.add_column(name, justify='right')
    for split in splits:
        seen = f'{len(split.seen)} of {len(split.classes)}'
        counts = (len(split.items), split.seen.total(), split.others)
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
            print(f'  … and {count - limit} more, which --all lists')


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    figures.check_out(args.out)
    config = run.load_config(args.config, args.cfg_options)
    splits = dataset_check.check_datasets(config)
    faults = [fault for split in splits for fault in split.faults]
    print_summary(splits)
    print_faults(faults, limit=len(faults) if args.all else 10)
    drawn = dataset_check.plot_samples(splits, title=f'{Path(args.config).stem}: samples of the data')
    if drawn:
        figures.save_figure(drawn, args.out)
        print(f'\n{args.out}')
    kinds = dict(Counter(fault.kind for fault in faults))
    images = {split.name: len(split.items) for split in splits}
    print(json.dumps({'broken': len(faults), 'kinds': kinds, 'images': images, 'out': args.out if drawn else None}))
    return int(bool(faults))


if __name__ == '__main__':
    sys.exit(main())
