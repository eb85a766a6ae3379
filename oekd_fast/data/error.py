"""The error of data that cannot be loaded."""


class DataError(ValueError):
    """Raised for data that is missing, malformed or inconsistent, and for arguments of the loader out of range."""
