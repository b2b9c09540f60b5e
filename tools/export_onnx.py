#!/usr/bin/env python
"""Export a trained detector, segmentor or classifier to ONNX: from an image to boxes, masks, label maps or scores."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, add_cfg_options, add_trust, starting
from pvt_mm.utils.errors import InputError, command
from pvt_mm.utils.text import json_text


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__
        + ' Batch, height and width are dynamic, results are in pixels of the original image, and all operators are '
        'standard. The file is written only if onnxruntime predicts what PyTorch does: on images at three sizes and in '
        'two batches, and by the metric of the test data. The last line of the output is JSON.',
        epilog='Example: tools/export_onnx.py configs/retinanet/pvt_v2_b2_1x.py epoch_12.pth --preprocess',
    )
    add = parser.add_argument
    add('config', help='the config file')
    add('checkpoint', help='the checkpoint file, or a work directory for its last checkpoint')
    add('--out', default='model.onnx', help='the .onnx file to write (default: %(default)s)')
    add('--part', choices=('model', 'backbone'), default='model', help='(default: %(default)s)')
    add('--preprocess', action='store_true', help='take images, uint8 RGB of any size, instead of normalised ones')
    add('--half', nargs='?', const='fp16', default='', choices=('fp16', 'bf16'), help='store weights in 16 bits')
    add(
        '--int8',
        nargs='?',
        const='static',
        default='',
        choices=('dynamic', 'static'),
        help='multiply in 8 bits; static: with ranges measured on --images, not for segmentors',
    )
    add(
        '--images',
        metavar='FOLDER',
        help='images to compare on (4 of them), and to calibrate --int8 static with (64); default: the test data',
    )
    add(
        '--val-images',
        type=int,
        default=200,
        metavar='N',
        help='images of the test data, if it exists, to evaluate both on; 0 for none (default: %(default)s)',
    )
    add_cfg_options(parser)
    add_trust(parser)
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from pvt_mm.analysis.predictions import find_checkpoint
    from pvt_mm.apis.config import check_file, load_config
    from pvt_mm.apis.inference import load_model
    from pvt_mm.checkpoint.reader import safe_reading
    from pvt_mm.deploy import export


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.out.endswith('.onnx') or os.path.isdir(args.out):
        raise InputError(f'--out {args.out}: name a file that ends in .onnx')
    if args.half and args.int8:
        raise InputError('--half and --int8 exclude each other')
    if args.part == 'backbone' and (args.preprocess or args.int8 == 'static'):
        raise InputError('--part backbone takes normalised images, without --preprocess and --int8 static')
    if args.val_images < 0:
        raise InputError(f'--val-images {args.val_images}: it must not be negative')
    export.check_packages()
    if os.path.isdir(args.checkpoint):
        args.checkpoint = find_checkpoint(args.checkpoint)
    check_file('checkpoint', args.checkpoint)
    config = load_config(args.config, args.cfg_options)
    settings = export.Settings(args.part, args.preprocess, args.half, args.int8)
    if args.part == 'model':
        settings = export.with_images(settings, config, args.images, args.val_images)
    if settings.not_evaluated and args.val_images:
        sys.stderr.write(f'not evaluated on the test data: {settings.not_evaluated}\n')
    with safe_reading(trust=args.trust):
        model = load_model(config, args.checkpoint).cpu()
    about = dict(config=os.path.basename(args.config), checkpoint=os.path.basename(args.checkpoint))
    results = export.export_model(model, config, args.out, settings, about)
    print(export.describe_results(results))
    print(args.out)
    print(json_text({'out': args.out, 'part': args.part, **export.plain(results)}))


if __name__ == '__main__':
    sys.exit(main())
