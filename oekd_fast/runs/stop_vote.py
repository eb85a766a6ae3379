"""The request to stop of any rank, which all ranks learn of after the same step."""

from __future__ import annotations

from oekd_fast.distributed.vote import Vote
from oekd_fast.distributed.world import World
from oekd_fast.runs.interrupt import StopRequest


class StopVote:
    """What `StopRequest` is to one process, for all ranks of a world.

    Attributes:
        signal_number: the signal that all ranks agree to stop for, or None. In a world of one, it is that of the
            request at any time.

    Args:
        stop: request of this rank, which takes over the signal that another rank has received.
    """

    def __init__(self, stop: StopRequest, world: World) -> None:
        self._stop, self._alone = stop, world.size == 1
        self._vote = Vote(world)
        self._agreed: int | None = None

    @property
    def signal_number(self) -> int | None:
        return self._stop.signal_number if self._alone else self._agreed

    @property
    def reason(self) -> str:
        """See `StopRequest.reason`."""
        return self._stop.reason

    def begin(self) -> None:
        """Start to exchange the requests of all ranks, before a step."""
        if not self._alone:
            self._vote.begin(self._stop.signal_number or 0)

    def end(self) -> None:
        """Learn of the requests that the last `begin` has exchanged, after the step."""
        if self._alone:
            return
        self._agreed = self._vote.result() or None
        if self._agreed is not None and self._stop.signal_number is None:
            self._stop.request(self._agreed)

    def ask(self) -> None:
        """Exchange the requests of all ranks now."""
        self.begin()
        self.end()
