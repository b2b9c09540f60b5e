#!/usr/bin/env python
"""Print Tables 2 to 11 of the paper with the parameters and GFLOPs of the configs and the metrics of runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, whichever is installed

from pvt_mm.apis.command_line import Parser, starting
from pvt_mm.utils.errors import InputError, command
from pvt_mm.utils.files import atomic_write, check_writable
from pvt_mm.utils.text import json_text

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# The tables of the paper

Written by `tools/paper_tables.py`. **Quoted** figures are from the paper. **Computed** figures are of the configs of
this repository: the parameters of the whole model and its multiply-adds on one image of H x W pixels, with the
difference from the quoted figure in brackets. **Measured** figures are of runs of these configs in `work_dirs`; tables
without such columns have none.

Computed parameters are within 1% of the paper's and GFLOPs within 2%, or within half a unit of the last quoted digit;
exceptions are explained below their table. ResNet detectors have up to 0.7% more parameters than quoted, since the
paper does not count the frozen stem and first stage (0.2 to 0.4 M).
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' Writes docs/tables.md; the last line of the output is JSON.',
        epilog='Example: tools/paper_tables.py --results work_dirs',
    )
    parser.add_argument(
        '--results',
        type=Path,
        help='the folder of the work directories (default: work_dirs, if it exists)',
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/tables.md', help='(default: docs/tables.md)')
    return parser.parse_args(argv)


with starting(__name__, parse_args):
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from pvt_mm.analysis import tables


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    results = args.results or Path('work_dirs')
    if args.results and not results.is_dir():
        raise InputError(f'--results {results} is not a folder')
    check_writable(args.out)
    runs, refused = tables.measured(ROOT / 'configs', results)
    made = {
        number: tables.table(number, ROOT / 'configs', runs)
        for number in track(tables.TITLES, 'counting', console=Console(stderr=True), transient=True)
    }
    with atomic_write(args.out) as temporary:
        temporary.write_text(document(made))
    console = Console(width=None if sys.stdout.isatty() else 160)
    for number, rows in made.items():
        console.print(shown(number, rows, console.width))
        for row in rows:
            if row.why:
                console.print(f'{row.name}: {row.why}', style='dim')
        console.print()
    for line in refused:
        console.print(f'not measured: {line}', highlight=False)
    every_row = [row for rows in made.values() for row in rows]
    unexplained = [f'{row.name}: {name}' for row in every_row if not row.why for name in row.out_of_bounds()]
    if unexplained:
        raise InputError(f'out of bounds without a Difference in the metafile: {"; ".join(unexplained)}')
    figures = {str(number): {row.name: row.computed for row in rows if row.computed} for number, rows in made.items()}
    print(json_text(figures))


def document(made: dict[int, list[tables.Row]]) -> str:
    """Returns the text of docs/tables.md."""
    return '\n'.join([HEAD, *(f'{tables.markdown(number, rows)}\n' for number, rows in made.items())])


def shown(number: int, rows: list[tables.Row], width: int) -> Table:
    """Returns a table for a terminal of ``width`` characters, without the last columns if they do not fit."""
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
            table.caption = f'not shown: {left_out}; see docs/tables.md or use a wider terminal'
            break
        table.add_column(head, justify='right' if i else 'left', no_wrap=True, vertical='bottom')
    for line in cells:
        table.add_row(*line[: len(table.columns)])
    return table


if __name__ == '__main__':
    sys.exit(main())
