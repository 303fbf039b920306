"""Checks: one PASS or FAIL line each, counted, with what went wrong below it."""

import contextlib
import sys
import time

_passed = 0
_failed = 0


class Failed(Exception):
    """A check did not hold; the message says what was seen."""


class _Abort(Exception):
    """A check that later ones build on has failed."""


@contextlib.contextmanager
def check(name, needed=False):
    """Runs the block as one check. After a failed `needed` check the script ends."""
    global _passed, _failed
    start = time.monotonic()
    try:
        yield
    except _Abort:
        raise
    except Exception as error:  # a check reports whatever went wrong in it
        _failed += 1
        print(f"FAIL {name} ({time.monotonic() - start:.1f} s)", flush=True)
        kind = "" if isinstance(error, (Failed, AssertionError)) else f"{type(error).__name__}: "
        for line in f"{kind}{error}".splitlines() or [""]:
            print(f"     {line}", flush=True)
        if needed:
            raise _Abort(name) from error
    else:
        _passed += 1
        print(f"PASS {name} ({time.monotonic() - start:.1f} s)", flush=True)


def note(text):
    """A fact worth reading in the log: a figure, a version."""
    print(f"     {text}", flush=True)


def finish(main):
    """Runs a script's `main` and exits: 0 if every check passed and there was at least one."""
    global _failed
    try:
        main()
    except _Abort as abort:
        print(f"     ended: the rest needs '{abort}'", flush=True)
    except Exception as error:
        _failed += 1
        print(f"FAIL outside any check: {type(error).__name__}: {error}", flush=True)
    sys.exit(0 if _failed == 0 and _passed > 0 else 1)
