#!/usr/bin/env python
"""Plot training curves, predictions next to the ground truth, GFLOPs against scale, or accuracy against size."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, add_cfg_options, add_trust, starting
from pvt_mm.utils.errors import InputError, command
from pvt_mm.utils.text import json_text

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


def plot_curves(args: argparse.Namespace) -> dict:
    """Plot the training loss and a metric of one or more runs."""
    runs = curves.read_runs(args.logs)
    metric = curves.choose_metric(runs, args.metric)
    figures.save_figure(curves.plot_curves(runs, metric), args.out)
    results = {}
    for one in runs:
        results[one.name] = {}
        if one.metrics.get(metric):
            last, best = (
                point.value if math.isfinite(point.value) else None for point in curves.last_and_best(one, metric)
            )
            results[one.name] = {metric: last, f'{metric}_best': best}
    return results[runs[0].name] if len(runs) == 1 else {'runs': results}


def plot_predictions(args: argparse.Namespace) -> dict:
    """Plot test images, evenly spaced, with the ground truth next to the predictions."""
    from pvt_mm.analysis import predictions  # imports the model's libraries, which takes seconds

    if args.images < 1 or not 0 <= args.score_thr <= 1:
        raise InputError('--images must be at least 1, and --score-thr from 0 to 1')
    config = load_config(args.config, args.cfg_options)
    checkpoint = predictions.find_checkpoint(args.checkpoint)
    with safe_reading(trust=args.trust):
        examples, classes = predictions.predict(config, checkpoint, args.images)
    title = f'{Path(args.config).stem}, {Path(checkpoint).name}'
    figure = predictions.plot_predictions(examples, classes, args.score_thr, title)
    figures.save_figure(figure, args.out)
    drawn = sum(len(example.predicted.above(args.score_thr).labels) for example in examples)
    return {'images': len(examples), 'ground_truth': sum(len(e.truth.labels) for e in examples), 'predictions': drawn}


def plot_scale(args: argparse.Namespace) -> dict:
    """Plot the GFLOPs of the backbones PVT-S, PVTv2-B2-Li, ResNet-50 and ViT-S against the side of the image."""
    from pvt_mm.analysis import scale

    sides = sorted(set(args.sides or scale.SIDES))
    gflops = scale.count_scales(CONFIGS, sides)
    figures.save_figure(scale.plot_scale(gflops, sides), args.out)
    return {'sides': sides, 'gflops': {name: [round(one, 2) for one in line] for name, line in gflops.items()}}


def plot_accuracy(args: argparse.Namespace) -> dict:
    """Plot accuracy against parameters as quoted from the paper, and as measured by runs."""
    from pvt_mm.analysis import accuracy, tables

    runs, refused = tables.measured(CONFIGS, Path(args.results))
    for reason in refused:
        print(reason)
    models = accuracy.points(CONFIGS, runs, args.models)
    figures.save_figure(accuracy.plot_accuracy(models, args.models), args.out)
    return {
        'models': {
            one.config: {'params_m': one.params_m, 'quoted': one.quoted, 'measured': one.measured} for one in models
        }
    }


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' The last line of the output is JSON.',
        epilog='Example: tools/plot.py curves work_dirs/pvt_t_1x work_dirs/pvt_s_1x --out curves.svg',
    )
    commands = parser.add_subparsers(required=True, metavar='curves|predictions|scale|accuracy')

    part = commands.add_parser('curves', help='the loss and a metric over training', description=plot_curves.__doc__)
    part.add_argument('logs', nargs='+', metavar='LOG', help='a work directory or a scalars.json; several are overlaid')
    part.add_argument('--metric', help='its name in the log (default: box AP, mIoU or top-1, the first that a run has)')
    part.add_argument('--out', default='curves.png', help='a .png, .svg, .pdf or .jpg file (default: %(default)s)')
    part.set_defaults(plot=plot_curves)

    part = commands.add_parser(
        'predictions', help='a grid of test images with their boxes', description=plot_predictions.__doc__
    )
    part.add_argument('config', help='the config of a detector')
    part.add_argument('checkpoint', help='the checkpoint, or a work directory for its last checkpoint')
    part.add_argument('--images', type=int, default=8, metavar='N', help='number of images (default: %(default)s)')
    part.add_argument('--score-thr', type=float, default=0.5, help='minimum score of boxes (default: %(default)s)')
    add_cfg_options(part, ', e.g. data_root=/data/coco')
    add_trust(part)
    part.add_argument('--out', default='predictions.png', help='a .png, .svg, .pdf or .jpg file (default: %(default)s)')
    part.set_defaults(plot=plot_predictions)

    part = commands.add_parser('scale', help='GFLOPs against the input (Figure 6)', description=plot_scale.__doc__)
    part.add_argument(
        '--sides', nargs='+', type=int, metavar='PIXELS', help='sides of the square images (default: 224 to 1024)'
    )
    part.add_argument('--out', default='scale.png', help='a .png, .svg, .pdf or .jpg file (default: %(default)s)')
    part.set_defaults(plot=plot_scale)

    part = commands.add_parser(
        'accuracy', help='accuracy against parameters (Figure 2)', description=plot_accuracy.__doc__
    )
    part.add_argument(
        '--models',
        default='retinanet',
        choices=('retinanet', 'mask_rcnn', 'semantic_fpn'),
        help='the folder of configs (default: %(default)s)',
    )
    part.add_argument(
        '--results',
        default='work_dirs',
        help='the folder of work directories (default: %(default)s)',
    )
    part.add_argument('--out', default='accuracy.png', help='a .png, .svg, .pdf or .jpg file (default: %(default)s)')
    part.set_defaults(plot=plot_accuracy)
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from pvt_mm.analysis import curves, figures
    from pvt_mm.apis.config import load_config
    from pvt_mm.checkpoint.reader import safe_reading


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    figures.check_out(args.out)
    results = args.plot(args)
    print(args.out)
    print(json_text({'out': args.out, **results}))


if __name__ == '__main__':
    sys.exit(main())
