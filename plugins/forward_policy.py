"""What a firewall does with packets from pod to pod that the node forwards, as far as its rules can be read.

Two packets are looked at, the first ones of connections: one that comes from another node, one that leaves for it. A
rule that may be for them and accepts is believed to. A drop counts only when it is certainly for them: who has rules of
his own for the pods is not to be told that they are dropped. Rules that ask for a connection's state or a protocol are
passed over, unless they name the pods' addresses.
"""

from __future__ import annotations

from cni import addr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cni.kernel.types import NftStep
    from plugins.peers import Subnet

    Steps = Callable[[str], Sequence[NftStep]]

# How deep chains jump: the kernel's own limit for nftables.
_DEEPEST = 16
_NO, _PERHAPS, _SURE = range(3)


class Packet:
    """From `network` to `network`. The links that it comes in by and leaves by have one of these names, empty when that is
    not known."""

    __slots__ = ("links", "network")

    def __init__(self, network: Subnet, comes_by: Sequence[str], leaves_by: Sequence[str]) -> None:
        self.network = network
        self.links = {"iif": comes_by, "oif": leaves_by}


def dropped_at(steps: Steps, chain: str, policy: str, packets: Sequence[Packet]) -> int | None:
    """Which rule of a base chain, counted from 0, drops one of these packets, by itself or where it jumps to; with the
    policy it is the number of rules. None when they pass."""
    found = [_run(steps, chain, packet, _DEEPEST) for packet in packets]
    rules = len(steps(chain))
    return min((at if verdict else rules for verdict, at in found if (verdict or policy) == "drop"), default=None)


def left_at(steps: Steps, chain: str, packets: Sequence[Packet]) -> int:
    """Which rule of a chain is the first that drops one of these packets or sends it back; the number of rules when none does."""
    found = [_run(steps, chain, packet, _DEEPEST) for packet in packets]
    return min((at for verdict, at in found if verdict != "accept"), default=len(steps(chain)))


def _run(steps: Steps, chain: str, packet: Packet, depth: int) -> tuple[str, int]:
    """`accept`, `drop` or empty for neither, and the rule that decides it: the number of rules when none does."""
    rules = steps(chain)
    for at, step in enumerate(rules):
        match = _matches(step, packet)
        if match == _NO or not step.verdict:
            continue
        verdict = step.verdict
        if verdict in ("jump", "goto"):
            verdict = _run(steps, step.target, packet, depth - 1)[0] if depth else ""
            if not verdict and step.verdict == "goto":
                verdict = "return"
        if verdict == "accept" or (verdict == "drop" and match == _SURE):
            return verdict, at
        if verdict == "return" and match == _SURE:
            return "", at
    return "", len(rules)


def _matches(step: NftStep, packet: Packet) -> int:
    """Whether a rule is for a packet."""
    size = len(packet.network[0])
    if step.size not in (0, size):
        return _NO
    is_sure = not step.open
    names_pods = False
    for _, network, negated in step.addresses:
        covers = network[1] <= packet.network[1] and addr.inside(packet.network[0], *network)
        if covers if negated else not (covers or addr.inside(network[0], *packet.network)):
            return _NO
        names_pods = names_pods or (network[1] > 0 and not negated)
        is_sure = is_sure and (covers or (negated and not addr.inside(network[0], *packet.network)))
    for field, name, negated in step.links:
        links = packet.links[field]
        hits = [link for link in links if link == name or (name.endswith("*") and link.startswith(name[:-1]))]
        if links and (len(hits) == len(links) if negated else not hits):
            return _NO
        is_sure = is_sure and bool(links) and len(hits) == (0 if negated else len(links))
    if step.narrow:
        return _PERHAPS if names_pods else _NO
    return _SURE if is_sure else _PERHAPS
