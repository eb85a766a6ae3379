"""``python -m bench.step``; see `bench.step.command`."""

from .command import main

main()
