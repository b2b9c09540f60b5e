#!/usr/bin/env python
"""Generate the shapes dataset: synthetic images with boxes, polygons, semantic maps and classification crops."""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, starting
from pvt_mm.utils.errors import command
from pvt_mm.utils.text import json_text

EXAMPLE = """Examples:
  tools/make_shapes.py data/shapes
  tools/make_shapes.py data/wide --image-size 160 240 --train 2000 --val 200 --seed 1

OUT can be the data_root of COCO configs (annotations/instances_train2017.json, ...) and of MMSegmentation's datasets
(images/training, annotations/training, ...; 0 is background, then circle, square, triangle).
OUT/classification/{train,val} are image folders. The last line of the output is JSON: the content of OUT."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', metavar='OUT', help='folder to write; created if missing')
    parser.add_argument(
        '--image-size',
        metavar=('H', 'W'),
        type=int,
        nargs='+',
        default=[160],
        help='height and width in pixels, or one number for a square (default: 160)',
    )
    parser.add_argument('--train', metavar='N', type=int, default=600, help='training images (default: %(default)s)')
    parser.add_argument('--val', metavar='N', type=int, default=100, help='validation images (default: %(default)s)')
    parser.add_argument('--seed', metavar='S', type=int, default=0, help='any integer from 0 (default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='replace shapes with other options')
    args = parser.parse_args(argv)
    if len(args.image_size) > 2:
        parser.error(f'argument --image-size: one or two numbers, not {len(args.image_size)}')
    return args


with starting(__name__, parse_args):
    from rich.console import Console
    from rich.progress import track

    from pvt_mm.datasets.shapes import make_shapes


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    summary = make_shapes(
        args.out,
        image_size=(args.image_size[0], args.image_size[-1]),
        train=args.train,
        val=args.val,
        seed=args.seed,
        overwrite=args.overwrite,
        progress=functools.partial(track, description='images', console=Console(stderr=True)),
    )
    if not summary['written']:
        print(f'{args.out} is complete; nothing written', file=sys.stderr)
    print(json_text(dict(out=args.out, **summary)))


if __name__ == '__main__':
    sys.exit(main())
