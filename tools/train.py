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
        metavar='PATH|auto',
        help="resume from a checkpoint; 'auto' or no value: from the last one in the work directory",
    )
    parser.add_argument(
        '--vis',
        action='append',
        default=[],
        choices=('tensorboard', 'wandb', 'mlflow'),
        help='also log to TensorBoard, Weights & Biases or MLflow; may be repeated',
    )
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
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
    from pvt_mm.apis import data_checks, weight_checks
    from pvt_mm.apis.config import check_submodules
    from pvt_mm.apis.flags import (
        report_batch_size,
        resume,
        scale_lr,
        set_randomness,
        use_amp,
        use_compile,
        use_trackers,
        warn_of_other_run,
    )
    from pvt_mm.apis.launch import build_runner, prepare_config, report_lost_ranks, report_unknown_arguments
    from pvt_mm.apis.ranks import on_each_machine, on_first_rank
    from pvt_mm.checkpoint.reader import safe_reading
    from pvt_mm.datasets.image_io import report_unreadable_images
    from pvt_mm.engine.randomness import check_deterministic


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with safe_reading(trust=args.trust):
        train(args)


def train(args: argparse.Namespace) -> None:
    """Trains as the command line asks for, after all checks."""
    config = prepare_config(args)
    if args.amp:
        use_amp(config, args.amp)
    if args.auto_scale_lr:
        scale_lr(config)
    if args.compile:
        use_compile(config)
    use_trackers(config, args.vis)
    if args.no_validate:
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
    set_randomness(config, args.seed, args.deterministic)
    if args.resume:
        resume(config, args.resume)
    else:
        on_first_rank(warn_of_other_run, config.work_dir)
    on_each_machine(data_checks.check_paths, config, 'train', 'val')
    on_first_rank(data_checks.check_data, config, 'train', 'val')
    on_first_rank(weight_checks.check_init_weights, config)
    if config.get('resume'):
        on_first_rank(weight_checks.check_resumable, config.load_from)
    runner = build_runner(config)
    check_submodules(config, runner.model)
    report_batch_size(config, runner.world_size, runner.logger)
    check_deterministic(runner.model)
    on_first_rank(weight_checks.check_pretrained, runner.model)
    if config.get('load_from'):
        weight_checks.check_checkpoint_of_ranks(runner.model, config.load_from, strict=bool(config.get('resume')))
    with report_unreadable_images(), report_lost_ranks(), report_unknown_arguments():
        runner.train()


if __name__ == '__main__':
    sys.exit(main())
