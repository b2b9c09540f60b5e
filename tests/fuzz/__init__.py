"""Properties that hold for any input of a user, tested on inputs that Hypothesis generates.

`make test` runs a few cases, always the same ones; `make test-fuzz` runs thousands.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable

from hypothesis import Phase, given, settings

TARGETS = ('backbone', 'checkpoint reader', 'annotations', 'command lines')
FULL = os.environ.get('PVT_MM_FUZZ') == 'full'
CASES = Counter()


def cases(target: str, full: int, quick: int = 6) -> Callable[..., Callable]:
    """Returns Hypothesis' ``given`` with the number of cases of the profile, which counts each case for ``target``."""
    assert target in TARGETS

    def given_cases(*strategies, **named) -> Callable[[Callable], Callable]:
        def decorate(test: Callable) -> Callable:
            @functools.wraps(test)
            def counted(*args, **kwargs):
                CASES[target] += 1
                return test(*args, **kwargs)

            phases = [
                Phase.explicit,
                Phase.generate,
                *[Phase.shrink] * (target != 'command lines'),
            ]  # which take too long
            profile = settings(max_examples=full if FULL else quick, phases=phases)
            return profile(given(*strategies, **named)(counted))

        return decorate

    return given_cases


def assert_clear(message: str, limit: int = 600) -> None:
    """Asserts that an error is one line of readable length."""
    assert message.strip()
    assert '\n' not in message
    assert len(message) < limit, f'{len(message)} characters: {message}'
