"""nftables in nfnetlink's words: operations to requests, answers to values, and the expressions of rules.

Pure functions, no I/O. What they make is what nft(8) itself would send, so `nft list ruleset` shows it as
ordinary rules. Numbers are those of <linux/netfilter/nf_tables.h>; they travel in network byte order.

A rule is a list of expressions, each made by a function below. In a table of family `inet` a match on
addresses stands behind `nfproto`:

    [nfproto(AF_INET), saddr_in_set(AF_INET, "pods4"), daddr_not_in(AF_INET, net, 24), masquerade()]

is shown as `ip saddr @pods4 ip daddr != 10.1.0.0/24 masquerade`. An expression is a tuple of plain values,
its name first, so that it can be compared and kept by the fake kernel.
"""

from __future__ import annotations

import _struct

from cni.kernel.netlink import (
    NLA_F_NESTED,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_NONREC,
    attr,
    attr_text,
    attrs,
    each_attr,
    malformed,
)
from cni.kernel.netlink import text as text_of
from cni.kernel.ops import NFPROTO_IPV4, NFPROTO_IPV6
from cni.kernel.types import NftRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cni.kernel.netlink import Request
    from cni.kernel.ops import Op

    Expression = tuple[Any, ...]

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NEWTABLE = _SUBSYSTEM | 0
GETTABLE = _SUBSYSTEM | 1
_DELTABLE = _SUBSYSTEM | 2
_NEWCHAIN = _SUBSYSTEM | 3
GETCHAIN = _SUBSYSTEM | 4
_DELCHAIN = _SUBSYSTEM | 5
_NEWRULE = _SUBSYSTEM | 6
GETRULE = _SUBSYSTEM | 7
_DELRULE = _SUBSYSTEM | 8
_NEWSET = _SUBSYSTEM | 9
GETSET = _SUBSYSTEM | 10
_DELSET = _SUBSYSTEM | 11
_NEWSETELEM = _SUBSYSTEM | 12
GETSETELEM = _SUBSYSTEM | 13
_DELSETELEM = _SUBSYSTEM | 14
GETGEN = _SUBSYSTEM | 16
_NLM_F_REQUEST = 1

_LIST_ELEM = 1
_NFGENMSG = _struct.Struct(">BBH")  # family, version, resource

BATCH_BEGIN: Request = (16, _NLM_F_REQUEST, _NFGENMSG.pack(0, 0, 10))
BATCH_END: Request = (17, _NLM_F_REQUEST, _NFGENMSG.pack(0, 0, 10))

_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
# nft's number of a type, which it shows the set by, and the length of a key
_KEYS = {"ipv4_addr": (7, 4), "ipv6_addr": (8, 16), "ether_addr": (9, 6)}

_REG_VERDICT = 0
_REG_1 = 1
_CMP_EQ = 0
_CMP_NEQ = 1
_META_IIF = 4
_META_IIFNAME = 6
_META_OIFNAME = 7
_META_NFPROTO = 15
_PAYLOAD_LINK = 0
_PAYLOAD_NETWORK = 1
_VERDICT_DROP = 0
_VERDICT_ACCEPT = 1
_VERDICT_JUMP = -3
_VERDICT_GOTO = -4
_VERDICT_RETURN = -5

# Where an address is in its header, and its length
_SADDR = {NFPROTO_IPV4: (12, 4), NFPROTO_IPV6: (8, 16)}
_DADDR = {NFPROTO_IPV4: (16, 4), NFPROTO_IPV6: (24, 16)}

_COMMENT_BYTES = 128  # nft shows no longer one, NUL included
_UDATA_COMMENT = 0
# What nft leaves in a set to know how its key was written: NFTNL_UDATA_SET_KEYBYTEORDER, big endian
_SET_USERDATA = b"\x00\x04\x02\x00\x00\x00"


# Expressions. `family` is AF_INET or AF_INET6, equal to NFPROTO_IPV4 and NFPROTO_IPV6.


def nfproto(family: int) -> Expression:
    """`meta nfproto ipv4`: the packet is of this family."""
    return ("nfproto", family)


def saddr_in_set(family: int, set_name: str) -> Expression:
    """`ip saddr @SET`"""
    return ("saddr_in_set", family, set_name)


def saddr_in(family: int, net: bytes, prefix: int) -> Expression:
    """`ip saddr NET/PREFIX`"""
    return ("saddr_in", family, net, prefix)


def saddr_not_in(family: int, net: bytes, prefix: int) -> Expression:
    """`ip saddr != NET/PREFIX`"""
    return ("saddr_not_in", family, net, prefix)


def sent_here() -> Expression:
    """`iif 0`: no link has brought the packet, so this machine itself sends it. What it forwards still has its link in
    postrouting (since Linux 5.7).
    """
    return ("sent_here",)


def daddr_in(family: int, net: bytes, prefix: int) -> Expression:
    """`ip daddr NET/PREFIX`"""
    return ("daddr_in", family, net, prefix)


def daddr_not_in(family: int, net: bytes, prefix: int) -> Expression:
    """`ip daddr != NET/PREFIX`"""
    return ("daddr_not_in", family, net, prefix)


def iifname(name: str) -> Expression:
    """`iifname "NAME"`"""
    return ("iifname", name)


def oifname(name: str) -> Expression:
    """`oifname "NAME"`"""
    return ("oifname", name)


def ether_saddr(mac: bytes) -> Expression:
    """`ether saddr MAC`, for tables of family `bridge`."""
    return ("ether_saddr", mac)


def jump(chain: str) -> Expression:
    return ("jump", chain)


def goto(chain: str) -> Expression:
    return ("goto", chain)


def ret() -> Expression:
    return ("return",)


def drop() -> Expression:
    return ("drop",)


def accept() -> Expression:
    return ("accept",)


def counter() -> Expression:
    """`counter`, which every rule of iptables has."""
    return ("counter",)


def masquerade() -> Expression:
    return ("masquerade",)


# Attributes


def _nest(kind: int, *children: bytes) -> bytes:
    return attr(kind | NLA_F_NESTED, b"".join(children))


def _be32(kind: int, value: int) -> bytes:
    return attr(kind, (value & 0xFFFFFFFF).to_bytes(4, "big"))


def _value(kind: int, data: bytes) -> bytes:
    """An nft_data attribute that holds a value."""
    return _nest(kind, attr(1, data))


def _comment(kind: int, comment: str) -> bytes:
    """Userdata as nft writes a comment: type, length, NUL-terminated text. Cut where nft would refuse it."""
    if not comment:
        return b""
    data = comment.encode("utf-8", "replace")[: _COMMENT_BYTES - 1] + b"\0"
    return attr(kind, bytes([_UDATA_COMMENT, len(data)]) + data)


def comment_of(userdata: bytes) -> str:
    """The comment in a rule's or an element's userdata; empty without one."""
    offset = 0
    while offset + 2 <= len(userdata):
        kind, size = userdata[offset], userdata[offset + 1]
        if kind == _UDATA_COMMENT:
            return text_of(userdata[offset + 2 : offset + 2 + size])
        offset += 2 + size
    return ""


# Expressions to bytes


def _expression(name: str, *data: bytes) -> bytes:
    return _nest(_LIST_ELEM, attr_text(1, name), _nest(2, *data))


def _meta(key: int) -> bytes:
    return _expression("meta", _be32(2, key), _be32(1, _REG_1))


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", _be32(1, _REG_1), _be32(2, base), _be32(3, offset), _be32(4, length))


def _cmp(operator: int, data: bytes) -> bytes:
    return _expression("cmp", _be32(1, _REG_1), _be32(2, operator), _value(3, data))


def _verdict(code: int, chain: str = "") -> bytes:
    target = attr_text(2, chain) if chain else b""
    verdict = _nest(2, _nest(2, _be32(1, code), target))
    return _expression("immediate", _be32(1, _REG_VERDICT), verdict)


def _nfproto(family: int) -> bytes:
    return _meta(_META_NFPROTO) + _cmp(_CMP_EQ, bytes([family]))


def _saddr_in_set(family: int, set_name: str) -> bytes:
    lookup = _expression("lookup", attr_text(1, set_name), _be32(2, _REG_1))
    return _payload(_PAYLOAD_NETWORK, *_SADDR[family]) + lookup


def _in_network(place: tuple[int, int], operator: int, net: bytes, prefix: int) -> bytes:
    offset, length = place
    bits = length * 8
    mask = ((1 << prefix) - 1 << bits - prefix).to_bytes(length, "big")
    masked = b""
    if prefix < bits:
        registers = _be32(1, _REG_1) + _be32(2, _REG_1) + _be32(3, length)
        masked = _expression("bitwise", registers, _value(4, mask), _value(5, bytes(length)))
    network = bytes(a & b for a, b in zip(net, mask, strict=True))
    return _payload(_PAYLOAD_NETWORK, offset, length) + masked + _cmp(operator, network)


def _saddr_in(family: int, net: bytes, prefix: int) -> bytes:
    return _in_network(_SADDR[family], _CMP_EQ, net, prefix)


def _saddr_not_in(family: int, net: bytes, prefix: int) -> bytes:
    return _in_network(_SADDR[family], _CMP_NEQ, net, prefix)


def _sent_here() -> bytes:
    return _meta(_META_IIF) + _cmp(_CMP_EQ, bytes(4))


def _daddr_in(family: int, net: bytes, prefix: int) -> bytes:
    return _in_network(_DADDR[family], _CMP_EQ, net, prefix)


def _daddr_not_in(family: int, net: bytes, prefix: int) -> bytes:
    return _in_network(_DADDR[family], _CMP_NEQ, net, prefix)


def _iifname(name: str) -> bytes:
    return _meta(_META_IIFNAME) + _cmp(_CMP_EQ, name.encode().ljust(16, b"\0"))


def _oifname(name: str) -> bytes:
    return _meta(_META_OIFNAME) + _cmp(_CMP_EQ, name.encode().ljust(16, b"\0"))


def _ether_saddr(mac: bytes) -> bytes:
    return _payload(_PAYLOAD_LINK, 6, 6) + _cmp(_CMP_EQ, mac)


_EXPRESSIONS: dict[str, Callable[..., bytes]] = {
    "nfproto": _nfproto,
    "saddr_in_set": _saddr_in_set,
    "saddr_in": _saddr_in,
    "saddr_not_in": _saddr_not_in,
    "sent_here": _sent_here,
    "daddr_in": _daddr_in,
    "daddr_not_in": _daddr_not_in,
    "iifname": _iifname,
    "oifname": _oifname,
    "ether_saddr": _ether_saddr,
    "jump": lambda chain: _verdict(_VERDICT_JUMP, chain),
    "goto": lambda chain: _verdict(_VERDICT_GOTO, chain),
    "return": lambda: _verdict(_VERDICT_RETURN),
    "drop": lambda: _verdict(_VERDICT_DROP),
    "accept": lambda: _verdict(_VERDICT_ACCEPT),
    "counter": lambda: _expression("counter", attr(1, bytes(8)), attr(2, bytes(8))),
    "masquerade": lambda: _expression("masq"),
}


# Operations to requests


def encode(op: Op, number: int) -> Request:
    """The request for one operation of `ops.py`; `number` is its place in the transaction."""
    arguments = dict(op.args)
    header = _NFGENMSG.pack(arguments.pop("family"), 0, 0)
    kind, flags, body = _ENCODERS[op.verb](number, **arguments)
    return kind, flags, header + body


def _table_add(_number: int, table: str) -> Request:
    return _NEWTABLE, NLM_F_CREATE, attr_text(1, table)


def _table_del(_number: int, table: str, empty: bool) -> Request:  # noqa: FBT001 - as the operation has it
    return _DELTABLE, NLM_F_NONREC if empty else 0, attr_text(1, table)


def _chain_add(_number: int, table: str, chain: str, hook: tuple[str, str, int] | None) -> Request:
    body = attr_text(1, table) + attr_text(3, chain)
    if hook is not None:
        kind, point, priority = hook
        body += _nest(4, _be32(1, _HOOKS[point]), _be32(2, priority)) + attr_text(7, kind)
    return _NEWCHAIN, NLM_F_CREATE, body


def _chain_flush(_number: int, table: str, chain: str) -> Request:
    return _DELRULE, 0, attr_text(1, table) + attr_text(2, chain)


def _chain_del(_number: int, table: str, chain: str) -> Request:
    return _DELCHAIN, 0, attr_text(1, table) + attr_text(3, chain)


def _set_add(number: int, table: str, name: str, key: str) -> Request:
    kind, length = _KEYS[key]
    body = attr_text(1, table) + attr_text(2, name) + _be32(3, 0) + _be32(4, kind) + _be32(5, length)
    return _NEWSET, NLM_F_CREATE, body + _be32(10, number + 1) + attr(13, _SET_USERDATA)


def _set_del(_number: int, table: str, name: str) -> Request:
    return _DELSET, 0, attr_text(1, table) + attr_text(2, name)


def _rule_add(
    _number: int, table: str, chain: str, expressions: list[Expression], comment: str, before: int
) -> Request:
    body = b"".join([_EXPRESSIONS[name](*values) for name, *values in expressions])
    rule = attr_text(1, table) + attr_text(2, chain) + _nest(4, body) + _comment(7, comment)
    if before:
        return _NEWRULE, NLM_F_CREATE, rule + attr(6, before.to_bytes(8, "big"))
    return _NEWRULE, NLM_F_CREATE | NLM_F_APPEND, rule


def _rule_del(_number: int, table: str, chain: str, handle: int) -> Request:
    return _DELRULE, 0, attr_text(1, table) + attr_text(2, chain) + attr(3, handle.to_bytes(8, "big"))


def _element(table: str, name: str, key: bytes, comment: str) -> bytes:
    element = _nest(_LIST_ELEM, _value(1, key), _comment(6, comment))
    return attr_text(1, table) + attr_text(2, name) + _nest(3, element)


def _element_add(_number: int, table: str, name: str, key: bytes, comment: str) -> Request:
    return _NEWSETELEM, NLM_F_CREATE, _element(table, name, key, comment)


def _element_del(_number: int, table: str, name: str, key: bytes) -> Request:
    return _DELSETELEM, 0, _element(table, name, key, "")


_ENCODERS: dict[str, Callable[..., Request]] = {
    "nft_table_add": _table_add,
    "nft_table_del": _table_del,
    "nft_chain_add": _chain_add,
    "nft_chain_flush": _chain_flush,
    "nft_chain_del": _chain_del,
    "nft_set_add": _set_add,
    "nft_set_del": _set_del,
    "nft_rule_add": _rule_add,
    "nft_rule_del": _rule_del,
    "nft_element_add": _element_add,
    "nft_element_del": _element_del,
}


# Questions: what follows the netlink header


def object_question(family: int, table: str, kind: str, name: str) -> tuple[int, bytes]:
    """Message type and body that ask for a table (`kind` empty), or a `chain` or `set` of it."""
    message, name_attr = {"": (GETTABLE, 0), "chain": (GETCHAIN, 3), "set": (GETSET, 2)}[kind]
    body = _NFGENMSG.pack(family, 0, 0) + attr_text(1, table)
    return message, body + attr_text(name_attr, name) if kind else body


def nothing() -> bytes:
    """What a question about the whole ruleset has to say."""
    return _NFGENMSG.pack(0, 0, 0)


def rules_question(family: int, table: str, chain: str) -> bytes:
    return _NFGENMSG.pack(family, 0, 0) + attr_text(1, table) + attr_text(2, chain)


def elements_question(family: int, table: str, set_name: str) -> bytes:
    return _NFGENMSG.pack(family, 0, 0) + attr_text(1, table) + attr_text(2, set_name)


def element_question(family: int, table: str, set_name: str, key: bytes) -> bytes:
    return _NFGENMSG.pack(family, 0, 0) + _element(table, set_name, key, "")


# Answers to values


def message_attrs(body: bytes) -> dict[int, bytes]:
    """The attributes of any message; its first byte is the family."""
    if len(body) < _NFGENMSG.size:
        raise malformed()
    return attrs(body, _NFGENMSG.size)


def parse_rule(body: bytes) -> NftRule:
    """NFT_MSG_NEWRULE."""
    found = message_attrs(body)
    expressions = [data for kind, data in each_attr(found.get(4, b"")) if kind == _LIST_ELEM]
    # Most are no verdicts, and taking each apart costs more than all the rest.
    targets = [_target(expression) for expression in expressions if b"immediate\0" in expression]
    targets = [chain for chain in targets if chain]
    handle = int.from_bytes(found.get(3, b""), "big")
    return NftRule(handle, comment_of(found.get(7, b"")), targets, _incoming(expressions) if targets else "")


def _incoming(expressions: list[bytes]) -> str:
    """The interface that a rule compares `iifname` with; empty when it compares none."""
    key = b""
    for found in map(attrs, expressions):
        kind, data = text_of(found.get(1, b"")), attrs(found.get(2, b""))
        if kind == "cmp" and key == _META_IIFNAME.to_bytes(4, "big"):
            return text_of(attrs(data.get(3, b"")).get(1, b""))
        key = data.get(2, b"") if kind == "meta" else b""
    return ""


def _target(expression: bytes) -> str:
    """The chain that an expression jumps or goes to; empty for all others."""
    found = attrs(expression)
    if text_of(found.get(1, b"")) != "immediate":
        return ""
    data = attrs(attrs(found.get(2, b"")).get(2, b""))
    return text_of(attrs(data.get(2, b"")).get(2, b""))


def parse_generation(body: bytes) -> int:
    """NFT_MSG_NEWGEN."""
    return int.from_bytes(message_attrs(body).get(1, b""), "big")


def parse_keys(body: bytes) -> list[bytes]:
    """NFT_MSG_NEWSETELEM: the keys of its elements."""
    return list(parse_comments(body))


def parse_comments(body: bytes) -> dict[bytes, str]:
    """The same, each with its comment."""
    found: dict[bytes, str] = {}
    for _, data in each_attr(message_attrs(body).get(3, b"")):
        element = attrs(data)
        key = attrs(element.get(1, b"")).get(1, b"")
        if key:
            found[key] = comment_of(element.get(6, b""))
    return found
