#!/usr/bin/env python
"""Export a trained backbone, or a whole Semantic FPN, to ONNX with dynamic height, width and batch."""

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
        + ' The file is written only if the outputs of onnxruntime and PyTorch agree at three sizes. '
        'Its input is a normalised image; the metadata contain mean and std. The last line of the output is JSON.',
        epilog='Example: tools/export_onnx.py configs/semantic_fpn/pvt_s_80k.py iter_80000.pth --out pvt_s.onnx',
    )
    parser.add_argument('config', help='the config file')
    parser.add_argument('checkpoint', help='the checkpoint file, or a work directory for its last checkpoint')
    parser.add_argument('--out', default='model.onnx', help='the .onnx file to write (default: %(default)s)')
    parser.add_argument(
        '--part', choices=('backbone', 'model'), help='default: the whole model for Semantic FPN, else the backbone'
    )
    add_cfg_options(parser)
    add_trust(parser)
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from rich.console import Console

    from pvt_mm.analysis.predictions import find_checkpoint
    from pvt_mm.apis import export
    from pvt_mm.apis.config import check_file, load_config
    from pvt_mm.apis.inference import load_model
    from pvt_mm.checkpoint.reader import safe_reading


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.out.endswith('.onnx') or os.path.isdir(args.out):
        raise InputError(f'--out {args.out}: name a file that ends in .onnx')
    if os.path.isdir(args.checkpoint):
        args.checkpoint = find_checkpoint(args.checkpoint)
    check_file('checkpoint', args.checkpoint)
    config = load_config(args.config, args.cfg_options)
    with safe_reading(trust=args.trust):
        model = load_model(config, args.checkpoint).cpu()
    part, name = export.choose_part(model, args.part)
    about = {'part': name, 'model': type(model).__name__}
    normalise = config.model.get('data_preprocessor', {})
    about |= {key: normalise[key] for key in ('mean', 'std', 'bgr_to_rgb', 'rgb_to_bgr') if key in normalise}
    with Console(stderr=True).status(f'exporting the {name} and comparing it, about a minute'):
        results = export.export(part, args.out, about)
    print(args.out)
    print(json_text({'out': args.out, 'part': name, **results, 'sizes': export.SIZES}))


if __name__ == '__main__':
    sys.exit(main())
