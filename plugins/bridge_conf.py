"""bridge's options, typed: the names, defaults and meaning of the Go plugin `bridge`."""

from __future__ import annotations

from cni import addr
from cni.addr import IPV6_MTU, LEAST_MTU
from cni.config import Reader, Refusal, hardware_address, wrong
from cni.errors import CniError
from cni.names import interface_fault
from cni.request import CLEANING
from cni.result import read_dns
from plugins import masquerade

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni.request import Request

BRIDGED = "bridged"  # the `attachment` of a cluster network whose pods are on a bridge
DEFAULT_BRIDGE = "cni0"
LAST_VLAN = 4094


class Conf:
    """bridge's options, typed. `vlans` are the trunk's IDs, `mac` 6 bytes or None.

    In DEL and GC all are at their defaults, whatever the configuration says: those verbs work from records, and where
    there is none from `attachment.Traces`.
    """

    __slots__ = (
        "backend", "bridge", "disable_container_interface", "dns", "duplicate_detection", "force_address", "hairpin",
        "ip_masq", "ipam", "is_default_gateway", "is_gateway", "isolated", "layer3", "mac", "mac_spoof_check", "mtu",
        "preserve_default_vlan", "promisc", "vlan", "vlan_option", "vlans",
    )  # fmt: skip

    def __init__(self, config: Reader, request: Request) -> None:
        if request.command in CLEANING:
            config = Reader({})
        self.bridge = config.string("bridge", DEFAULT_BRIDGE)
        self.is_default_gateway = config.boolean("isDefaultGateway")
        self.is_gateway = config.boolean("isGateway") or self.is_default_gateway
        self.force_address = config.boolean("forceAddress")
        self.ip_masq = config.boolean("ipMasq")
        self.backend = config.string("ipMasqBackend") or masquerade.NFTABLES
        self.hairpin = config.boolean("hairpinMode")
        self.promisc = config.boolean("promiscMode")
        self.vlan = config.integer("vlan", low=0, high=LAST_VLAN)
        self.preserve_default_vlan = config.boolean("preserveDefaultVlan")
        self.mac_spoof_check = config.boolean("macspoofchk")
        self.duplicate_detection = config.boolean("enabledad")
        self.disable_container_interface = config.boolean("disableContainerInterface")
        self.isolated = config.boolean("portIsolation")
        self.mtu = config.integer("mtu", low=0, high=65535)
        self.vlans = _trunk(config)
        self.mac = _mac(config, request)
        self.ipam = config.object("ipam")
        self.layer3 = bool(self.ipam.string("type"))
        self.dns = read_dns(config.object("dns"))
        self.vlan_option = f"vlan: {self.vlan}" if self.vlan else f"vlanTrunk: {self.vlans}" if self.vlans else ""

    @property
    def programs(self) -> tuple[str, ...]:
        """Programs of the node that ADD runs, beside its delegate."""
        return ("iptables-restore",) if self.ip_masq and self.backend == masquerade.IPTABLES else ()

    def refuse_contradictions(self) -> None:
        """CniError 7 for options that cannot be together. Not asked in DEL and GC, which must clean up."""
        for fault in self.contradictions():
            raise fault

    def contradictions(self) -> Iterator[Refusal]:
        """What cannot be together."""
        fault = interface_fault(self.bridge)
        if fault:
            yield wrong("bridge", f"an interface name ({fault})", self.bridge)
        gateway_link = f"{self.bridge}.{self.vlan}"
        if self.vlan and self.is_gateway and interface_fault(gateway_link):
            yield wrong("bridge", f"a shorter name, so that {gateway_link!r} can name the VLAN's gateway", self.bridge)
        if self.backend not in masquerade.BACKENDS:
            yield wrong("ipMasqBackend", 'unknown ipmasq backend: "nftables" or "iptables"', self.backend)
        if 0 < self.mtu < LEAST_MTU[4]:
            yield wrong("mtu", f"at least {LEAST_MTU[4]}, the least that a link can have", self.mtu)
        elif 0 < self.mtu < IPV6_MTU and self.ipv6_gateways():
            yield too_narrow(self.mtu)
        if self.layer3 and self.disable_container_interface:
            yield Refusal(
                "ipam", "none, because disableContainerInterface is true", "one",
                "remove `ipam` or disableContainerInterface",
                "cannot use IPAM when DisableContainerInterface flag is set",
            )  # fmt: skip
        if self.hairpin and self.promisc:
            yield Refusal(
                "promiscMode", "only one of hairpinMode and promiscMode", "both",
                "remove hairpinMode or promiscMode: each lets a pod reach itself",
                "cannot set hairpin mode and promiscuous mode at the same time",
            )  # fmt: skip

    def ipv6_gateways(self) -> list[bytes]:
        """The gateway of each IPv6 range or address that `ipam` names, as host-local and static are configured. What an
        IPAM plugin hands out beside these is known when it has."""
        return _ipv6_gateways(self.ipam.value)


def too_narrow(mtu: int) -> Refusal:
    """The refusal of IPv6 on a pod's link of this MTU."""
    return Refusal(
        "mtu", f"at least {IPV6_MTU}, because the pods get IPv6 addresses", str(mtu),
        f"set `mtu` to {IPV6_MTU} or more, or leave IPv6 out of `ipam`: Linux has no IPv6 on a link of less",
    )  # fmt: skip


def _ipv6_gateways(value: object) -> list[bytes]:
    """The gateways of all IPv6 subnets and addresses in a configuration of IPAM, whatever else is wrong with it."""
    if isinstance(value, list):
        return [found for item in value for found in _ipv6_gateways(item)]
    if not isinstance(value, dict):
        return []
    given = {key.casefold(): item for key, item in value.items()}
    found = _ipv6_gateways(given.get("ranges")) + _ipv6_gateways(given.get("addresses"))
    subnet = addr.pack_cidr(str(given.get("subnet") or given.get("address")))
    if subnet and len(subnet[0]) == 16:
        found.append(addr.pack(str(given.get("gateway"))) or addr.following(addr.network(*subnet)))
    return found


def _trunk(config: Reader) -> list[int]:
    """The IDs of `vlanTrunk`, sorted."""
    found: set[int] = set()
    for item in config.objects("vlanTrunk"):
        low, high, one = (item.integer(key, 0, 1, LAST_VLAN) for key in ("minID", "maxID", "id"))
        if bool(low) != bool(high):
            missing = "maxID" if low else "minID"
            words = f"{item.path}: minID and maxID should be configured simultaneously, {missing} is missing"
            config.refuse(Refusal(item.at(missing), "minID and maxID, or neither", "one", f'add "{missing}"', words))
        elif low > high:
            words = f"{item.path}: minID {low} is greater than maxID {high} in trunk parameter"
            config.refuse(
                Refusal(item.at("maxID"), f"at least minID, which is {low}", f"{high}", "swap minID and maxID", words)
            )
        found.update(range(low, high + 1) if low else (), [one] if one else ())
    return sorted(found)


def _mac(config: Reader, request: Request) -> bytes | None:
    """The pod's MAC from CNI_ARGS, `args.cni.mac` or `runtimeConfig.mac`; the later one wins. None in DEL and GC."""
    found = [("CNI_ARGS MAC", request.args.get("MAC"))]
    cni_args, runtime = config.object("args").object("cni"), config.object("runtimeConfig")
    found += [(reader.at("mac"), reader.string("mac")) for reader in (cni_args, runtime)]
    given = [(path, text) for path, text in found if text]
    if not given or request.command in CLEANING:
        return None
    path, text = given[-1]
    try:
        mac = hardware_address(path, text)
        if addr.is_multicast_mac(mac) or not any(mac):
            raise wrong(path, "a unicast MAC address", text)
    except CniError as error:
        config.refuse(error)
        return None
    return mac
