"""An IPAM plugin for unit tests: ADD answers with `ipam.result`, a verb in `ipam.fails` fails with that code,
and each verb leaves a line in the file `ipam.log`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni.errors import CniError
from cni.result import Result

if TYPE_CHECKING:
    from cni.config import Reader
    from cni.context import Context
    from cni.request import Request

ARGS = None
NETNS = False


class Conf:
    def __init__(self, config: Reader, _request: Request) -> None:
        ipam = config.object("ipam")
        self.result = ipam.object("result")
        self.fails = ipam.object("fails")
        self.log = ipam.string("log")


def add(ctx: Context, conf: Conf) -> Result:
    _called(ctx, conf)
    return Result.read(conf.result)


def _called(ctx: Context, conf: Conf) -> None:
    verb = ctx.request.command
    with open(conf.log, "a") as file:
        file.write(f"{verb} {ctx.request.container_id}\n".replace(" \n", "\n"))
    code = conf.fails.integer(verb)
    if code:
        raise CniError(code, f"fake-ipam fails at {verb}", "as configured")


delete = check = status = gc = _called
