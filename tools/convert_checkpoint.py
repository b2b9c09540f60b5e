#!/usr/bin/env python
"""Convert weights of a PVT or PVTv2 from any known format to another."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, add_trust, starting
from pvt_mm.utils.errors import CheckpointError, InputError, command
from pvt_mm.utils.text import json_text


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + " It reads the authors' releases, MMDetection's, timm's, Hugging Face's, ours, and any "
        'classifier, detector or segmentor that contains one of them; its other parts are kept. The last line of the '
        'output is JSON.',
        epilog='Example: tools/convert_checkpoint.py retinanet_pvt-t_fpn_1x_coco.pth pvt_tiny.pth',
    )
    parser.add_argument('source', metavar='IN', help='a path or URL of a .pth or .safetensors file')
    parser.add_argument('target', metavar='OUT', help='the .pth or .safetensors file to write')
    parser.add_argument(
        '--to',
        choices=('pvt_mm', 'mmdet', 'authors', 'timm', 'huggingface'),
        default='pvt_mm',
        help='format to write (default: pvt_mm); timm and huggingface for a PVTv2',
    )
    parser.add_argument('--prefix', help='prefix of the keys of the backbone, if IN contains several')
    parser.add_argument(
        '--pretrain-img-size',
        type=int,
        nargs='+',
        metavar=('H', 'W'),
        help="size of the images that a PVT's position embeddings were trained on, if not square",
    )
    add_trust(parser)
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from pvt_mm.checkpoint.formats import convert, find_backbone
    from pvt_mm.checkpoint.reader import read_checkpoint, safe_reading
    from pvt_mm.checkpoint.writer import save_checkpoint


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    size = args.pretrain_img_size
    if size and len(size) > 2:
        raise InputError(f'--pretrain-img-size takes a side or H and W, got {len(size)} numbers')
    if os.path.realpath(args.source) == os.path.realpath(args.target):
        raise InputError(f'{args.target} is the file to convert and would be overwritten: name another')
    if not args.target.endswith(('.pth', '.safetensors')):
        raise InputError(f'{args.target}: name a file that ends in .pth or .safetensors')
    with safe_reading(trust=args.trust):
        state_dict = read_checkpoint(args.source)
    try:
        version, layout, prefix = find_backbone(state_dict, args.prefix)
        sides = (size[0], size[-1]) if size else None
        converted, dropped = convert(state_dict, args.to, args.prefix, sides)
    except CheckpointError as error:
        raise CheckpointError(f'{args.source}: {error}') from None
    save_checkpoint(converted, args.target)
    print(f'{args.source}: {version.name} in {layout} format, prefix {prefix!r}')
    for key in dropped:
        print(f'  dropped {key}')
    print(f'{args.target}: {args.to} format, {len(converted)} tensors, {os.path.getsize(args.target) / 1e6:.1f} MB')
    summary = dict(
        model=version.name, source=layout, target=args.to, prefix=prefix, tensors=len(converted), dropped=len(dropped)
    )
    print(json_text(summary))


if __name__ == '__main__':
    sys.exit(main())
