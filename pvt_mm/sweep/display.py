"""How a sweep looks while it runs: a live table on a terminal, a line for each change elsewhere."""

import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pvt_mm.sweep.spec import Trial
from pvt_mm.sweep.trials import Status

STYLES = {
    'finished': 'green',
    'failed': 'bold red',
    'cut off': 'yellow',
    'running': 'cyan',
    'queued': 'dim',
    'new': 'dim',
}


def table(statuses: dict[Trial, Status], metric: str) -> Table:
    """Returns every trial's state, progress, last metric and remaining time, a row each."""
    counts = Counter(status.state for status in statuses.values())
    caption = ', '.join(f'{count} {state}' for state, count in counts.items())
    drawn = Table('trial', 'state', 'progress', metric, 'to go', caption=caption, caption_justify='left', box=None)
    for column in drawn.columns[2:]:
        column.justify = 'right'
    for trial, status in statuses.items():
        style = STYLES.get(status.state, 'dim')
        drawn.add_row(
            trial.name,
            f'[{style}]{status.state}[/]',
            status.progress,
            number(status.metric),
            status.eta,
        )
    return drawn


def number(value: float | None) -> str:
    """Returns a metric as tables show it, to four digits; nothing for None."""
    return '' if value is None else f'{value:.4g}'


class Display:
    """Shows statuses as they change, within a ``with`` block.

    Args:
        metric: The metric that is shown.
        console: Where; a terminal gets a live table.
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
        """Shows where the trials stand now."""
        if self.live:
            self.live.update(table(statuses, self.metric), refresh=True)
            return
        for trial, status in statuses.items():
            now = (status.state, status.progress.startswith('epoch') and status.progress, status.metric)
            if self.last.get(trial) == now or status.state == 'waiting':
                continue
            metric = '' if status.metric is None else f'{self.metric} {number(status.metric)}'
            parts = [status.state, status.progress, metric, f'{status.eta} to go' if status.eta else '']
            line = f'{time.strftime("%H:%M:%S")} {trial.name}: {", ".join(part for part in parts if part)}'
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            self.last[trial] = now
