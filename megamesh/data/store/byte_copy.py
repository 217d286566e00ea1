"""Copies bytes from file to file inside the kernel, where it can do that."""

import errno
import os

CHUNK_BYTES = 1 << 26
BUFFER_BYTES = 1 << 22
_REFUSED = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


def copy_range(source: int, target: int, start: int, offset: int, num_bytes: int) -> None:
    """Copy bytes [start, start + num_bytes) of one open file to byte `offset` of another; neither's position matters or moves.

    Some file systems do not copy by themselves: then the bytes pass through a small buffer. Raises OSError as from the disk, and EOFError
    where the source ends early.
    """
    done = 0
    while done < num_bytes:
        try:
            copied = os.copy_file_range(source, target, min(CHUNK_BYTES, num_bytes - done), start + done, offset + done)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            copied = _copy_through_memory(source, target, start + done, offset + done, num_bytes - done)
        if copied == 0:
            raise EOFError(f"the source ends {num_bytes - done} bytes early")
        done += copied


def _copy_through_memory(source: int, target: int, start: int, offset: int, num_bytes: int) -> int:
    content = os.pread(source, min(BUFFER_BYTES, num_bytes), start)
    written = 0
    while written < len(content):
        written += os.pwrite(target, memoryview(content)[written:], offset + written)
    return written
