#!/usr/bin/env python
"""Print Tables 2 to 11 of the paper beside the parameters and GFLOPs of the configs, and what runs have measured."""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from pvt_mm.analysis import tables
from pvt_mm.errors import InputError, command
from pvt_mm.files import whole_file

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# The tables of the paper

Written by `tools/paper_tables.py`. **Quoted** figures are the paper's. **Computed** ones are those of the configs here:
the parameters of the whole model, and its multiply-adds on one image of H x W pixels, in brackets how far they are from
the quoted ones. **Measured** ones are of runs of these configs in `work_dirs`; a table without such columns has none.

Parameters agree within 1% and GFLOPs within 2%, or to half a unit of the last digit that the paper gives, but where the
lines below a table say why not. The parameters that are up to 0.7% above the paper's are those of ResNets in detectors:
the paper leaves out the frozen stem and first stage, 0.2 to 0.4 M.
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Writes docs/tables.md; the last line of the output is JSON.',
        epilog='Example: tools/paper_tables.py --results work_dirs',
    )
    parser.add_argument(
        '--results',
        type=Path,
        help='the folder of the work directories (default: work_dirs, if it is there)',
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/tables.md', help='(default: docs/tables.md)')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    results = args.results or Path('work_dirs')
    if args.results and not results.is_dir():
        raise InputError(f'--results: {results} is no folder')
    progress = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        try:
            beside = stack.enter_context(whole_file(args.out))
            beside.touch()
        except OSError as error:
            raise InputError(f'--out {args.out} cannot be written: {error.strerror}') from error
        runs, refused = tables.measured(ROOT / 'configs', results)
        made = {
            number: tables.table(number, ROOT / 'configs', runs)
            for number in track(tables.TITLES, 'counting', console=progress, transient=True)
        }
        beside.write_text(document(made))
    console = Console(width=None if sys.stdout.isatty() else 160)
    for number, rows in made.items():
        console.print(shown(number, rows, console.width))
        for row in rows:
            if row.why:
                console.print(f'{row.name}: {row.why}', style='dim')
        console.print()
    for line in refused:
        console.print(f'left out: {line}', highlight=False)
    every_row = [row for rows in made.values() for row in rows]
    unexplained = [f'{row.name}: {name}' for row in every_row if not row.why for name in row.out_of_bounds()]
    if unexplained:
        raise InputError(f'out of the bounds, and no Difference in the metafile says why: {"; ".join(unexplained)}')
    figures = {str(number): {row.name: row.computed for row in rows if row.computed} for number, rows in made.items()}
    print(json.dumps(figures))


def document(made: dict[int, list[tables.Row]]) -> str:
    """Returns docs/tables.md."""
    return '\n'.join([HEAD, *(f'{tables.markdown(number, rows)}\n' for number, rows in made.items())])


def shown(number: int, rows: list[tables.Row], width: int) -> Table:
    """Returns a table for a terminal of ``width`` columns, without the last columns where they have no room."""
    title = f'Table {number}. {tables.TITLES[number]}'
    folders = {row.name.rpartition('/')[0] for row in rows}
    if len(folders) == 1 and folders != {''}:
        (folder,) = folders
        title = f'{title} (configs/{folder})'
        rows = [row._replace(name=row.name.removeprefix(f'{folder}/')) for row in rows]
    heads, cells = tables.grid(number, rows)
    heads = [head.replace(', ', '\n').replace(' (', '\n(') for head in heads]
    table = Table(title=title, box=None, header_style='bold', title_justify='left', caption_justify='left')
    left = width
    for i, (head, *column) in enumerate(zip(heads, *cells, strict=True)):
        left -= 2 + max(len(text) for text in (*head.split('\n'), *column))
        if left < 0:
            left_out = ', '.join(heads[i:]).replace('\n', ' ')
            table.caption = f'without {left_out}: in docs/tables.md, or on a wider terminal'
            break
        table.add_column(head, justify='right' if i else 'left', no_wrap=True, vertical='bottom')
    for line in cells:
        table.add_row(*line[: len(table.columns)])
    return table


if __name__ == '__main__':
    sys.exit(main())
