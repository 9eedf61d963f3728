"""`python benchmarks/gallery`: see `gallery.run`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `gallery`

from gallery.run import main

if __name__ == "__main__":
    main()
