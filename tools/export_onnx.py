#!/usr/bin/env python
"""Write a trained backbone, or Semantic FPN whole, as ONNX that takes any height, width and batch."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from pvt_mm import export
from pvt_mm.checkpoint import add_trust, trust_checkpoints
from pvt_mm.engine import run
from pvt_mm.engine.inference import load_model
from pvt_mm.errors import InputError, command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__
        + ' The file is written where onnxruntime computes with it what PyTorch does, at three sizes. '
        'Its input is a normalised image; the metadata say how. The last line of the output is JSON.',
        epilog='Example: tools/export_onnx.py configs/semantic_fpn/pvt_s_80k.py iter_80000.pth --out pvt_s.onnx',
    )
    parser.add_argument('config', help='the config file')
    parser.add_argument('checkpoint', help='the checkpoint file')
    parser.add_argument('--out', default='model.onnx', help='the .onnx file to write (default: %(default)s)')
    parser.add_argument(
        '--part', choices=('backbone', 'model'), help='default: the whole model for Semantic FPN, else the backbone'
    )
    run.add_cfg_options(parser)
    add_trust(parser)
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    trust_checkpoints(args.trust)
    if not args.out.endswith('.onnx') or os.path.isdir(args.out):
        raise InputError(f'--out {args.out}: name a file that ends in .onnx')
    run.check_checkpoint_exists(args.checkpoint)
    config = run.load_config(args.config, args.cfg_options)
    model = load_model(config, args.checkpoint).cpu()
    part, name = export.choose_part(model, args.part)
    about = {'part': name, 'model': type(model).__name__}
    normalise = config.model.get('data_preprocessor', {})
    about |= {key: normalise[key] for key in ('mean', 'std', 'bgr_to_rgb') if key in normalise}
    with Console(stderr=True).status(f'exporting the {name} and comparing it, about a minute'):
        results = export.export(part, args.out, about)
    print(args.out)
    print(json.dumps({'out': args.out, 'part': name, **results, 'sizes': export.SIZES}))


if __name__ == '__main__':
    sys.exit(main())
