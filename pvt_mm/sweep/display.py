"""The display of a running sweep: a live table on a terminal, otherwise one line for each change."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pvt_mm.sweep.spec import Trial
from pvt_mm.sweep.trials import Status

STYLES = {'finished': 'green', 'failed': 'bold red', 'interrupted': 'yellow', 'running': 'cyan'}


@contextlib.contextmanager
def display(metric: str, console: Console | None = None) -> Iterator[Callable[[dict[Trial, Status]], None]]:
    """Yields a function that shows the current statuses of all trials.

    Args:
        metric: The name of the metric to show.
        console: Where to print; a terminal gets a live table.
    """
    console = console or Console()
    last: dict[Trial, tuple] = {}

    def print_changes(statuses: dict[Trial, Status]) -> None:
        for trial, status in statuses.items():
            now = (status.state, status.progress.startswith('epoch') and status.progress, status.metric)
            if last.get(trial) == now or status.state == 'waiting':
                continue
            value = status.metric is not None and f'{metric} {status.metric:.4g}'
            parts = [status.state, status.progress, value, status.eta and f'{status.eta} remaining']
            line = f'{time.strftime("%H:%M:%S")} {trial.name}: {", ".join(filter(None, parts))}'
            console.print(line, highlight=False, markup=False, soft_wrap=True)
            last[trial] = now

    if not console.is_terminal:
        yield print_changes
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda statuses: live.update(_table(statuses, metric), refresh=True)


def _table(statuses: dict[Trial, Status], metric: str) -> Table:
    counts = Counter(status.state for status in statuses.values())
    caption = ', '.join(f'{count} {state}' for state, count in counts.items())
    table = Table('trial', 'state', 'progress', metric, 'remaining', caption=caption, caption_justify='left', box=None)
    for column in table.columns[2:]:
        column.justify = 'right'
    for trial, status in statuses.items():
        state = f'[{STYLES.get(status.state, "dim")}]{status.state}[/]'
        value = '' if status.metric is None else f'{status.metric:.4g}'
        table.add_row(trial.name, state, status.progress, value, status.eta)
    return table
