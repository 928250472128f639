"""Where this node is, for the others: what its source of membership is to tell them, and when there is something to tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent import subnet_file
from cni import addr
from cni.errors import NOT_AVAILABLE, CniError
from plugins import this_node
from plugins.peers import ADDRESS_KEYS, Node, vtep_mac

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.inbox import Inbox
    from agent.membership import Source
    from cni.kernel.linux import Namespace
    from plugins.cluster_conf import ClusterConf
    from plugins.peers import Subnet
    from plugins.this_node import Places


class Offer:
    """What a source was told last: `made`, None before; and the addresses `stated` by the source that it was made by."""

    def __init__(
        self,
        conf: ClusterConf,
        source: Source,
        inbox: Inbox,
        name: str,
        file: str,
        tell: Callable[[str, str], None],
        *,
        lists_us: bool,
    ) -> None:
        """`file` is the subnet file's path. `lists_us`: the source knows by itself where this node is. `tell` is given a
        subject and what is wrong with it."""
        self.made: Node | None = None
        self.stated: tuple[bytes, ...] = ()
        self._conf = conf
        self._source = source
        self._inbox = inbox
        self._name = name
        self._subnet_file = file
        self._tell = tell
        self._lists_us = lists_us
        self._here: frozenset[bytes] = frozenset()
        self._links: dict[int, str] = {}  # which the addresses that were offered are on

    def settle(self, host: Namespace, there: Places, *, is_listed: bool) -> bool:
        """Have the source tell the others where this node is, when that has changed: its address has gone and there is
        another, or it has one of a family that it had none of. Whether there was something to tell.

        No address at all is no news: what was told stands until there is one. A source that lists this node is asked
        first, because it may know which of several addresses counts. While that one is away another link's is not it:
        virtual machines often have one address on all of them there. `is_listed`: the whole membership has been heard.
        """
        self._here = frozenset(address.packed for _, address in there)
        self.stated = self._source.stated
        if self.made is None and self._lists_us:
            self.made = Node(self._name, {}, self._written())
            self._source.start(self.made, self._inbox)
        if self._lists_us and not is_listed:
            return False
        try:
            self._refuse_elsewhere()
            addresses = self._addresses(host, there)
            self._tell("underlay", "")
        except CniError as error:
            if not self._lists_us:
                self._tell("underlay", error.msg)
            return False
        return bool(addresses) and self._make(addresses)

    def _addresses(self, host: Namespace, there: Places) -> dict[int, bytes]:
        """Where this node is, by the address's size. CniError 50 when it has no address."""
        before = self.made.addresses if self.made is not None else {}
        lasting = {size: packed for size, packed in before.items() if packed in self._here}
        preferred = (*self.stated, *lasting.values(), *self._source.announced)
        found = this_node.of_links(host, self._conf, self._conf.networks, there, preferred).addresses
        links = {address.packed: link.name for link, address in there}
        for size in () if self._conf.iface else self._away(before):
            if size in found and links[found[size]] != self._links.get(size):
                del found[size]
            if size in before:
                found.setdefault(size, before[size])
        if not self._lists_us:
            found |= {len(packed): packed for packed in self.stated}
        self._links |= {size: links[packed] for size, packed in found.items() if packed in links}
        return lasting | found

    def _away(self, before: dict[int, bytes]) -> set[int]:
        """The families in which the address that this node is to be known by, and was, is not here."""
        known = {*before.values(), *self._source.announced}.intersection(self.stated)
        return {len(packed) for packed in known}.difference(len(one) for one in self.stated if one in self._here)

    def _refuse_elsewhere(self) -> None:
        """CniError 50 when the address that others are to reach this node at is not here: they would be misled."""
        for packed in () if self._lists_us else self.stated:
            if packed not in self._here:
                key, here = ADDRESS_KEYS[len(packed)], ", ".join(sorted(map(addr.unpack, self._here))) or "none"
                text = f"membership.{key}: expected an address of this host ({here}), found {addr.unpack(packed)}"
                raise CniError(NOT_AVAILABLE, text)

    def _make(self, addresses: dict[int, bytes]) -> bool:
        """Offer these addresses, unless they are what was offered last."""
        if self.made is not None and self.made.addresses == addresses:
            return False
        vni = self._conf.vni
        tells_macs = self._conf.kind == "vxlan" and not self._lists_us  # who lists this node derives them
        macs = {size: vtep_mac(vni, packed) for size, packed in addresses.items()} if tells_macs else {}
        own = Node(self._name, addresses, self._written(), macs)
        if self.made is None:
            self._source.start(own, self._inbox)
        else:
            self._source.update(own)
        self.made = own
        return True

    def _written(self) -> tuple[Subnet, ...]:
        """The subnets of an earlier time, which running pods have their addresses from."""
        file = subnet_file.written(self._subnet_file)
        return file.subnets if file is not None else ()
