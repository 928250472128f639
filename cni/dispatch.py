"""One call from bytes to bytes: the verb, its checks in the order the spec implies, and the one place where
an error becomes JSON.

The order is: environment, stdin, JSON, name, version, the plugin's configuration, the namespace, the lock;
only then the plugin's verb runs. So an environment fault wins over a JSON fault, and nothing has happened
when a call is refused. An `Exchange` can stop between the two: the agent asks its client there whether to go on.
"""

from __future__ import annotations

from cni import jsonio
from cni.config import Reader, text
from cni.context import Context
from cni.errors import DECODING_FAILURE, INTERNAL, INVALID_CONFIG, INVALID_NETNS, CniError, io_failure
from cni.kernel import NetnsError
from cni.names import call_lock, identifier_fault
from cni.request import ATTACHMENT, CLEANING, Request
from cni.version import LATEST, SUPPORTED, negotiate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Protocol

    from cni.context import Plugin
    from cni.delegate import Delegate
    from cni.result import Result
    from cni.world import HeldLock, World

    # Called once with the exit code and stdout (empty for none). When it raises OSError, an ADD is taken back,
    # because nobody knows its result.
    Deliver = Callable[[int, bytes], None]

    class Stdin(Protocol):
        """How the caller reads stdin; both raise CniError 5 on failure."""

        def all(self) -> bytes:
            """Everything up to its end, with at most 10 s of silence."""

        def probe(self) -> bytes:
            """One JSON value, the end, or what came before 100 ms of silence."""


VALID_ATTACHMENTS = "cni.dev/valid-attachments"


def serve(world: World, name: str, environ: Mapping[str, str], stdin: Stdin, deliver: Deliver) -> int:
    """Answer one call of plugin `name`; returns the exit code."""
    exchange = Exchange(world, name, environ, stdin, deliver)
    if exchange.prepare():
        exchange.perform()
    return exchange.status


class Exchange:
    """One call, from the environment and stdin to the answer, which `deliver` is given.

    `version` is the cniVersion for error objects, `call` what `prepare` has found.
    """

    __slots__ = ("_deliver", "_environ", "_name", "_stdin", "_world", "call", "status", "version")

    def __init__(self, world: World, name: str, environ: Mapping[str, str], stdin: Stdin, deliver: Deliver) -> None:
        self._world = world
        self._name = name
        self._environ = environ
        self._stdin = stdin
        self._deliver = deliver
        self.version = LATEST
        self.status = 0
        self.call: Call | None = None

    def prepare(self) -> bool:
        """Read and check everything that can be without an effect. False when that was all and the call is answered."""
        self._guarded(self._read)
        return self.call is not None

    def perform(self) -> None:
        """Run the verb and deliver its answer."""
        self._guarded(self._run)

    def _read(self) -> None:
        try:
            request = Request(self._environ)
            if request.command != "VERSION":
                request.check_args(self._world.plugin(self._name).ARGS)
        except CniError:
            self.version = _spoken(_probe(self._stdin)) or LATEST
            raise
        if request.command == "VERSION":
            asked = _asked(_probe(self._stdin)) or LATEST
            self._deliver(0, jsonio.encode({"cniVersion": asked, "supportedVersions": list(SUPPORTED)}))
            return
        data = self._stdin.all()
        self.version = _spoken(data) or LATEST
        self.call = Call(self._world, self._name, request, decode(data))

    def _run(self) -> None:
        assert self.call is not None
        with self.call as call:
            result = call.run()
            if result is not None:
                self._deliver(0, jsonio.encode(result.json(call.context.version)))
            call.context.undo.commit()
        if result is None:
            self._deliver(0, b"")

    def _guarded(self, step: Callable[[], None]) -> None:
        """Turn whatever goes wrong into an answer."""
        try:
            step()
            return
        except CniError as error:
            answer = error
        except OSError as error:
            answer = io_failure(error)
        except Exception as error:  # the last line of defence: a CNI caller must get JSON, never a traceback
            answer = _unexpected(error)
        self.status = 1
        self._deliver(1, error_json(answer, self.version))


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
        self._module: Plugin[Any] = world.plugin(name)
        self._lock: HeldLock | None = None
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
            return module.add(context, conf)
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
            if command not in CLEANING:
                raise
            self.context.log(f"{error.msg}; going on without it, {command} must not depend on it")

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

    def _lock_attachment(self) -> HeldLock | None:
        """The attachment's lock. DEL goes on without one where no file can be made, or a full or read-only /run
        would keep dead pods and their leases."""
        request, world = self.request, self.context.world
        name = call_lock(self.context.network, request.container_id, request.ifname, self.context.plugin_type)
        try:
            return world.lock(f"{world.run_dir}/locks/{name}", transient=True)
        except OSError as error:
            if request.command != "DEL":
                raise
            self.context.log(f"{io_failure(error, 'cannot lock the attachment')}; going on without")
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
