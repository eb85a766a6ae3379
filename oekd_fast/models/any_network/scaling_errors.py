"""The error of a network that cannot be scaled."""

FACTORY_FORM = "build each student yourself: StudentEnsemble.from_factory(lambda width: ..., example_inputs)"


class ScalingError(ValueError):
    """Raised when a module cannot be scaled; one line that names the module, the operation, its line and the reason.

    Attributes:
        where: module and operation, such as "blocks.0.attn: aten.view (net.py:12)".
        reason: why it cannot be scaled.
    """

    def __init__(self, where: str, reason: str) -> None:
        self.where, self.reason = where, " ".join(reason.split())
        super().__init__(f"{where}: {self.reason}; {FACTORY_FORM}")
