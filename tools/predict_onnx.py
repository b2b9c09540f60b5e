#!/usr/bin/env python
"""Draw the predictions of an exported model on an image or the images of a folder, without PyTorch."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, starting
from pvt_mm.utils.errors import InputError, command
from pvt_mm.utils.text import json_text


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__
        + ' It needs onnxruntime, NumPy and Pillow alone, and takes what tools/export_onnx.py writes. The predictions '
        'are written to predictions.json next to the images. The last line of the output is JSON.',
        epilog='Example: tools/predict_onnx.py holiday/ retinanet.onnx --out drawn',
    )
    parser.add_argument('input', metavar='IMAGE|FOLDER', help='a folder is searched with its subfolders')
    parser.add_argument('model', help='the ONNX file')
    parser.add_argument('--out', default='demo_out', help='the folder to write to (default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='minimum score of boxes (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=0, help='threads that compute (default: one for each core)')
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from pvt_mm.serving.folders import find_inputs, run_images
    from pvt_mm.serving.model import OnnxModel


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if not 0 <= args.score_thr <= 1:
        raise InputError(f'--score-thr {args.score_thr}: it must be from 0 to 1')
    if args.threads < 0:
        raise InputError(f'--threads {args.threads}: it must be a number of threads, or 0 for one for each core')
    out = Path(args.out)
    paths = find_inputs(args.input, out)
    model = OnnxModel(args.model, args.score_thr, args.threads)
    count = run_images(model, paths, args.input, out, {'model': args.model})
    print(out)
    print(json_text({'out': args.out, **count}))


if __name__ == '__main__':
    sys.exit(main())
