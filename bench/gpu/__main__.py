"""``python -m bench.gpu``; see `bench.gpu.command`."""

from .command import main

main()
