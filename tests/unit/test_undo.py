"""ADD unwinds in reverse whatever fails; DEL and GC go on and tell all of it."""

from __future__ import annotations

from functools import partial
from typing import NoReturn

import pytest

from cni.errors import INTERNAL, INVALID_CONFIG, CniError, KernelError, errno_text, merge_errors
from cni.undo import Teardown, Undo


def fail(error: Exception) -> NoReturn:
    raise error


def test_unwinds_in_reverse_and_past_failures() -> None:
    log: list[str] = []
    done: list[int] = []
    undo = Undo(log.append)
    undo.push("first", partial(done.append, 1))
    undo.push("broken", partial(fail, RuntimeError("no luck")))
    undo.push("refused", partial(fail, CniError(7, "never")))
    undo.push("last", partial(done.append, 4))

    undo.unwind()

    assert done == [4, 1]
    assert log == ["undo failed: refused: never", "undo failed: broken: no luck"]
    undo.unwind()
    assert done == [4, 1]


def test_nothing_is_taken_back_after_commit() -> None:
    undo = Undo(print)
    undo.push("step", partial(fail, RuntimeError()))

    undo.commit()

    undo.unwind()


def test_teardown_goes_on_and_tells_every_failure() -> None:
    done: list[int] = []
    teardown = Teardown()

    teardown.step("one", partial(fail, CniError(INVALID_CONFIG, "first", "do this")))
    teardown.step("two", partial(fail, OSError(5, "I/O error")))
    teardown.step("three", partial(done.append, 3))

    with pytest.raises(CniError) as caught:
        teardown.finish()
    assert done == [3]
    assert caught.value.code == INVALID_CONFIG  # the first failure's
    assert caught.value.msg == "first; two: EIO (Input/output error)"
    assert caught.value.details == "do this"


def test_teardown_without_failures_ends_quietly() -> None:
    Teardown().finish()


def test_merge_errors() -> None:
    one = CniError(7, "one", "x")

    assert merge_errors([]) is None
    assert merge_errors([one]) is one
    merged = merge_errors([CniError(INTERNAL, "a"), one])
    assert merged is not None
    assert (merged.code, merged.msg, merged.details) == (INTERNAL, "a; one", "x")


def test_kernel_error_names_verb_object_and_errno() -> None:
    error = KernelError("enslave veth1 to cni0", 16, "try again")

    assert (error.code, error.errno) == (INTERNAL, 16)
    assert str(error) == "enslave veth1 to cni0: EBUSY (Device or resource busy): try again"
    assert errno_text(9999).startswith("9999 (")
