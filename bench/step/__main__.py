"""``python -m bench.step``; see `bench.step.command`."""

from .command import main

if __name__ == "__main__":
    main()
