#!/usr/bin/env python
"""Draw a trained model's predictions on a picture, on those of a folder, or on the frames of a video."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pvt_mm.checkpoint import add_trust, trust_checkpoints
from pvt_mm.engine import run
from pvt_mm.errors import InputError, command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__
        + ' Detectors, also of masks, segmentors and classifiers. The predictions are written beside '
        'the pictures, to predictions.json. The last line of the output is JSON.',
        epilog='Example: tools/demo.py holiday/ configs/retinanet/pvt_s_1x.py epoch_12.pth --out drawn',
    )
    parser.add_argument('input', metavar='IMAGE|FOLDER|VIDEO', help='a folder is searched with those in it')
    parser.add_argument('config', help='the config file')
    parser.add_argument('checkpoint', help='the checkpoint file, or a work directory for its last checkpoint')
    parser.add_argument('--out', default='demo_out', help='the folder to write to (default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=0.3, help="a box's least score (default: %(default)s)")
    run.add_cfg_options(parser)
    add_trust(parser)
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    trust_checkpoints(args.trust)
    if not 0 <= args.score_thr <= 1:
        raise InputError(f'--score-thr {args.score_thr} is not between 0 and 1')
    config = run.load_config(args.config, args.cfg_options)
    # The model's libraries take seconds to load.
    from pvt_mm.analysis import demo
    from pvt_mm.analysis.predictions import find_checkpoint

    out, checkpoint = Path(args.out), find_checkpoint(args.checkpoint)
    paths = demo.find_inputs(args.input, out)
    predictor = demo.Predictor(config, checkpoint, args.score_thr)
    content, refused = dict(config=args.config, checkpoint=checkpoint), []
    if paths[0].suffix.lower() in demo.VIDEOS:
        content['frames'] = demo.run_video(predictor, paths[0], out)
        number = len(content['frames'])
    else:
        root = Path(args.input) if Path(args.input).is_dir() else paths[0].parent
        content['pictures'], refused = demo.run_pictures(predictor, paths, root, out)
        number = len(content['pictures'])
        for reason in refused if number else ():
            sys.stderr.write(f'left out: {reason}\n')
        if not number:
            raise InputError(refused[0] if len(refused) == 1 else f'no picture can be read; the first: {refused[0]}')
    demo.write_predictions(out / 'predictions.json', content)
    print(out)
    print(
        json.dumps({'out': args.out, 'frames' if 'frames' in content else 'pictures': number, 'left_out': len(refused)})
    )


if __name__ == '__main__':
    sys.exit(main())
