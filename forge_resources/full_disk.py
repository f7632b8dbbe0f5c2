"""Detection of a full disk among other errors, and the message for the user."""

import errno

from safetensors import SafetensorError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_full(error: OSError | SafetensorError) -> bool:
    """Return whether an error means that the disk or the quota is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    # safetensors writes in Rust and reports the operating system's error only as text
    return any(f"os error {code}" in str(error) for code in _FULL)


def no_room(error: OSError | SafetensorError) -> str:
    """Return the message that tells the user what to do about a full disk."""
    return f"no room on the disk ({error}): free some space, then run again; training goes on from its checkpoint"
