"""Properties that hold whatever a user gives, tried on many inputs that Hypothesis makes up.

`make test` tries a few of them, always the same ones; `make test-fuzz` thousands.
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
    """Makes ``given`` of a test, with the number of cases of the profile, each of which counts for ``target``."""
    assert target in TARGETS

    def given_cases(*strategies, **named) -> Callable[[Callable], Callable]:
        def decorate(test: Callable) -> Callable:
            @functools.wraps(test)
            def counted(*args, **kwargs):
                CASES[target] += 1
                return test(*args, **kwargs)

            phases = [Phase.explicit, Phase.generate, *[Phase.shrink] * (target != 'command lines')]  # which take long
            profile = settings(max_examples=full if FULL else quick, phases=phases)
            return profile(given(*strategies, **named)(counted))

        return decorate

    return given_cases


def assert_clear(message: str, limit: int = 600) -> None:
    """Asserts that an error is a line that a user can read."""
    assert message.strip()
    assert '\n' not in message
    assert len(message) < limit, f'{len(message)} characters: {message}'
