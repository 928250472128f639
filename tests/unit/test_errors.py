"""Errors in words."""

from __future__ import annotations

import errno

import pytest

from cni.errors import KernelError, io_failure


def test_a_link_is_named_by_its_place_and_not_by_its_text() -> None:
    found = io_failure(OSError(errno.EACCES, "Permission denied", "ctr:eth0", None, "/run/cnikit/holders/10.1.0.2_24"))

    assert (found.code, found.msg) == (
        5,
        "I/O failure at /run/cnikit/holders/10.1.0.2_24: EACCES (Permission denied)",
    )


def test_a_failure_with_no_path_and_no_number() -> None:
    assert io_failure(OSError(errno.EIO, "x")).msg == "I/O failure: EIO (Input/output error)"
    assert io_failure(OSError("strange")).msg == "I/O failure: strange"
    assert io_failure(OSError(errno.ENOSPC, "x", "/nowhere/at/all")).msg == (
        "I/O failure at /nowhere/at/all: expected room in /nowhere/at, found no space left (ENOSPC)"
    )


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EMFILE, "open files"),
        (errno.ENFILE, "file-max"),
        (errno.ENOMEM, "memory"),
        (errno.ENOBUFS, "dmesg"),
        (errno.E2BIG, "delete pods, or raise"),
    ],
)
def test_the_kernel_s_refusals_have_a_next_step(number: int, remedy: str) -> None:
    assert remedy in KernelError("add route", number).details
    assert remedy in io_failure(OSError(number, "x", "/a")).details
