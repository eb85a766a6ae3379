"""``python -m bench.operations``; see `bench.operations.command`."""

from .command import main

if __name__ == "__main__":
    main()
