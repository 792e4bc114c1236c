"""The program: ``python -m lorakit`` and the command ``lorakit``."""

import signal
import sys

from . import _lorakit


def main() -> int:
    """Runs the words of the command line, and gives the exit code."""
    # The program handles interrupts itself.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _lorakit.main(["lorakit", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
