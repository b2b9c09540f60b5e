#!/usr/bin/env python
"""Count parameters and multiply-adds of the model of a config, in total and by part, without data or weights."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, add_cfg_options, starting
from pvt_mm.utils.errors import InputError, command
from pvt_mm.utils.text import json_text

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' The last line of the output is JSON.',
        epilog='Example: tools/flops.py configs/retinanet/pvt_s_1x.py --shape 800 1344',
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument('config', nargs='?', help='the config file')
    which.add_argument('--all', action='store_true', help='all configs of configs/, one row each')
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        metavar=('H', 'W'),
        help='height and width in pixels, or the side of a square (default: 800 1280 for most detectors, 512 512 for '
        'segmentors, 224 224 for classifiers)',
    )
    add_cfg_options(parser)
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from pvt_mm.analysis import flops
    from pvt_mm.apis.config import load_config


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.shape and (len(args.shape) > 2 or min(args.shape) < 1):
        raise InputError(f'--shape takes one or two positive numbers, got {" ".join(map(str, args.shape))}')
    shape = (args.shape[0], args.shape[-1]) if args.shape else None
    table = Table('config' if args.all else 'part', box=None, header_style='bold')
    for name in ('parameters (M)', 'GFLOPs', 'shape' if args.all else 'share'):
        table.add_column(name, justify='right')
    if args.all:
        paths = sorted(path for path in CONFIGS.rglob('*.py') if not {'_base_', 'sweeps'} & set(path.parts))
        results = {}
        for path in track(paths, 'counting', console=Console(stderr=True), transient=True):
            config = load_config(str(path), args.cfg_options)
            at = shape or flops.default_shape(config)
            whole = flops.count(config, at)[0]
            name = path.relative_to(CONFIGS).with_suffix('').as_posix()
            results[name] = dict(params_m=round(whole.params_m, 2), gflops=round(whole.gflops, 1), shape=at)
            table.add_row(name, f'{whole.params_m:.2f}', f'{whole.gflops:.1f}', f'{at[0]} x {at[1]}')
    else:
        config = load_config(args.config, args.cfg_options)
        shape = shape or flops.default_shape(config)
        parts = flops.count(config, shape)
        for part in parts:
            share = f'{part.gflops / parts[0].gflops:.1%}'
            *above, name = part.name.replace('.stages.', '.stage ').split('.')
            table.add_row('  ' * len(above) + name, f'{part.params_m:.2f}', f'{part.gflops:.2f}', share)
        results = dict(
            shape=shape, parts={p.name: dict(params_m=round(p.params_m, 4), gflops=round(p.gflops, 4)) for p in parts}
        )
        print(f'{Path(args.config).stem} on one image of {shape[0]} x {shape[1]} pixels (H x W)')
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    print(json_text(results))


if __name__ == '__main__':
    sys.exit(main())
