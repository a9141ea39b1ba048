"""``python -m hetero.cli`` is ``hetero``."""

from __future__ import annotations

from hetero.cli import main

if __name__ == "__main__":
    main()
