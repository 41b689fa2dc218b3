"""Locks of open files: one process works at a time, and the kernel releases those of a process that dies."""

import errno
import fcntl
from typing import IO

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What a file system without locks answers."""


def take_lock(stream: IO[bytes]) -> None:
    """Lock an open file until it is closed; on a file system without locks it stays unlocked.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be locked for another reason.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
