"""``python -m hgsp`` is ``hgsp``."""

import sys

from hgsp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
