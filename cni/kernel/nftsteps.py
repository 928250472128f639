"""What the rules of a chain do with a packet, as far as addresses and links decide it: answers of nftables to values.

Rules of iptables' nftables kind are read alike; their extensions (`match`, `target`) are known by name. Pure functions,
no I/O. Numbers are those of <linux/netfilter/nf_tables.h>.
"""

from __future__ import annotations

from cni.kernel.netlink import attrs, each_attr, text
from cni.kernel.nftables import comment_of, message_attrs
from cni.kernel.ops import NFPROTO_IPV4, NFPROTO_IPV6
from cni.kernel.types import NftChain, NftStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    # What a register holds: a field's name, and the mask that was laid over it.
    Registers = dict[bytes, tuple[str, bytes]]

_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_FAMILIES = (1, NFPROTO_IPV4, NFPROTO_IPV6)  # inet, ip, ip6
_SIZES = {NFPROTO_IPV4: 4, NFPROTO_IPV6: 16}
_ADDRESSES = {4: {12: "saddr", 16: "daddr"}, 16: {8: "saddr", 24: "daddr"}}
_META = {4: "index", 5: "index", 6: "iif", 7: "oif", 15: "nfproto"}
_VERDICTS = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return"}
_VERDICT_REGISTER = bytes(4)
_EQUAL, _UNEQUAL = bytes(4), b"\0\0\0\1"
_NETWORK_HEADER = b"\0\0\0\1"

# Of which links and addresses decide nothing, and what they do with the packet is none of a firewall's business.
_PASSING = ("counter", "log", "last", "notrack")
_OTHER = "other"


def parse_chain(body: bytes) -> NftChain | None:
    """NFT_MSG_NEWCHAIN; None for one without a hook, or of a family that sees no forwarded packets."""
    found = message_attrs(body)
    hook = attrs(found.get(4, b""))
    if not hook or body[0] not in _FAMILIES:
        return None
    number = int.from_bytes(hook.get(1, b""), "big")
    policy = "drop" if found.get(5) == bytes(4) else "accept"
    name = _HOOKS[number] if number < len(_HOOKS) else ""
    return NftChain(body[0], text(found.get(1, b"")), text(found.get(3, b"")), name, policy)


def parse_step(body: bytes) -> NftStep:
    """NFT_MSG_NEWRULE of a table of family ip, ip6 or inet."""
    found = message_attrs(body)
    step = NftStep(int.from_bytes(found.get(3, b""), "big"), comment_of(found.get(7, b"")))
    step.size = _SIZES.get(body[0], 0)
    registers: Registers = {}
    for kind, expression in each_attr(found.get(4, b"")):
        if kind != 1:
            continue
        parts = attrs(expression)
        name = text(parts.get(1, b""))
        read = _READERS.get(name)
        if read is not None:
            read(step, registers, attrs(parts.get(2, b"")))
        elif name not in _PASSING:
            step.narrow = True
    return step


def _meta(step: NftStep, registers: Registers, data: dict[int, bytes]) -> None:
    del step
    registers[data.get(1, b"")] = (_META.get(int.from_bytes(data.get(2, b""), "big"), _OTHER), b"")


def _payload(step: NftStep, registers: Registers, data: dict[int, bytes]) -> None:
    offset, length = (int.from_bytes(data.get(kind, b""), "big") for kind in (3, 4))
    field = _ADDRESSES.get(step.size, {}).get(offset, _OTHER)
    if data.get(2) != _NETWORK_HEADER or not 0 < length <= step.size:
        field = _OTHER
    registers[data.get(1, b"")] = (field, b"\xff" * length)


def _bitwise(step: NftStep, registers: Registers, data: dict[int, bytes]) -> None:
    del step
    field, _ = registers.get(data.get(1, b""), (_OTHER, b""))
    mask, flipped = (attrs(data.get(kind, b"")).get(1, b"") for kind in (4, 5))
    is_mask = field in ("saddr", "daddr") and not any(flipped) and not any(data.get(6, b""))
    registers[data.get(2, b"")] = (field, mask) if is_mask else (_OTHER, b"")


def _cmp(step: NftStep, registers: Registers, data: dict[int, bytes]) -> None:
    field, mask = registers.get(data.get(1, b""), (_OTHER, b""))
    value = attrs(data.get(3, b"")).get(1, b"")
    operator = data.get(2, b"")
    negated = operator == _UNEQUAL
    if operator not in (_EQUAL, _UNEQUAL) or field == _OTHER:
        step.narrow = True
    elif field == "nfproto" and not negated and value[:1] in (b"\2", b"\x0a"):
        step.size = _SIZES[value[0]]
    elif field in ("iif", "oif"):
        name, end, _ = value.partition(b"\0")
        step.links.append((field, text(name) + ("" if end or len(name) == 16 else "*"), negated))
    elif field in ("saddr", "daddr"):
        prefix = _prefix(mask)
        if prefix is None or len(value) != len(mask):
            step.open = True
        else:
            step.addresses.append((field, (value.ljust(step.size, b"\0"), prefix), negated))
    else:
        step.open = True


def _prefix(mask: bytes) -> int | None:
    """The length of the prefix that a mask leaves; None when it is none."""
    bits = len(mask) * 8
    number = int.from_bytes(mask, "big")
    prefix = number.bit_count()
    return prefix if number == (1 << prefix) - 1 << bits - prefix else None


def _lookup(step: NftStep, registers: Registers, data: dict[int, bytes]) -> None:
    """In a set, or of a verdict in a map. What the set holds is not asked."""
    field, _ = registers.get(data.get(2, b""), (_OTHER, b""))
    if field == _OTHER:
        step.narrow = True
        return
    step.open = True
    if data.get(3) == _VERDICT_REGISTER:
        step.verdict = "accept"


def _range(step: NftStep, registers: Registers, data: dict[int, bytes]) -> None:
    field, _ = registers.get(data.get(1, b""), (_OTHER, b""))
    step.narrow = step.narrow or field == _OTHER
    step.open = True


def _immediate(step: NftStep, registers: Registers, data: dict[int, bytes]) -> None:
    register = data.get(1, b"")
    if register != _VERDICT_REGISTER:
        registers[register] = (_OTHER, b"")
        return
    verdict = attrs(attrs(data.get(2, b"")).get(2, b""))
    step.verdict = _VERDICTS.get(int.from_bytes(verdict.get(1, b""), "big", signed=True), "")
    step.target = text(verdict.get(2, b""))


def _reject(step: NftStep, registers: Registers, data: dict[int, bytes]) -> None:
    del registers, data
    step.verdict = "drop"


def _target(step: NftStep, registers: Registers, data: dict[int, bytes]) -> None:
    """Of iptables. Others than REJECT change or count the packet."""
    del registers
    if text(data.get(1, b"")) == "REJECT":
        step.verdict = "drop"


def _match(step: NftStep, registers: Registers, data: dict[int, bytes]) -> None:
    """Of iptables, which has a rule's comment here, and reads one in the userdata alike."""
    del registers
    if text(data.get(1, b"")) != "comment":
        step.narrow = True
    elif not step.comment:
        step.comment = text(data.get(3, b"").partition(b"\0")[0])


_READERS: dict[str, Callable[[NftStep, Registers, dict[int, bytes]], None]] = {
    "meta": _meta,
    "payload": _payload,
    "bitwise": _bitwise,
    "cmp": _cmp,
    "lookup": _lookup,
    "range": _range,
    "immediate": _immediate,
    "reject": _reject,
    "target": _target,
    "match": _match,
}
