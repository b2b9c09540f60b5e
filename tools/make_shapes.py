#!/usr/bin/env python
"""Draw the shapes dataset: synthetic pictures with boxes, polygons, semantic maps and classification crops."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pvt_mm.datasets.shapes import make_shapes
from pvt_mm.errors import command

EXAMPLE = """example:
  python tools/make_shapes.py data/shapes
  python tools/make_shapes.py data/wide --image-size 160 240 --train 2000 --val 200 --seed 1

OUT then serves as data_root of configs made for COCO (annotations/instances_train2017.json, ...), as data_root of
mmseg datasets (images/training, annotations/training, ...; 0 is background, then circle, square, triangle), and
OUT/classification/{train,val} as image folders. The last line of stdout is JSON: what OUT holds."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is a ``--help`` away."""

    def error(self, message: str):
        self.exit(2, f'{self.prog}: error: {message}\n')


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = _Parser(
        'make_shapes.py', description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', metavar='OUT', type=Path, help='folder to write; made if need be')
    parser.add_argument(
        '--image-size',
        metavar=('H', 'W'),
        type=int,
        nargs='+',
        default=[160],
        help='height and width in pixels, or one number for a square (default: 160)',
    )
    parser.add_argument('--train', metavar='N', type=int, default=600, help='training pictures (default: 600)')
    parser.add_argument('--val', metavar='N', type=int, default=100, help='validation pictures (default: 100)')
    parser.add_argument('--seed', metavar='S', type=int, default=0, help='any integer from 0 (default: 0)')
    parser.add_argument('--overwrite', action='store_true', help='replace shapes made with other options')
    args = parser.parse_args(argv)
    if len(args.image_size) > 2:
        parser.error(f'argument --image-size: one or two numbers, not {len(args.image_size)}')
    return args, parser


def _progress() -> Callable[[int, int], None]:
    """A counter that stays on its line on a terminal, and elsewhere a line every 10%; both on stderr."""
    start, terminal = time.monotonic(), sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        tenth = done * 10 // total > (done - 1) * 10 // total
        if tenth or terminal:
            text = f'{done}/{total} pictures, {time.monotonic() - start:.1f} s'
            end = '\n' if done == total or not terminal else ''
            print('\r' * terminal + text, end=end, file=sys.stderr, flush=True)

    return show


@command
def main(argv: Sequence[str] | None = None) -> None:
    args, parser = parse_args(argv)
    height, width = args.image_size[0], args.image_size[-1]
    try:
        summary = make_shapes(
            args.out,
            image_size=(height, width),
            train=args.train,
            val=args.val,
            seed=args.seed,
            overwrite=args.overwrite,
            progress=_progress(),
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not summary['written']:
        print(f'{args.out} is complete already; nothing written', file=sys.stderr)
    print(json.dumps(dict(out=str(args.out), **summary)))


if __name__ == '__main__':
    sys.exit(main())
