"""The display of a running sweep: a live table on a terminal, otherwise one line for each change."""

import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pvt_mm.sweep.spec import Trial
from pvt_mm.sweep.trials import Status

STYLES = {'finished': 'green', 'failed': 'bold red', 'interrupted': 'yellow', 'running': 'cyan'}


class Display:
    """Shows the statuses of trials as they change, within a ``with`` block.

    Args:
        metric: The name of the metric to show.
        console: Where to print; a terminal gets a live table.
    """

    def __init__(self, metric: str, console: Console | None = None):
        self.metric, self.console = metric, console or Console()
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.last: dict[Trial, tuple] = {}

    def __enter__(self) -> 'Display':
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def show(self, statuses: dict[Trial, Status]) -> None:
        """Shows the current status of every trial."""
        if self.live:
            self.live.update(to_table(statuses, self.metric), refresh=True)
            return
        for trial, status in statuses.items():
            now = (status.state, status.progress.startswith('epoch') and status.progress, status.metric)
            if self.last.get(trial) == now or status.state == 'waiting':
                continue
            metric = f'{self.metric} {_number(status.metric)}' if status.metric is not None else ''
            parts = [status.state, status.progress, metric, f'{status.eta} remaining' if status.eta else '']
            line = f'{time.strftime("%H:%M:%S")} {trial.name}: {", ".join(filter(None, parts))}'
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            self.last[trial] = now


def to_table(statuses: dict[Trial, Status], metric: str) -> Table:
    """Returns a table with the state, progress, last metric and remaining time of every trial."""
    counts = Counter(status.state for status in statuses.values())
    caption = ', '.join(f'{count} {state}' for state, count in counts.items())
    table = Table('trial', 'state', 'progress', metric, 'remaining', caption=caption, caption_justify='left', box=None)
    for column in table.columns[2:]:
        column.justify = 'right'
    for trial, status in statuses.items():
        state = f'[{STYLES.get(status.state, "dim")}]{status.state}[/]'
        table.add_row(trial.name, state, status.progress, _number(status.metric), status.eta)
    return table


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.4g}'
