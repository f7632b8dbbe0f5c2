"""How a full disk is told from other errors, and what a person is told then."""

import errno

from safetensors import SafetensorError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_full(error: OSError | SafetensorError) -> bool:
    """Whether the error says that there is no room to write."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    # safetensors writes in Rust and reports the operating system's error only as text
    return any(f"os error {code}" in str(error) for code in _FULL)


def no_room(error: OSError | SafetensorError) -> str:
    """What to do about it."""
    return f"no room on the disk ({error}): free some space, then run again; training goes on from its checkpoint"
