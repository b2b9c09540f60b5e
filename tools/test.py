#!/usr/bin/env python
"""Test a checkpoint on the test data of its config, and print the metrics."""

import argparse
import json
import sys
from collections.abc import Sequence

try:
    from mmengine.dist import is_main_process

    from pvt_mm.checkpoint import trust_checkpoints
    from pvt_mm.engine import checks, run
    from pvt_mm.errors import command
except Exception as error:  # a wrong MMCV is an AssertionError, a wrong NumPy a ValueError
    sys.exit(f'error: {type(error).__name__}: {error}\ntools/doctor.py says what is wrong here and what mends it')


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' The last line of the output is the metrics as JSON.',
        epilog='Example: tools/test.py configs/retinanet/pvt_s_1x.py work_dirs/pvt_s_1x/epoch_12.pth',
    )
    parser.add_argument('config', help='the config file')
    parser.add_argument('checkpoint', help='the checkpoint file')
    run.add_common_arguments(parser)
    parser.add_argument('--out', help='write the predictions to this .pkl file (segmentation: or to this folder)')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='draw the predictions into this folder, below the work directory')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show shows a picture (default: 2)')
    parser.add_argument('--tta', action='store_true', help="test-time augmentation, the config's tta_model")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    run.check_checkpoint_exists(args.checkpoint)
    trust_checkpoints(args.trust)
    config = run.prepare_config(args)
    if args.show or args.show_dir:
        run.draw_predictions(config, args.show, args.show_dir, args.wait_time)
    if args.tta:
        run.use_tta(config)
    if args.out:
        run.dump_predictions(config, args.out)
    config.load_from = args.checkpoint
    checks.check_data(config, 'test')
    runner = run.build_runner(config)
    checks.check_checkpoint(runner.model, args.checkpoint, strict=True)
    with run.unreadable_images_named():
        metrics = runner.test()
    if is_main_process():
        if not metrics:
            print('no metrics: the model predicts nothing on any image, or test_evaluator writes results only')
        print(json.dumps(metrics, default=float))  # IoUMetric's are NumPy's floats


if __name__ == '__main__':
    sys.exit(main())
