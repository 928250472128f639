"""The runtime's side of CNI (spec section 3): what libcni does for containerd, here for `cnikit` and tests.

    runtime = Runtime(path=["/opt/cni/bin"], environ=dict(os.environ), clock=time.monotonic, log=print)
    network = netlist.load("/etc/cni/net.d", "podnet", print)
    result = runtime.add(network, Attachment("pod1", "eth0", "/run/netns/pod1"))

Where libcni and the spec differ, the spec counts: `capabilities` and the reserved keys are not passed on, a
failed ADD is followed by DEL, GC never runs beside an ADD or DEL of its network, and `disableCheck` makes
CHECK a success in every version.
"""

from __future__ import annotations

import fcntl
import os
import select

from cni import cache, jsonio
from cni.cache import Attachment, Cached
from cni.config import Reader
from cni.errors import (
    INCOMPATIBLE_VERSION,
    INTERNAL,
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    IO_FAILURE,
    TRY_AGAIN,
    CniError,
    merge_errors,
)
from cni.execute import find, run
from cni.lock import WAIT, Lock
from cni.names import attachment_key, identifier_fault, interface_fault
from cni.netlist import NetworkList
from cni.result import Result
from cni.version import LATEST, SUPPORTED, at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from cni.netlist import PluginConf

    Log = Callable[[str], object]

_STEP = 0.005


class Runtime:
    """Runs the plugins of a network, found in the folders of `path`.

    `environ` is what plugins inherit besides the CNI variables. Every verb raises CniError: the plugin's
    own, with the plugin's name in front. `clock` is monotonic; `log` gets what went wrong without making the call fail.
    """

    def __init__(
        self,
        path: Sequence[str],
        environ: Mapping[str, str],
        clock: Callable[[], float],
        log: Log,
        cache_dir: str = cache.DEFAULT_FOLDER,
    ) -> None:
        self._path = list(path)
        self._environ = environ
        self._clock = clock
        self._log = log
        self._folder = cache_dir
        self.cache = cache.Cache(cache_dir, log)

    def add(self, network: NetworkList, attachment: Attachment) -> dict[str, Any]:
        """Run the chain in its order, remember and return the last plugin's result.

        When a plugin fails, DEL runs over the whole chain before its error is raised.
        """
        check_attachment(attachment)
        for plugin in network.plugins:
            find(plugin.type, self._path)  # a missing executable is found out before the first effect
        with self._turn(network.name, attachment):
            if self.cache.read(network.name, attachment) is not None:
                raise CniError(
                    INVALID_ENVIRONMENT,
                    f"container {attachment.container_id} has interface {attachment.ifname} of network {network.name} "
                    f"already: {self.cache.path(network.name, attachment)}",
                    "run DEL first; ADD twice would leave the first one's addresses behind",
                )
            try:
                result = self._chain(network, attachment)
                self.cache.write(Cached(network.name, attachment, network.data, result))
            except BaseException:
                self._take_back(network, attachment)
                raise
        return result

    def delete(self, network: NetworkList, attachment: Attachment) -> None:
        """Run the chain in reverse, with the configuration and the result that ADD was remembered with."""
        check_attachment(attachment)
        with self._turn(network.name, attachment):
            self._delete(network, attachment)

    def check(self, network: NetworkList, attachment: Attachment) -> None:
        """Run CHECK over the chain. CniError 1 below 0.4.0; success when the list has `disableCheck`."""
        check_attachment(attachment)
        if network.disable_check:
            return
        if not at_least(network.version, "0.4.0"):
            raise CniError(
                INCOMPATIBLE_VERSION,
                f"configuration version {network.version!r} does not support the CHECK command: 0.4.0 brought it",
                f"raise cniVersion of network {network.name}",
            )
        with self._turn(network.name, attachment):
            entry = self.cache.read(network.name, attachment)
            previous = entry.result_as(network.version) if entry else None
            if entry is None or previous is None:
                raise CniError(
                    INVALID_ENVIRONMENT,
                    f"no result of ADD to check against: expected {self.cache.path(network.name, attachment)}",
                    "run ADD first, with the same network, namespace and interface name",
                )
            same = _same_parameters(attachment, entry)
            for plugin in network.plugins:
                self._call("CHECK", plugin, _request(network, plugin, same, previous), same)

    def status(self, network: NetworkList) -> bool:
        """Ask every plugin whether ADD could succeed now; the first that says no raises.

        False when the list is older than 1.1.0, which has no STATUS: then nobody was asked.
        """
        if not at_least(network.version, "1.1.0"):
            return False
        for plugin in network.plugins:
            self._call("STATUS", plugin, derive(plugin, _common(network)))
        return True

    def stale(self, network: NetworkList, valid: Sequence[tuple[str, str]]) -> list[Attachment]:
        """The remembered attachments of a network that are not among `valid` (container ID, interface)."""
        kept = set(valid)
        of_network = [entry.attachment for entry in self.cache.all() if entry.network == network.name]
        return [item for item in of_network if (item.container_id, item.ifname) not in kept]

    def gc(self, network: NetworkList, valid: Sequence[tuple[str, str]]) -> None:
        """DEL every remembered attachment that is not `valid`, then let each plugin clean up (from 1.1.0).

        Goes on after an error; raises one that reports all. Does nothing when the list has `disableGC`.
        """
        if network.disable_gc:
            return
        errors: list[CniError] = []
        with self._turn(network.name, None):
            for attachment in self.stale(network, valid):
                self._collect(errors, lambda item=attachment: self._delete(network, item))  # type: ignore[misc]
            if at_least(network.version, "1.1.0"):
                pairs = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
                # The second key is what version 1.1.0 of the specification first called it.
                keys = {"cni.dev/valid-attachments": pairs, "cni.dev/attachments": pairs}
                for plugin in network.plugins:
                    config = derive(plugin, {**_common(network), **keys})
                    self._collect(errors, lambda item=plugin, conf=config: self._call("GC", item, conf))  # type: ignore[misc]
        error = merge_errors(errors)
        if error is not None:
            raise error

    def validate(self, network: NetworkList) -> list[str]:
        """The capabilities of a network whose plugins are all there and speak its version; else CniError."""
        errors: list[CniError] = []
        for plugin in network.plugins:
            self._collect(errors, lambda item=plugin: self._speaks(item, network.version))  # type: ignore[misc]
        error = merge_errors(errors)
        if error is not None:
            raise error
        return sorted({capability for plugin in network.plugins for capability in plugin.capabilities})

    def versions(self, plugin: str) -> list[str]:
        """The spec versions that a plugin says it supports."""
        # Plugins of long ago ask for these three even when only their version is wanted.
        dummies = dict.fromkeys(("CNI_NETNS", "CNI_IFNAME", "CNI_PATH"), "dummy")
        environ = {**self._environ, **dummies, "CNI_COMMAND": "VERSION"}
        try:
            answer = run(find(plugin, self._path), environ, jsonio.encode({"cniVersion": LATEST}))
        except CniError as error:
            if error.msg == "unknown CNI_COMMAND: VERSION":
                return ["0.1.0"]
            raise
        if not isinstance(answer, dict):
            raise CniError(INTERNAL, f"plugin {plugin}: expected its versions as a JSON object, found nothing like it")
        reader = Reader(answer)
        supported = reader.strings("supportedVersions")
        if not supported and reader.string("cniVersion") == "0.2.0":
            return ["0.1.0", "0.2.0"]
        if not supported:
            raise CniError(INTERNAL, f"plugin {plugin}: expected supportedVersions, found {jsonio.shown(answer)}")
        return supported

    def _chain(self, network: NetworkList, attachment: Attachment) -> dict[str, Any]:
        result: dict[str, Any] | None = None
        for plugin in network.plugins:
            answer = self._call("ADD", plugin, _request(network, plugin, attachment, result), attachment)
            result = _checked_result(plugin, answer, network.version)
        if result is None:
            raise CniError(INVALID_CONFIG, f"network {network.name}: expected at least one plugin, found none")
        return result

    def _take_back(self, network: NetworkList, attachment: Attachment) -> None:
        try:
            self._delete(network, attachment)
        except CniError as error:
            self._log(f"DEL after the failed ADD: {error}")

    def _delete(self, network: NetworkList, attachment: Attachment) -> None:
        entry = self.cache.read(network.name, attachment)
        network = self._as_added(network, entry)
        previous = None
        if entry is not None:
            attachment = _same_parameters(attachment, entry)
            # The result came to DEL with version 0.4.0.
            previous = self._previous(entry, network.version) if at_least(network.version, "0.4.0") else None
        for plugin in reversed(network.plugins):
            self._call("DEL", plugin, _request(network, plugin, attachment, previous), attachment)
        self.cache.remove(network.name, attachment)

    def _as_added(self, network: NetworkList, entry: Cached | None) -> NetworkList:
        """The list as it was at ADD. What the network's folder added is not in the cache: it is today's."""
        if entry is None or entry.config is None or entry.config == network.data:
            return network
        try:
            then = NetworkList(entry.config)
        except CniError as error:
            self._log(f"cached configuration of {entry.attachment.container_id}: {error}; using the present one")
            return network
        then.append(network.appended)
        return then if then.plugins else network

    def _previous(self, entry: Cached, version: str) -> dict[str, Any] | None:
        try:
            return entry.result_as(version)
        except CniError as error:
            self._log(f"cached result of {entry.attachment.container_id}: {error}; DEL goes on without it")
            return None

    def _call(
        self, command: str, plugin: PluginConf, config: dict[str, Any], attachment: Attachment | None = None
    ) -> Any:
        about = attachment or Attachment("", "")
        environ = {
            **self._environ,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": about.container_id,
            "CNI_NETNS": about.netns,
            "CNI_IFNAME": about.ifname,
            "CNI_ARGS": ";".join("=".join(pair) for pair in about.args),
            "CNI_PATH": ":".join(self._path),
        }
        try:
            return run(find(plugin.type, self._path), environ, jsonio.encode(config))
        except CniError as error:
            raise CniError(error.code, f"plugin {plugin.type} failed ({command}): {error.msg}", error.details) from None

    def _speaks(self, plugin: PluginConf, version: str) -> None:
        supported = self.versions(plugin.type)
        if version not in supported:
            raise CniError(
                INCOMPATIBLE_VERSION,
                f"plugin {plugin.type} does not support config version {version!r}: it supports {', '.join(supported)}",
            )

    @staticmethod
    def _collect(errors: list[CniError], step: Callable[[], object]) -> None:
        try:
            step()
        except CniError as error:
            errors.append(error)

    def _turn(self, network: str, attachment: Attachment | None) -> _Turn:
        return _Turn(f"{self._folder}/cnikit-locks", network, attachment, self._clock)


class _Turn:
    """Whose turn it is (spec section 3, "Lifecycle & Ordering").

    Calls for one container follow one another, calls for different ones run side by side, and GC (no
    attachment) runs alone in its network.
    """

    def __init__(self, folder: str, network: str, attachment: Attachment | None, clock: Callable[[], float]) -> None:
        self._container: Lock | None = None
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
            self._network = os.open(f"{folder}/{network}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CniError(
                IO_FAILURE, f"cannot lock {folder}/{network}: {error.strerror}", "a runtime needs root"
            ) from None
        try:
            _flock(self._network, fcntl.LOCK_EX if attachment is None else fcntl.LOCK_SH, network, clock)
            if attachment is not None:
                path = f"{folder}/{attachment_key(attachment.container_id, 'container')}"
                self._container = Lock(path, clock, transient=True)
        except BaseException:
            os.close(self._network)
            raise

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None:
        if self._container is not None:
            self._container.close()
        os.close(self._network)


def _flock(fd: int, mode: int, network: str, clock: Callable[[], float]) -> None:
    """Like `cni/lock.py`, but shared by default: many ADDs may run at once, and GC waits for all of them."""
    deadline = clock() + WAIT
    while True:
        try:
            fcntl.flock(fd, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if clock() >= deadline:
                raise CniError(
                    TRY_AGAIN,
                    f"network {network}: expected the others to finish within {WAIT:g} s, found them still at work",
                    "GC waits for every ADD and DEL of its network, and they for it; try again",
                ) from None
            select.select((), (), (), _STEP)
        else:
            return


def check_attachment(attachment: Attachment) -> None:
    """CniError 4 for a container ID or interface name that the spec does not allow."""
    fault = identifier_fault(attachment.container_id)
    if fault:
        raise CniError(INVALID_ENVIRONMENT, f"container ID {attachment.container_id!r}: {fault}")
    fault = interface_fault(attachment.ifname)
    if fault:
        raise CniError(INVALID_ENVIRONMENT, f"interface name {attachment.ifname!r} {fault}")


def derive(plugin: PluginConf, inserted: dict[str, Any], drop: tuple[str, ...] = ()) -> dict[str, Any]:
    """The configuration a plugin gets (spec section 3, "Deriving request configuration").

    As written, without the keys in `drop` and those reserved for the runtime, and with `inserted`, which
    replaces every spelling of its keys.
    """
    replaced = {key.casefold() for key in (*inserted, *drop, "prevResult")}
    kept = {
        key: value
        for key, value in plugin.value.items()
        if key.casefold() not in replaced and not key.casefold().startswith("cni.dev/")
    }
    return {**kept, **inserted}


def _request(
    network: NetworkList, plugin: PluginConf, attachment: Attachment, previous: dict[str, Any] | None
) -> dict[str, Any]:
    """The configuration for ADD, DEL or CHECK."""
    inserted = _common(network)
    offered = attachment.capability_args
    wanted = {capability: offered[capability] for capability in plugin.capabilities if capability in offered}
    if wanted:
        inserted["runtimeConfig"] = wanted
    if previous is not None:
        inserted["prevResult"] = previous
    return derive(plugin, inserted, drop=("capabilities",))


def _common(network: NetworkList) -> dict[str, Any]:
    return {"cniVersion": network.version, "name": network.name}


def _checked_result(plugin: PluginConf, answer: Any, version: str) -> dict[str, Any]:
    """ADD's answer with its cniVersion filled in; CniError 999 when it is no result."""
    if not isinstance(answer, dict):
        found = jsonio.shown(answer)
        raise CniError(INTERNAL, f"plugin {plugin.type} (ADD): expected a result on stdout, found {found}")
    result = answer if answer.get("cniVersion") else {**answer, "cniVersion": version}
    if result["cniVersion"] not in SUPPORTED:
        raise CniError(
            INTERNAL,
            f"plugin {plugin.type} (ADD): unsupported CNI result version {jsonio.shown(result['cniVersion'])}",
        )
    try:
        Result.read(Reader(result))
    except CniError as error:
        raise CniError(INTERNAL, f"plugin {plugin.type} (ADD): invalid result: {error.msg}") from None
    return result


def _same_parameters(attachment: Attachment, entry: Cached) -> Attachment:
    """The parameters that ADD had, where the caller gives none ("the same attachment parameters")."""
    then = entry.attachment
    return Attachment(
        attachment.container_id,
        attachment.ifname,
        attachment.netns,
        attachment.args or then.args,
        attachment.capability_args or then.capability_args,
    )
