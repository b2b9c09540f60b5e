#!/usr/bin/env python
"""Draw a trained model's predictions on an image, the images of a folder, or the frames of a video."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, add_cfg_options, add_trust, starting
from pvt_mm.utils.errors import InputError, command
from pvt_mm.utils.files import write_json
from pvt_mm.utils.text import json_text


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__
        + ' It takes detectors of boxes and masks, segmentors and classifiers. The predictions are written to '
        'predictions.json next to the images. The last line of the output is JSON.',
        epilog='Example: tools/demo.py holiday/ configs/retinanet/pvt_s_1x.py epoch_12.pth --out drawn',
    )
    parser.add_argument('input', metavar='IMAGE|FOLDER|VIDEO', help='a folder is searched with its subfolders')
    parser.add_argument('config', help='the config file')
    parser.add_argument('checkpoint', help='the checkpoint, or a work directory for its last checkpoint')
    parser.add_argument('--out', default='demo_out', help='the folder to write to (default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='minimum score of boxes (default: %(default)s)')
    add_cfg_options(parser)
    add_trust(parser)
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from pvt_mm.apis.config import load_config
    from pvt_mm.checkpoint.reader import safe_reading


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if not 0 <= args.score_thr <= 1:
        raise InputError(f'--score-thr {args.score_thr}: it must be from 0 to 1')
    config = load_config(args.config, args.cfg_options)
    # The model's libraries take seconds to load.
    from pvt_mm.analysis.demo import VIDEOS, run_video
    from pvt_mm.analysis.predictions import find_checkpoint
    from pvt_mm.analysis.predictor import Predictor
    from pvt_mm.serving.folders import find_inputs, report_skipped, run_images

    out, checkpoint = Path(args.out), find_checkpoint(args.checkpoint)
    paths = find_inputs(args.input, out)
    with safe_reading(trust=args.trust):
        predictor = Predictor(config, checkpoint, args.score_thr)
    content = dict(config=args.config, checkpoint=checkpoint)
    if paths[0].suffix.lower() in VIDEOS:
        frames, skipped = run_video(predictor, paths[0], out)
        report_skipped(skipped)
        write_json(out / 'predictions.json', {**content, 'frames': frames})
        count = {'frames': len(frames) - len(skipped), 'skipped': len(skipped)}
    else:
        count = run_images(predictor, paths, args.input, out, content)
    print(out)
    print(json_text({'out': args.out, **count}))


if __name__ == '__main__':
    sys.exit(main())
