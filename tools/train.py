#!/usr/bin/env python
"""Train the model of a config, of any task."""

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, add_common_arguments, starting
from pvt_mm.utils.errors import command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        epilog='Example: tools/train.py configs/retinanet/pvt_s_1x.py --cfg-options data_root=/data/coco',
    )
    parser.add_argument('config', help='the config file')
    parser.add_argument(
        '--data',
        nargs='+',
        metavar='PATH',
        help='train on data of your own: a folder in any common layout, or COCO json files; classes, heads, data sets '
        'and evaluators follow it',
    )
    parser.add_argument('--batch', type=int, metavar='N', help='images per process and step')
    parser.add_argument(
        '--epochs', type=int, metavar='N', help='passes through the training data, to which the schedule is stretched'
    )
    parser.add_argument(
        '--size', type=int, metavar='PIXELS', help='the shorter side of test images; all other sizes in proportion'
    )
    parser.add_argument(
        '--weights',
        metavar='PATH|URL|none',
        help="the weights to start from; none: random ones (default: the config's, with --data the published ones)",
    )
    parser.add_argument(
        '--no-scale-lr',
        action='store_false',
        dest='scale_lr',
        help='with --data: do not scale the learning rate to the batch',
    )
    add_common_arguments(parser)
    parser.add_argument(
        '--amp', nargs='?', const='fp16', choices=('fp16', 'bf16'), help='mixed precision (default: fp16)'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the total batch size over auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        default=False,
        metavar='PATH|auto',
        help="resume from a checkpoint; 'auto' or no value: from the last one in the work directory",
    )
    parser.add_argument(
        '--new-schedule',
        action='store_true',
        help='with --resume: take the learning rate and the schedule from the config, not from the checkpoint',
    )
    parser.add_argument(
        '--vis',
        action='append',
        default=[],
        choices=('tensorboard', 'wandb', 'mlflow'),
        help='also log to TensorBoard, Weights & Biases or MLflow; may be repeated',
    )
    parser.add_argument('--no-validate', action='store_false', dest='validate', help='do not evaluate during training')
    parser.add_argument(
        '--seed', type=int, help="seed of all random numbers (default: the config's, or else a random one, logged)"
    )
    parser.add_argument('--deterministic', action='store_true', help='use deterministic algorithms only')
    argv = sys.argv[1:] if argv is None else list(argv)
    for i, (flag, value) in enumerate(pairwise([*argv, ''])):
        if flag == '--amp' and value not in ('fp16', 'bf16'):
            argv[i] = '--amp=fp16'  # argparse would take CONFIG in `--amp CONFIG` for the value
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    import pvt_mm.models  # noqa: F401  # imports MMDetection and MMSegmentation, which may be broken
    from pvt_mm.apis.training import train


@command
def main(argv: Sequence[str] | None = None) -> None:
    train(**vars(parse_args(argv)))


if __name__ == '__main__':
    sys.exit(main())
