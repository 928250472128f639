"""The nftables verbs of a namespace: what `cni/kernel/nftables.py` encodes, sent and answered."""

from __future__ import annotations

from errno import ENOENT

from cni.errors import KernelError
from cni.kernel import nftables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni.kernel.netlink import Socket
    from cni.kernel.ops import Op
    from cni.kernel.types import NftChain, NftRule, NftStep


class Nftables:
    """Transactions and questions over one nfnetlink socket, which belongs to its namespace."""

    __slots__ = ("_socket",)

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    def change(self, operations: Sequence[Op]) -> None:
        """One transaction. KernelError names the operation that failed."""
        requests = [nftables.encode(op, number) for number, op in enumerate(operations)]
        refused = self._socket.transact(nftables.BATCH_BEGIN, requests, nftables.BATCH_END)
        if refused is not None:
            number, (errno, hint) = refused
            what = operations[number].text if 0 <= number < len(operations) else "commit an nftables transaction"
            raise KernelError(what, errno, hint)

    def has(self, family: int, table: str, kind: str, name: str) -> bool:
        message_type, body = nftables.object_question(family, table, kind, name)
        what = f"look up nftables {kind or 'table'} {table} {name}".rstrip()
        return self._socket.ask(what, message_type, body, absent=(ENOENT,)) is not None

    def rules(self, family: int, table: str, chain: str) -> list[NftRule]:
        body = nftables.rules_question(family, table, chain)
        what = f"list rules of nftables chain {table} {chain}"
        answers = self._socket.dump(what, nftables.GETRULE, body, absent=(ENOENT,))
        return [nftables.parse_rule(answer) for answer in answers]

    def generation(self) -> int:
        answer = self._socket.ask("ask for the generation of nftables", nftables.GETGEN, nftables.nothing())
        return nftables.parse_generation(answer or b"")

    def chains(self) -> list[NftChain]:
        # Imported here and below: only who looks at what others filter needs it.
        from cni.kernel.nftsteps import parse_chain

        answers = self._socket.dump("list nftables chains", nftables.GETCHAIN, nftables.nothing())
        return [chain for chain in map(parse_chain, answers) if chain is not None]

    def steps(self, family: int, table: str, chain: str) -> list[NftStep]:
        from cni.kernel.nftsteps import parse_step

        body = nftables.rules_question(family, table, chain)
        what = f"list rules of nftables chain {table} {chain}"
        return [parse_step(answer) for answer in self._socket.dump(what, nftables.GETRULE, body, absent=(ENOENT,))]

    def elements(self, family: int, table: str, set_name: str) -> list[bytes]:
        body = nftables.elements_question(family, table, set_name)
        what = f"list elements of nftables set {table} {set_name}"
        answers = self._socket.dump(what, nftables.GETSETELEM, body, absent=(ENOENT,))
        # A set that grows while it is read may show an element twice.
        return list(dict.fromkeys(key for answer in answers for key in nftables.parse_keys(answer)))

    def comments(self, family: int, table: str, set_name: str) -> dict[bytes, str]:
        body = nftables.elements_question(family, table, set_name)
        what = f"list elements of nftables set {table} {set_name}"
        answers = self._socket.dump(what, nftables.GETSETELEM, body, absent=(ENOENT,))
        return {key: comment for answer in answers for key, comment in nftables.parse_comments(answer).items()}

    def comment(self, family: int, table: str, set_name: str, key: bytes) -> str:
        body = nftables.element_question(family, table, set_name, key)
        what = f"look up element {key.hex()} of nftables set {table} {set_name}"
        answer = self._socket.ask(what, nftables.GETSETELEM, body, absent=(ENOENT,))
        return "" if answer is None else nftables.parse_comments(answer).get(key, "")

    def has_element(self, family: int, table: str, set_name: str, key: bytes) -> bool:
        body = nftables.element_question(family, table, set_name, key)
        what = f"look up element {key.hex()} of nftables set {table} {set_name}"
        return self._socket.ask(what, nftables.GETSETELEM, body, absent=(ENOENT,)) is not None
