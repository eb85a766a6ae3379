"""Windows' module `msvcrt` as far as locks need it, on the locks of open files that Linux has.

As on Windows, a lock belongs to an open file, is refused at once where another holds it, and ends with its process.
"""

import errno
import fcntl
import os
import struct

LK_UNLCK, LK_NBLCK = 0, 2


def locking(descriptor: int, mode: int, count: int) -> None:
    """Lock or unlock `count` bytes from the current position of the file on."""
    kind = {LK_NBLCK: fcntl.F_WRLCK, LK_UNLCK: fcntl.F_UNLCK}[mode]
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    # Windows refuses to read locked bytes, so that no file may hold them.
    assert os.fstat(descriptor).st_size <= position
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, position, count, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except BlockingIOError as error:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from error
