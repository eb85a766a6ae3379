"""``python -m bench.codegen``; see `bench.codegen.command`."""

from .command import main

main()
