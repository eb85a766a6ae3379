"""``python -m bench.codegen``; see `bench.codegen.command`."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
