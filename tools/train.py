#!/usr/bin/env python
"""Train the model of a config, of any task."""

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise

try:
    from pvt_mm.checkpoint import trust_checkpoints
    from pvt_mm.engine import checks, run
    from pvt_mm.errors import command
except Exception as error:  # a wrong MMCV is an AssertionError, a wrong NumPy a ValueError
    sys.exit(f'error: {type(error).__name__}: {error}\ntools/doctor.py says what is wrong here and what mends it')


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Example: tools/train.py configs/retinanet/pvt_s_1x.py --cfg-options data_root=/data/coco',
    )
    parser.add_argument('config', help='the config file')
    run.add_common_arguments(parser)
    parser.add_argument(
        '--amp', nargs='?', const='fp16', choices=('fp16', 'bf16'), help='mixed precision (fp16 where none is named)'
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help="scale the learning rate by the batch over the config's own"
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH|auto',
        help="go on from a checkpoint; 'auto' or no value: from the last one in the work directory",
    )
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument(
        '--seed', type=int, help="seed of every random number (default: the config's, or else a random one, logged)"
    )
    parser.add_argument('--deterministic', action='store_true', help='use deterministic algorithms only')
    argv = sys.argv[1:] if argv is None else list(argv)
    for i, (flag, value) in enumerate(pairwise([*argv, ''])):
        if flag == '--amp' and value not in ('fp16', 'bf16'):
            argv[i] = '--amp=fp16'  # as in `--amp CONFIG`, where argparse would take the config for the value
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    trust_checkpoints(args.trust)
    config = run.prepare_config(args)
    if args.amp:
        run.use_amp(config, args.amp)
    if args.auto_scale_lr:
        run.scale_lr(config)
    if args.no_validate:
        run.skip_validation(config)
    run.set_randomness(config, args.seed, args.deterministic)
    if args.resume:
        run.resume(config, args.resume)
    checks.check_data(config, 'train', 'val')
    checks.check_init_weights(config)
    if config.get('resume'):
        checks.check_resumable(config.load_from)
    runner = run.build_runner(config)
    checks.check_pretrained(runner.model)
    if config.get('load_from'):
        checks.check_checkpoint(runner.model, config.load_from, strict=bool(config.get('resume')))
    with run.unreadable_images_named(), run.lost_processes_named():
        runner.train()


if __name__ == '__main__':
    sys.exit(main())
