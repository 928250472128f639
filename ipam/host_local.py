"""The IPAM plugin `host-local`: addresses from ranges in the configuration, leased in a folder of this node.

It takes the configuration of containernetworking's host-local and shares its folder with it, in both
directions and at the same time. What this one does more: DEL and CHECK need no walk of the folder, GC and
STATUS work, and a pool of dead leases heals itself (`ipam/store.py`).
"""

from __future__ import annotations

import posix

from cni import addr
from cni.claims import Claims, shown
from cni.config import wrong
from cni.errors import (
    INTERNAL,
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    NOT_AVAILABLE,
    TRY_AGAIN,
    CniError,
    errno_text,
    io_failure,
)
from cni.paths import folder_fault
from cni.request import CLEANING
from cni.result import IPConfig, Result, read_routes
from cni.version import at_least
from ipam.store import DEFAULT_DATA_DIR, Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cni.config import Reader
    from cni.context import Context
    from cni.request import Request
    from ipam.ranges import Range, RangeSet

ARGS = ("IP", "MAC")  # MAC is for the plugin that calls us
NETNS = False
PATHS = (("dataDir", DEFAULT_DATA_DIR), ("resolvConf", ""))

_TRIES = 100
_NAMED_HOLDERS = 3
_LONGEST_RESOLV_CONF = 1 << 20

# What the reference splits a line's fields at, beside the blank: Go's idea of white space, which is not Python's.
_SPACES = "\t\v\f\r\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
_BLANKS = dict.fromkeys(map(ord, _SPACES), " ")


class Conf:
    """The `ipam` section.

    All but the folder is read for ADD, CHECK and STATUS only: a lease can be released whatever has become of the
    ranges that it was taken from.
    """

    __slots__ = ("data_dir", "in_routing", "requested", "resolv_conf", "routes", "sets", "status_on_exhausted")

    programs = ()

    def __init__(self, reader: Reader, request: Request) -> None:
        if reader.raw("ipam") is None:
            raise CniError(INVALID_CONFIG, "IPAM config missing 'ipam' key", 'add "ipam": {"type": "host-local", ...}')
        ipam = reader.object("ipam")
        self.data_dir = _path(ipam, "dataDir") or DEFAULT_DATA_DIR
        self.resolv_conf = ""
        self.status_on_exhausted = True
        self.sets: list[RangeSet] = []
        self.requested: list[bytes] = []
        self.routes: list[Any] = []
        # Whether the node will lead the addresses to the pod, so that no pod of another network may have them.
        self.in_routing = reader.raw("type") == "ptp" or True in (
            reader.raw("isGateway"),
            reader.raw("isDefaultGateway"),
        )
        if request.command not in CLEANING:
            # Imported here: DEL and GC do without.
            from ipam.ranges import read_sets

            self.resolv_conf = _path(ipam, "resolvConf")
            self.status_on_exhausted = ipam.boolean("statusOnExhausted", default=True)
            self.routes = read_routes(ipam, "routes")
            self.requested = _requested(reader, request)
            self.sets = read_sets(reader)


def add(ctx: Context, conf: Conf) -> Result:
    """Lease one address from every range set."""
    from ipam.ranges import check_families

    check_families(conf.sets, ctx.version)
    wishes = _wishes(conf)
    result = Result()
    result.routes = conf.routes
    if conf.resolv_conf:
        result.dns = read_resolv_conf(ctx.world.resolve(conf.resolv_conf))
    holder = (ctx.request.container_id, ctx.request.ifname)
    try:
        with _store(ctx, conf, make=True) as store:
            claims = Claims(ctx, store.leases_beside) if conf.in_routing else None
            chosen = _lease(store, conf, wishes, holder, claims)
    except OSError as error:
        raise _store_failure(ctx, conf, error) from error
    addresses = [addr.unpack(packed) for _, packed in chosen]
    ctx.undo.push(f"leases {', '.join(addresses)}", lambda: _take_back(ctx, conf, addresses))
    result.ips = [IPConfig(packed, found.prefix, found.gateway) for found, packed in chosen]
    return result


def delete(ctx: Context, conf: Conf) -> None:
    """Release everything that the attachment holds in this network; nothing there is success."""
    try:
        with _store(ctx, conf) as store:
            if store.exists:
                store.release_all((ctx.request.container_id, ctx.request.ifname))
    except OSError as error:
        raise _store_failure(ctx, conf, error) from error
    if not at_least(ctx.version, "0.3.0"):
        _refuse_two_of_a_family(ctx)


def _refuse_two_of_a_family(ctx: Context) -> None:
    """The reference's DEL refuses what an old version cannot express; so do we, once nothing is left. Ranges that are
    wrong otherwise are ADD's business."""
    from ipam.ranges import check_families, read_sets

    try:
        sets = read_sets(ctx.config)
    except CniError:
        return
    check_families(sets, ctx.version)


def check(ctx: Context, conf: Conf) -> None:
    """The addresses of prevResult that are from our ranges are leased to this attachment, or it has one."""
    who = (ctx.request.container_id, ctx.request.ifname)
    expected = [item.packed for item in ctx.prev_result.ips] if ctx.prev_result else []
    try:
        with _store(ctx, conf) as store:
            held = store.held(who, search=True) if store.exists else []
            if not held:
                what = f"host-local: Failed to find address added by container {who[0]}"
                raise CniError(INTERNAL, f"{what}: expected a lease of {_shown(who)} in {store.folder}, found none")
            for packed in expected:
                address = addr.unpack(packed)
                if address not in held and any(item.range_for(packed) for item in conf.sets):
                    raise CniError(INTERNAL, _not_held(store, address, who))
    except OSError as error:
        raise _store_failure(ctx, conf, error) from error


def status(ctx: Context, conf: Conf) -> None:
    """CniError 50 when no ADD can succeed: the folder cannot be written, or a range set has no address left."""
    store = _store(ctx, conf)
    fault = folder_fault(store.folder)
    if fault:
        raise CniError(NOT_AVAILABLE, f"ipam.dataDir: {fault}", "host-local keeps its leases there")
    if not conf.status_on_exhausted:
        return
    claims = Claims(ctx) if conf.in_routing else None
    claimed = claims.listed() if claims else []
    leased = {packed for packed in map(addr.pack, [*store.names(), *claimed]) if packed is not None}
    for item in conf.sets:
        used = [packed for packed in leased if _counts(item, packed)]
        if len(used) >= item.size and not any(_is_reclaimable(store, packed, claims) for packed in used):
            raise CniError(
                NOT_AVAILABLE,
                f"no IP addresses available in range set: {item}: all {item.size} addresses are leased",
                f"delete pods or enlarge {item.path}; `statusOnExhausted: false` in ipam keeps STATUS silent",
            )


def _is_reclaimable(store: Store, packed: bytes, claims: Claims | None) -> bool:
    address = addr.unpack(packed)
    return store.is_reclaimable(address) and not (claims and claims.other(address))


def gc(ctx: Context, conf: Conf) -> None:
    """Release the leases of this network whose attachment is not listed as valid. Of those that another host is known
    to have made, which share only the folder, the runtime here cannot know."""
    containers = {container_id for container_id, _ in ctx.valid}
    try:
        with _store(ctx, conf) as store:
            if not store.exists:
                return
            store.walk()
            for address, holder in sorted(store.leases.items()):
                # A lease of the old format does not say which of its container's interfaces it is for.
                is_valid = holder in ctx.valid or (not holder[1] and holder[0] in containers)
                if not is_valid and not store.is_another_hosts(holder):
                    store.release(holder, [address])
                    ctx.log(f"released {address}, leased to {_shown(holder)}, which is no valid attachment")
    except OSError as error:
        raise _store_failure(ctx, conf, error) from error


def _store(ctx: Context, conf: Conf, *, make: bool = False) -> Store:
    world = ctx.world
    folder = world.resolve(conf.data_dir)
    return Store(folder, ctx.network, world.lock, ctx.log, world.host_id(), world.boot_id(), make=make)


def _take_back(ctx: Context, conf: Conf, addresses: list[str]) -> None:
    with _store(ctx, conf) as store:
        store.release((ctx.request.container_id, ctx.request.ifname), addresses)


def _wishes(conf: Conf) -> list[bytes | None]:
    """The requested address of every range set; CniError 7 for one that no lease can ever fulfil."""
    left = list(conf.requested)
    wishes: list[bytes | None] = []
    for item in conf.sets:
        wish = next((packed for packed in left if item.range_for(packed)), None)
        if wish is not None:
            left.remove(wish)
            found = item.range_for(wish)
            if found and found.gateway == wish:
                raise _for_set(
                    item,
                    CniError(
                        INVALID_CONFIG,
                        f"requested ip {addr.unpack(wish)} is subnet's gateway ({found.subnet()})",
                        "request another address",
                    ),
                )
        wishes.append(wish)
    if left:
        pools = "; ".join(f"{item.path} {item}" for item in conf.sets)
        raise CniError(
            INVALID_CONFIG,
            f"failed to allocate all requested IPs: {' '.join(map(addr.unpack, left))}: "
            f"expected at most one address of each range set, which are {pools}",
            "request addresses inside these ranges",
        )
    return wishes


def _lease(
    store: Store, conf: Conf, wishes: list[bytes | None], holder: tuple[str, str], claims: Claims | None
) -> list[tuple[Range, bytes]]:
    """Choose and take an address of every set: all or none."""
    for _ in range(_TRIES):
        chosen = [_choose(store, item, wish, holder, claims) for item, wish in zip(conf.sets, wishes, strict=True)]
        wanted = [(item.index, addr.unpack(packed)) for item, (_, packed) in zip(conf.sets, chosen, strict=True)]
        if store.take(holder, wanted):
            return chosen
    raise CniError(
        TRY_AGAIN,
        f"{store.folder}: expected to be the only writer under the lock, lost {_TRIES} addresses to another",
        f"`fuser -v {store.folder}/lock` names those who work there",
    )


def _choose(
    store: Store, item: RangeSet, wish: bytes | None, holder: tuple[str, str], claims: Claims | None
) -> tuple[Range, bytes]:
    if wish is not None:
        return _requested_address(store, item, wish, claims)
    for address in store.held(holder):
        packed = addr.pack(address)
        if packed and item.range_for(packed):
            what = f"{address} has been allocated to {holder[0]}, duplicate allocation is not allowed"
            raise _for_set(item, CniError(INTERNAL, what, f"run DEL for {_shown(holder)} first"))
    found = _next(store, item, claims)
    if found is None and store.walk():
        found = _next(store, item, claims)
    if found is None:
        raise _for_set(item, _exhausted(store, item, claims))
    return found


def _requested_address(store: Store, item: RangeSet, wish: bytes, claims: Claims | None) -> tuple[Range, bytes]:
    found = item.range_for(wish)
    text = addr.unpack(wish)
    other = claims.other(text) if claims else ""
    if found and not other and store.is_free(wish):
        return found, wish
    who = store.holder_of(text)
    by = (
        f"the node routes it to {shown(other)}"
        if other
        else f"it is leased to {_shown(who)}"
        if who
        else f"{store.folder}/{text} keeps it out of use"
    )
    what = f"requested IP address {text} is not available in range set {item}: {by}"
    raise _for_set(item, CniError(TRY_AGAIN, what, "request another address, or wait for its release"))


def _next(store: Store, item: RangeSet, claims: Claims | None) -> tuple[Range, bytes] | None:
    """The first free address in the order of allocation."""
    for found, first, last in item.round_robin(store.last_reserved(item.index)):
        at: int | None = first
        while at is not None:
            at = store.next_free(found.width, at, last)
            if at is None:
                break
            packed = found.packed(at)
            if packed != found.gateway and not (claims and claims.other(addr.unpack(packed))):
                return found, packed
            at += 1
    return None


def _exhausted(store: Store, item: RangeSet, claims: Claims | None) -> CniError:
    inside = []
    for address in claims.listed() if claims else ():
        packed = addr.pack(address)
        other = claims.other(address) if claims and packed and _counts(item, packed) else ""
        if packed and other and address not in store.leases:
            inside.append((packed, f"{address} by {shown(other)}"))
    routed = " or routed to pods of other networks" if inside else ""
    for address, holder in store.leases.items():
        packed = addr.pack(address)
        if packed and _counts(item, packed):
            inside.append((packed, f"{address} by {_shown(holder)}"))
    first = ", ".join(text for _, text in sorted(inside)[:_NAMED_HOLDERS]) or "none of them by a container"
    pool = ", ".join(f"{found} of {found.subnet()}" for found in item.ranges)
    return CniError(
        TRY_AGAIN,
        f"no IP addresses available in range set: {item}: all {item.size} addresses of {pool} are leased{routed}: {first}",
        f"delete pods or enlarge {item.path}; leases of pods that are gone are released by GC",
    )


def _counts(item: RangeSet, packed: bytes) -> bool:
    found = item.range_for(packed)
    return found is not None and found.gateway != packed


def _for_set(item: RangeSet, error: CniError) -> CniError:
    """The reference's wording around what goes wrong with one range set."""
    return CniError(error.code, f"failed to allocate for range {item.index}: {error.msg}", error.details)


def _not_held(store: Store, address: str, who: tuple[str, str]) -> str:
    lease = store.lease(address)
    found = "no lease" if lease is None else f"that of {_shown(lease.holder)}" if lease.holder else "another file"
    return f"{store.folder}/{address}: expected the lease of {_shown(who)}, found {found}"


def _shown(holder: tuple[str, str]) -> str:
    return f"{holder[0]}/{holder[1]}" if holder[1] else holder[0]


def _requested(config: Reader, request: Request) -> list[bytes]:
    """Addresses asked for in CNI_ARGS, `args.cni.ips` and `runtimeConfig.ips`, each once, with or without prefix."""
    found: list[bytes] = []
    wish = request.args.get("IP")
    if wish:
        packed = _address(wish)
        if packed is None:
            raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: IP: expected an IP address, found {wish!r}")
        found.append(packed)
    for section in (config.object("args").object("cni"), config.object("runtimeConfig")):
        for path, text in section.array("ips"):
            packed = _address(text) if isinstance(text, str) else None
            if packed is None:
                raise wrong(path, "an IP address such as 10.1.0.5 or 10.1.0.5/24", text)
            found.append(packed)
    return list(dict.fromkeys(found))


def _address(text: str) -> bytes | None:
    if "/" not in text:
        return addr.pack(text)
    parsed = addr.pack_cidr(text)
    return parsed[0] if parsed else None


def _path(reader: Reader, key: str) -> str:
    """A file's path; empty when absent."""
    path = reader.string(key)
    try:
        if "\0" in path:
            raise ValueError(path)
        path.encode("utf-8", "surrogateescape")
    except ValueError:  # a NUL, or half a surrogate pair
        raise wrong(reader.at(key), "a path", path) from None
    return path


def read_resolv_conf(path: str) -> dict[str, Any]:
    """The result's `dns` from a file in the form of resolv.conf(5)."""
    try:
        # Never wait for the writer of a pipe, nor for the end of a device.
        fd = posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
        try:
            lines = posix.read(fd, _LONGEST_RESOLV_CONF).decode("utf-8", "replace").split("\n")
        finally:
            posix.close(fd)
    except OSError as error:
        what = f"ipam.resolvConf: open {path}: expected a readable file, found {errno_text(error.errno or 0)}"
        raise CniError(INVALID_CONFIG, what) from error
    dns: dict[str, Any] = {}
    for line in lines:
        key, *values = [field for field in line.translate(_BLANKS).split(" ") if field] or [""]
        if not values or key[0] in "#;":
            continue
        if key == "nameserver":
            dns.setdefault("nameservers", []).append(values[0])
        elif key == "domain":
            dns["domain"] = values[0]
        elif key in ("search", "options"):
            dns.setdefault(key, []).extend(values)
    return dns


def _store_failure(ctx: Context, conf: Conf, error: OSError) -> CniError:
    if error.filename is None:  # write(2) and its like know no path
        error.filename = f"{ctx.world.resolve(conf.data_dir)}/{ctx.network}/"
    failure = io_failure(error, "lease store", INTERNAL)
    failure.details = failure.details or f"ipam.dataDir {conf.data_dir} must be a folder that root can write"
    return failure
