"""How much the agent takes on at a time: what its open file descriptors allow.

A call that was taken and fails for want of a descriptor is a failed pod; one that was declined runs one-shot. So
the bounds follow from the limit of this process, with half of it kept for what cannot be foreseen.
"""

from __future__ import annotations

import resource

from agent.workers import MOST, MOST_CALLS, WORKING

# Descriptors: a connection and three namespaces; and what a call has open while it runs (sockets, folders, locks,
# pipes to a program).
_PER_CALL = 4
_PER_THREAD = 24
_ARRIVING = 512
# More would be of no use, and foreign programs inherit it.
_DESCRIPTORS = 1 << 16


class Limits:
    """Bounds for a process that may have so many descriptors."""

    def __init__(self, descriptors: int) -> None:
        sixth = descriptors // 6
        self.threads = max(WORKING + 1, min(MOST, sixth // _PER_THREAD))
        self.calls = max(WORKING + 1, min(MOST_CALLS, sixth // _PER_CALL))
        self.arriving = max(WORKING + 1, min(_ARRIVING, sixth // _PER_CALL))


def descriptor_limit() -> int:
    """The most descriptors that this process may have; the limit is raised as far as is allowed and of use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, _DESCRIPTORS)
    if soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted
