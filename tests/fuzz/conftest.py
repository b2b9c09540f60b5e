"""Hypothesis' profile and the number of cases in the summary."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

from tests.fuzz import CASES, FULL, TARGETS

settings.register_profile(
    'fuzz',
    deadline=None,
    database=None,
    derandomize=not FULL,  # the full profile uses --hypothesis-seed
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
settings.load_profile('fuzz')

ran, failed = Counter(), []


def pytest_report_header(config: pytest.Config) -> str:
    return f'fuzz: seed {config.getoption("hypothesis_seed", None)}, {"full" if FULL else "quick"} profile'


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    before = Counter(CASES)
    try:
        return (yield)
    finally:
        item.user_properties += [('cases', [target, count]) for target, count in (CASES - before).items()]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == 'call':
        for name, value in report.user_properties:
            if name == 'cases':
                ran[value[0]] += value[1]
    if report.failed and 'tests/fuzz/' in report.nodeid:
        failed.append(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ran:
        each = ', '.join(f'{target} {ran[target]}' for target in TARGETS)
        terminalreporter.section('fuzz')
        terminalreporter.write_line(f'{ran.total()} cases: {each}; {len(failed)} failed')
