"""One call from bytes to bytes: the verb, its checks in the order the spec implies, and the one place where
an error becomes JSON.

The order is: environment, stdin, JSON, name, version, the plugin's configuration, the namespace, the lock;
only then the plugin's verb runs. So an environment fault wins over a JSON fault, and nothing has happened
when a call is refused.
"""

from __future__ import annotations

from cni import jsonio
from cni.config import Reader, text
from cni.context import Context
from cni.errors import DECODING_FAILURE, INTERNAL, INVALID_CONFIG, INVALID_NETNS, IO_FAILURE, CniError
from cni.kernel import NetnsError
from cni.lock import Lock
from cni.names import attachment_key, file_name, identifier_fault
from cni.request import ATTACHMENT, Request
from cni.version import LATEST, SUPPORTED, negotiate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType
    from typing import Protocol

    from cni.delegate import Delegate
    from cni.result import Result
    from cni.world import World

    class Stdin(Protocol):
        """How the caller reads stdin; both raise CniError 5 on failure."""

        def all(self) -> bytes:
            """Everything up to its end, with at most 10 s of silence."""

        def probe(self) -> bytes:
            """One JSON value, the end, or what came before 100 ms of silence."""


VALID_ATTACHMENTS = "cni.dev/valid-attachments"


def serve(world: World, name: str, environ: Mapping[str, str], stdin: Stdin, write: Callable[[bytes], None]) -> int:
    """Answer one call of plugin `name`; returns the exit code.

    `write` delivers stdout. When it fails, an ADD is taken back, because nobody knows its result.
    """
    version = LATEST
    try:
        try:
            request = Request(environ)
            if request.command != "VERSION":
                request.check_args(world.plugin(name).ARGS)
        except CniError:
            version = _spoken(_probe(stdin)) or LATEST
            raise
        if request.command == "VERSION":
            write(jsonio.encode({"cniVersion": _asked(_probe(stdin)) or LATEST, "supportedVersions": list(SUPPORTED)}))
            return 0
        data = stdin.all()
        version = _spoken(data) or LATEST
        with Call(world, name, request, decode(data)) as call:
            result = call.run()
            if result is not None:
                write(jsonio.encode(result.json(call.context.version)))
            call.context.undo.commit()
    except CniError as error:
        write(error_json(error, version))
        return 1
    except OSError as error:
        write(error_json(CniError(IO_FAILURE, f"I/O failure: {error}"), version))
        return 1
    except Exception as error:  # the last line of defence: a CNI caller must get JSON, never a traceback
        write(error_json(_unexpected(error), version))
        return 1
    return 0


def call_in_process(world: World, name: str, request: Request, config: Reader) -> Result | None:
    """A delegate's call, when the delegate is one of our own plugins."""
    with Call(world, name, request, config) as call:
        result = call.run()
        call.context.undo.commit()
        return result


def error_json(error: CniError, version: str) -> bytes:
    """The spec's error object (section 5, "Error")."""
    return jsonio.encode({"cniVersion": version, "code": error.code, "msg": error.msg, "details": error.details})


def decode(data: bytes) -> Reader:
    """The configuration on stdin as a Reader: an object with a valid `name`."""
    found = jsonio.decode(data)
    if found is None:
        found = {}  # Go decodes null into an empty configuration, whose name is then missing
    if not isinstance(found, dict):
        raise CniError(DECODING_FAILURE, f"network configuration: expected a JSON object, found {jsonio.shown(found)}")
    config = Reader(found)
    name = config.raw("name")
    if name is not None and not isinstance(name, str):
        raise CniError(DECODING_FAILURE, f"name: expected a string, found {jsonio.shown(name)}")
    if not name:
        raise CniError(INVALID_CONFIG, "missing network name: the configuration has no `name`", 'add "name": "..."')
    fault = identifier_fault(name)
    if fault:
        raise CniError(INVALID_CONFIG, f"name {name!r}: {fault}", "")
    return config


class Call:
    """One verb of one plugin, entered with everything checked and left with everything released.

    What the verb did is taken back on leaving, unless `context.undo.commit()` was called.
    """

    __slots__ = ("_lock", "_module", "conf", "context", "request")

    def __init__(self, world: World, name: str, request: Request, config: Reader) -> None:
        version = negotiate(config.raw("cniVersion"), request.command)
        self.request = request
        self.context = Context(world, name, request, config, version, self._delegate)
        self._module: ModuleType = world.plugin(name)
        self._lock: Lock | None = None
        request.check_args(self._module.ARGS)
        self._read_previous()
        if request.command == "GC":
            self.context.valid = _valid_attachments(config)
        self.conf = self._module.Conf(config, request)

    def __enter__(self) -> Call:
        if self.request.command in ATTACHMENT:
            self._open_netns()
            try:
                self._lock = self._lock_attachment()
            except BaseException:
                self.context.close()
                raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.context.undo.unwind()
        self.context.close()
        if self._lock is not None:
            self._lock.close()

    def run(self) -> Result | None:
        """The verb itself; a Result from ADD, None from the others."""
        module, context, conf = self._module, self.context, self.conf
        if self.request.command == "ADD":
            result: Result = module.add(context, conf)
            return result
        verbs = {"DEL": module.delete, "CHECK": module.check, "STATUS": module.status, "GC": module.gc}
        verbs[self.request.command](context, conf)
        return None

    def _delegate(self) -> Delegate:
        # Imported here: VERSION and plugins without IPAM never need it.
        from cni.delegate import Delegate

        context = self.context
        return Delegate(context.world, context.request, context.config, call_in_process)

    def _read_previous(self) -> None:
        config, command = self.context.config, self.request.command
        if config.raw("prevResult") is None:
            return
        # Imported here: most calls of an IPAM plugin have none.
        from cni.result import Result

        try:
            self.context.prev_result = Result.read(config.object("prevResult"))
        except CniError as error:
            if command != "DEL":
                raise
            self.context.log(f"{error.msg}; going on without it, DEL must not depend on it")

    def _open_netns(self) -> None:
        """Set `context.pod`, and refuse the caller's own namespace (code 8) or treat it as gone (DEL)."""
        request, kernel = self.request, self.context.world.kernel
        deleting = request.command == "DEL"
        if deleting and not request.netns:
            return
        if not request.netns_override and kernel.is_own(request.netns):
            if deleting:
                return
            raise CniError(
                INVALID_NETNS,
                f"CNI_NETNS {request.netns!r}: plugin's netns and netns from CNI_NETNS should not be the same",
                "give the pod a namespace of its own, or set CNI_NETNS_OVERRIDE=1 if this is meant",
            )
        if not self._module.NETNS:
            return
        try:
            self.context.pod = kernel.open(request.netns)
        except NetnsError as error:
            if not (deleting and error.gone):
                raise

    def _lock_attachment(self) -> Lock | None:
        """The attachment's lock. DEL goes on without one where no file can be made, or a full or read-only /run
        would keep dead pods and their leases."""
        request, world = self.request, self.context.world
        key = attachment_key(request.container_id, request.ifname)
        name = file_name(f"{self.context.network}:{key}:{self.context.plugin_type}")
        try:
            return Lock(f"{world.run_dir}/locks/{name}", world.clock, transient=True)
        except OSError as error:
            if request.command != "DEL":
                raise
            self.context.log(f"cannot lock the attachment: {error}; going on without")
            return None


def _valid_attachments(config: Reader) -> set[tuple[str, str]]:
    """GC's list as (container ID, interface) pairs. Absent is refused, null and empty mean that none is valid."""
    if not any(key.casefold() == VALID_ATTACHMENTS for key in config.value):
        raise CniError(
            INVALID_CONFIG,
            f"{VALID_ATTACHMENTS}: expected the list of valid attachments, found no such key",
            "pass [] when every attachment of the network is to be removed",
        )
    pairs = set()
    for entry in config.objects(VALID_ATTACHMENTS):
        container_id, ifname = entry.raw("containerID"), entry.raw("ifname")
        pairs.add((text(entry.at("containerID"), container_id), text(entry.at("ifname"), ifname)))
    return pairs


def _probe(stdin: Stdin) -> bytes:
    try:
        return stdin.probe()
    except CniError:
        return b""


def _asked(data: bytes) -> str | None:
    """The cniVersion in a possibly broken input, None when none can be read."""
    try:
        found = jsonio.decode(data)
    except CniError:
        return None
    version = Reader(found).raw("cniVersion") if isinstance(found, dict) else None
    return version if isinstance(version, str) and version else None


def _spoken(data: bytes) -> str | None:
    """The same, when it is one that we speak."""
    version = _asked(data)
    return version if version in SUPPORTED else None


def _unexpected(error: Exception) -> CniError:
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else "unknown place"
    return CniError(INTERNAL, f"{type(error).__name__}: {error}", f"unexpected, at {place}; please report it")
