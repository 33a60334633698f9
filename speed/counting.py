"""A process that counts in a Python loop while it is told to; load.Load starts it. It imports nothing of ours.

Each line on stdin, `count` or `wait`, is answered by the CPU seconds used so far. At the end of stdin it ends: that of
the process that started it, however that came, ends it too.
"""

from __future__ import annotations

import signal
import sys
import threading
import time


def count(allowed: threading.Event) -> None:
    """Counts for ever, while it is allowed to."""
    number = 0
    while True:
        allowed.wait()
        while allowed.is_set():
            number += 1


def main() -> None:
    """Does as it is told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the other one unwinds
    allowed = threading.Event()
    threading.Thread(target=count, args=(allowed,), daemon=True).start()
    for line in sys.stdin:
        if line == "count\n":
            allowed.set()
        else:
            allowed.clear()
        print(time.process_time(), flush=True)


if __name__ == "__main__":
    main()
