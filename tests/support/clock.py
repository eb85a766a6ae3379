"""A clock that tests set."""


class Clock:
    """A clock that stands still until `wait` is called."""

    def __init__(self) -> None:
        self._now = 1000.0

    def __call__(self) -> float:
        return self._now

    def wait(self, seconds: float) -> None:
        self._now += seconds
