#!/usr/bin/env python
"""Download the published weights of a config, and those that its backbone starts from, and verify them."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, starting
from pvt_mm.utils.errors import CheckpointError, InputError, command
from pvt_mm.utils.text import json_text


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__
        + ' Without --dest they go where training and testing look for what a config names by URL, so '
        'that jobs without a network find them (run it on the login node of a cluster). The last line of the output is '
        'JSON.',
        epilog='Example: tools/download.py configs/retinanet/pvt_s_1x.py --dest weights',
    )
    parser.add_argument('config', help='the config file')
    parser.add_argument('--dest', help="folder to put the files in (default: torch.hub's cache, below TORCH_HOME)")
    parser.add_argument(
        '--convert', action='store_true', help='also write the model to NAME_pvt_mm.pth, in the format of this project'
    )
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from pvt_mm.apis.config import check_file, load_config
    from pvt_mm.apis.published import initial_weights, list_published
    from pvt_mm.checkpoint.download import (
        cached_path,
        check_downloaded,
        fetch,
        file_name,
        find_by_name,
        published_digest,
    )
    from pvt_mm.checkpoint.formats import convert
    from pvt_mm.checkpoint.reader import catalog_url, hub_path, read_checkpoint
    from pvt_mm.checkpoint.writer import save_checkpoint


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # removes the part that has been downloaded
    check_file('config', args.config)
    config = load_config(args.config)
    weights, starts = list_published(args.config), initial_weights(config)
    whole = next((one for one in weights if one.downloadable), None)
    start = config.get('load_from')
    named = isinstance(start, str) and '://' in start  # it is the model, whatever is published of the config
    model = start if named else whole and whole.url
    for one in (one for one in weights if not one.downloadable):
        print(f'{one.source}: {_figures(one.metrics)}: {one.url} (Google Drive: download it with a browser)')
    if not weights and not named:
        print(f'no weights of the whole model of {args.config} are published')
    if model is None and not starts:
        raise InputError(f'{args.config}: there is nothing to download')
    files = {}
    for name, url in {**({'model': model} if model else {}), **starts}.items():
        url = catalog_url(url)
        files[name] = hub_path(url) if url.startswith('hf://') else str(_get(url, args.dest))
        what = f'{"load_from" if name == "model" else name} starts from it'
        if name == 'model' and whole and not named:
            what = f'{whole.source}: {_figures(whole.metrics)}'
        print(f'{files[name]}: {os.path.getsize(files[name]) / 1e6:.1f} MB, {_hash(url)}; {what}')
    if args.convert and 'model' in files:
        files['converted'] = _convert(files['model'])
    _print_commands(args.config, files, named, cached=args.dest is None)
    print(json_text(files))


def _get(url: str, folder: str | None) -> Path:
    """Returns the file of a URL, which is downloaded unless it is there and intact."""
    path = Path(folder, file_name(url)) if folder else Path(find_by_name(url) or cached_path(url))
    if path.is_file():
        try:
            check_downloaded(url, path)
            return path
        except CheckpointError as error:
            print(f'{path}: {error}')
    try:
        fetch(url, path, _progress(path.name))
    finally:
        sys.stderr.write('\n' * sys.stderr.isatty())
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        path.unlink()
        raise CheckpointError(f'{url}: {error} (and was removed)') from None
    return path


def _progress(name: str) -> Callable[[int, int], None] | None:
    """Returns what shows the progress of a download in a terminal, in place; elsewhere every tenth of it, in a line."""
    shown = -1

    def report(received: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * received // total if total else received // 2**26
        text = f'{name}: {received / 1e6:.1f}' + (f' of {total / 1e6:.1f} MB' if total else ' MB')
        if sys.stderr.isatty():
            sys.stderr.write(f'\r{text}')
        elif tenth > shown:
            sys.stderr.write(f'{text}\n')
        shown = tenth

    return report


def _convert(path: str) -> str:
    target = str(Path(path).with_name(f'{Path(path).stem}_pvt_mm.pth'))
    save_checkpoint(convert(read_checkpoint(path), 'pvt_mm')[0], target)
    print(f'{target}: the same in the format of this project')
    return target


def _figures(metrics: dict[str, float]) -> str:
    return ', '.join(f'{name} {value}' for name, value in metrics.items())


def _hash(url: str) -> str:
    digest = published_digest(url)
    return f'its SHA-256 begins with {digest}, as published' if digest else 'no hash of it is published'


def _print_commands(config: str, files: dict[str, str], named: bool, cached: bool) -> None:
    model, starts = files.get('model'), [name for name in files if name not in ('model', 'converted')]
    train = f'tools/train.py {config}'
    settings = [f'{name}.init_cfg.checkpoint={files[name]}' for name in starts]
    if model and named:  # whose classes may be others than those of the config
        starts, settings = ['load_from', *starts], [f'load_from={model}', *settings]
    elif model:
        print(f'tools/test.py {config} {model}')
        print(f'tools/demo.py IMAGE {config} {model}')
        print(' '.join([f'{train} --cfg-options load_from={model}', *(f'{name}.init_cfg=None' for name in starts)]))
    if starts and cached:
        print(f'{train}  # finds {" and ".join(starts)} without a network')
    elif starts:
        print(' '.join([train, '--cfg-options', *settings]))


if __name__ == '__main__':
    sys.exit(main())
