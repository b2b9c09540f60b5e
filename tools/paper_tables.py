#!/usr/bin/env python
"""Print the tables of both papers with the parameters and GFLOPs of the configs and the metrics of runs."""

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
HEAD = """# The tables of the {name}

Written by `tools/paper_tables.py`. **Quoted** figures are from the paper. **Computed** figures are of the configs of
this repository: the parameters of the whole model and its multiply-adds on one image of H x W pixels, with the
difference from the quoted figure in brackets. **Measured** figures are of runs of these configs in `work_dirs`; tables
without such columns have none.

Computed parameters are within 1% of the paper's and GFLOPs within 2%, or within half a unit of the last quoted digit;
exceptions are explained below their table.
{note}
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__ + ' Writes docs/tables.md and docs/tables_v2.md; the last line of the output is JSON.',
        epilog='Example: tools/paper_tables.py --results work_dirs',
    )
    parser.add_argument(
        '--results',
        type=Path,
        help='the folder of the work directories (default: work_dirs, if it exists)',
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'docs', help='the folder to write to (default: docs)')
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
    if args.out.is_file():
        raise InputError(f'{args.out} is a file: --out takes a folder')
    for paper in tables.PAPERS:
        check_writable(args.out / paper.file)
    runs, refused = tables.measured(ROOT / 'configs', results)
    console = Console(width=None if sys.stdout.isatty() else 160)
    figures, unexplained = {}, []
    for paper in tables.PAPERS:
        made = {
            number: tables.rows(paper, number, ROOT / 'configs', runs)
            for number in track(paper.tables, 'counting', console=Console(stderr=True), transient=True)
        }
        with atomic_write(args.out / paper.file) as temporary:
            temporary.write_text(document(paper, made))
        console.print(f'The tables of the {paper.name}\n', style='bold')
        for number, rows in made.items():
            console.print(shown(paper, number, rows, console.width))
            for row in rows:
                if row.why:
                    console.print(f'{row.name}: {row.why}', style='dim')
            console.print()
            unexplained += [f'{row.name}: {name}' for row in rows if not row.why for name in row.out_of_bounds()]
        figures[paper.name] = {
            number: {row.name: row.computed for row in rows if row.computed} for number, rows in made.items()
        }
    for line in refused:
        console.print(f'not measured: {line}', highlight=False)
    if unexplained:
        raise InputError(f'out of bounds without a Difference in the metafile: {"; ".join(unexplained)}')
    print(json_text(figures))


def document(paper: tables.Paper, made: dict[int, list[tables.Row]]) -> str:
    """Returns the text of a file of ``docs``, given the rows of a paper's tables."""
    head = HEAD.format(name=paper.name, note=paper.note)
    return '\n'.join([head, *(f'{tables.markdown(paper, number, rows)}\n' for number, rows in made.items())])


def shown(paper: tables.Paper, number: int, rows: list[tables.Row], width: int) -> Table:
    """Returns a table for a terminal of ``width`` characters, without the last columns if they do not fit."""
    title = f'Table {number}. {paper.tables[number].title}'
    folders = {row.name.rpartition('/')[0] for row in rows}
    if len(folders) == 1 and folders != {''}:
        (folder,) = folders
        title = f'{title} (configs/{folder})'
        rows = [row._replace(name=row.name.removeprefix(f'{folder}/')) for row in rows]
    heads, cells = tables.grid(paper.tables[number], rows)
    heads = [head.replace(', ', '\n').replace(' (', '\n(') for head in heads]
    table = Table(title=title, box=None, header_style='bold', title_justify='left', caption_justify='left')
    left = width
    for i, (head, *column) in enumerate(zip(heads, *cells, strict=True)):
        left -= 2 + max(len(text) for text in (*head.split('\n'), *column))
        if left < 0:
            left_out = ', '.join(heads[i:]).replace('\n', ' ')
            table.caption = f'not shown: {left_out}; see docs/{paper.file} or use a wider terminal'
            break
        table.add_column(head, justify='right' if i else 'left', no_wrap=True, vertical='bottom')
    for line in cells:
        table.add_row(*line[: len(table.columns)])
    return table


if __name__ == '__main__':
    sys.exit(main())
