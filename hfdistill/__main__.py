"""``python -m hfdistill ...``, so that ``accelerate launch -m hfdistill run RECIPE`` works."""

from __future__ import annotations

import sys

from hfdistill.cli import main

if __name__ == "__main__":
    sys.exit(main())
