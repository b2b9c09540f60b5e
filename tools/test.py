#!/usr/bin/env python
"""Test a checkpoint on the test data of its config, and print the metrics."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, add_common_arguments, starting
from pvt_mm.utils.errors import command
from pvt_mm.utils.text import json_text


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__
        + ' Without ground truth it writes the predictions. The last line of the output is the metrics as JSON.',
        epilog='Example: tools/test.py configs/retinanet/pvt_s_1x.py work_dirs/pvt_s_1x/epoch_12.pth',
    )
    parser.add_argument('config', help='the config file')
    parser.add_argument('checkpoint', help='the checkpoint file, or a work directory for its last checkpoint')
    add_common_arguments(parser)
    parser.add_argument('--out', help='write the predictions to this .pkl file (segmentation: or to this folder)')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='draw the predictions into this folder in the work directory')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds that --show shows each image (default: %(default)s)'
    )
    parser.add_argument('--tta', action='store_true', help="test-time augmentation, the config's tta_model")
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from mmengine.dist import is_main_process

    import pvt_mm.models  # noqa: F401  # imports MMDetection and MMSegmentation, which may be broken
    from pvt_mm.analysis.predictions import find_checkpoint
    from pvt_mm.apis import data_checks, weight_checks
    from pvt_mm.apis.config import check_file
    from pvt_mm.apis.flags import draw_predictions, dump_predictions, use_compile, use_tta
    from pvt_mm.apis.launch import build_runner, prepare_config, report_lost_ranks, report_unknown_arguments
    from pvt_mm.apis.ranks import on_each_machine, on_first_rank
    from pvt_mm.apis.rehearsal import rehearse
    from pvt_mm.apis.run_config import run_config_advice, warn_of_other_classes
    from pvt_mm.apis.schedule import without_workers
    from pvt_mm.apis.unlabelled import use_unlabelled, written_predictions
    from pvt_mm.checkpoint.reader import safe_reading
    from pvt_mm.datasets.image_io import report_unreadable_images


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if Path(args.checkpoint).is_dir():
        args.checkpoint = find_checkpoint(args.checkpoint)
    check_file('checkpoint', args.checkpoint)
    with safe_reading(trust=args.trust):
        metrics, written = test(args)
    if is_main_process():
        for path in written:
            print(f'the predictions are in {path}')
        if not metrics and not written:
            print('no metrics: the model predicts nothing on any image')
        print(json_text(metrics or {'out': written}))


def test(args: argparse.Namespace) -> tuple[dict, list[str]]:
    """Tests as the command line asks for, after all checks, and returns the metrics, and where predictions are."""
    config = prepare_config(args)
    if args.show or args.show_dir:
        draw_predictions(config, args.show, args.show_dir, args.wait_time)
    if args.tta:
        use_tta(config)
    if args.compile:
        use_compile(config)
    if args.out:
        dump_predictions(config, args.out)
    use_unlabelled(config, args.out)
    without_workers(config)
    config.load_from = args.checkpoint
    with run_config_advice(args.config, args.checkpoint):
        on_each_machine(data_checks.check_paths, config, 'test')
    on_first_rank(data_checks.check_data, config, 'test')
    on_first_rank(rehearse, config, 'test')
    weight_checks.check_tested_checkpoint(config, args.checkpoint)
    runner = build_runner(config)
    on_first_rank(warn_of_other_classes, config, args.checkpoint)
    with report_unreadable_images(), report_lost_ranks(), report_unknown_arguments():
        return runner.test(), written_predictions(config)


if __name__ == '__main__':
    sys.exit(main())
