"""``python -m bench.gpu``; see `bench.gpu.command`."""

from .command import main

if __name__ == "__main__":
    main()
