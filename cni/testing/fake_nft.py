"""nftables of the fake kernel: tables in memory, changed by whole transactions.

It refuses what the kernel refuses with the kernel's errno. What a rule means is not played: that is for the
tests on a real kernel.
"""

from __future__ import annotations

import copy
from errno import EBUSY, EEXIST, EINVAL, ENOENT
from typing import TYPE_CHECKING, Any

from cni.errors import KernelError
from cni.kernel.nftables import encode
from cni.kernel.nftsteps import parse_step
from cni.kernel.ops import NFPROTO_BRIDGE, nft_rule_add
from cni.kernel.types import NftChain, NftRule, NftStep

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.kernel.ops import Op

_KEY_LENGTHS = {"ipv4_addr": 4, "ipv6_addr": 16, "ether_addr": 6}


class Refused(Exception):  # noqa: N818 - a word, not an error class of the program
    """An errno on its way to the operation's error."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class Rule:
    def __init__(self, handle: int, expressions: list[tuple[Any, ...]], comment: str) -> None:
        self.handle = handle
        self.expressions = [tuple(expression) for expression in expressions]
        self.comment = comment

    def targets(self) -> list[str]:
        return [expression[1] for expression in self.expressions if expression[0] in {"jump", "goto"}]

    def iifname(self) -> str:
        named = [expression[1] for expression in self.expressions if expression[0] == "iifname"]
        return named[0] if named and self.targets() else ""

    def sets(self) -> list[str]:
        return [expression[2] for expression in self.expressions if expression[0] == "saddr_in_set"]


class Chain:
    def __init__(self, hook: tuple[str, str, int] | None) -> None:
        self.hook = hook
        self.policy = "accept"
        self.rules: list[Rule] = []


class Set:
    def __init__(self, key: str) -> None:
        self.key = key
        self.elements: dict[bytes, str] = {}


class Table:
    def __init__(self) -> None:
        self.chains: dict[str, Chain] = {}
        self.sets: dict[str, Set] = {}

    def rules(self) -> list[Rule]:
        return [rule for chain in self.chains.values() for rule in chain.rules]


class FakeNft:
    """All tables of one namespace."""

    def __init__(self) -> None:
        self.tables: dict[tuple[int, str], Table] = {}
        self._handle = 0
        self.generation = 1

    def transact(self, operations: tuple[Op, ...]) -> None:
        """All of them or, with KernelError for the first that is refused, none."""
        before = copy.deepcopy(self.tables)
        for op in operations:
            try:
                _VERBS[op.verb](self, **op.args)
            except Refused as refused:
                self.tables = before
                raise KernelError(op.text, refused.errno) from None
        self.generation += 1

    def table(self, family: int, table: str) -> Table | None:
        return self.tables.get((family, table))

    def rules(self, family: int, table: str, chain: str) -> list[NftRule]:
        found = self.tables.get((family, table), Table()).chains.get(chain, Chain(None))
        return [NftRule(rule.handle, rule.comment, rule.targets(), rule.iifname()) for rule in found.rules]

    def chains(self) -> list[NftChain]:
        return [
            NftChain(family, table_name, name, chain.hook[1], chain.policy)
            for (family, table_name), table in self.tables.items()
            for name, chain in table.chains.items()
            if chain.hook and family != NFPROTO_BRIDGE
        ]

    def steps(self, family: int, table: str, chain: str) -> list[NftStep]:
        found = []
        for rule in self.tables.get((family, table), Table()).chains.get(chain, Chain(None)).rules:
            _, _, body = encode(nft_rule_add(family, table, chain, rule.expressions, rule.comment), 0)
            step = parse_step(body)
            step.handle = rule.handle
            found.append(step)
        return found

    def elements(self, family: int, table: str, set_name: str) -> list[bytes]:
        return list(self.tables.get((family, table), Table()).sets.get(set_name, Set("")).elements)

    def comments(self, family: int, table: str, set_name: str) -> dict[bytes, str]:
        return dict(self.tables.get((family, table), Table()).sets.get(set_name, Set("")).elements)

    def snapshot(self) -> dict[str, Any]:
        """Everything as plain data; handles, which only count, are left out."""
        return {
            f"{family} {name}": {
                "chains": {
                    chain_name: {"hook": chain.hook, "rules": [(one.expressions, one.comment) for one in chain.rules]}
                    for chain_name, chain in sorted(table.chains.items())
                },
                "sets": {
                    set_name: {"key": one.key, "elements": dict(sorted(one.elements.items()))}
                    for set_name, one in sorted(table.sets.items())
                },
            }
            for (family, name), table in sorted(self.tables.items())
        }

    # The operations

    def _table(self, family: int, table: str) -> Table:
        found = self.tables.get((family, table))
        if found is None:
            raise Refused(ENOENT)
        return found

    def _chain(self, family: int, table: str, chain: str) -> Chain:
        found = self._table(family, table).chains.get(chain)
        if found is None:
            raise Refused(ENOENT)
        return found

    def _set(self, family: int, table: str, name: str) -> Set:
        found = self._table(family, table).sets.get(name)
        if found is None:
            raise Refused(ENOENT)
        return found

    def table_add(self, family: int, table: str) -> None:
        self.tables.setdefault((family, table), Table())

    def table_del(self, family: int, table: str, empty: bool) -> None:  # noqa: FBT001 - as the operation has it
        found = self._table(family, table)
        if empty and (found.chains or found.sets):
            raise Refused(EBUSY)
        del self.tables[family, table]

    def chain_add(self, family: int, table: str, chain: str, hook: tuple[str, str, int] | None) -> None:
        found = self._table(family, table).chains.setdefault(chain, Chain(hook))
        if hook is not None and found.hook != hook:
            raise Refused(EEXIST)

    def chain_flush(self, family: int, table: str, chain: str) -> None:
        self._chain(family, table, chain).rules.clear()

    def chain_del(self, family: int, table: str, chain: str) -> None:
        self._chain(family, table, chain)
        found = self._table(family, table)
        if any(chain in rule.targets() for rule in found.rules()):
            raise Refused(EBUSY)
        del found.chains[chain]

    def set_add(self, family: int, table: str, name: str, key: str) -> None:
        if self._table(family, table).sets.setdefault(name, Set(key)).key != key:
            raise Refused(EEXIST)

    def set_del(self, family: int, table: str, name: str) -> None:
        self._set(family, table, name)
        found = self._table(family, table)
        if any(name in rule.sets() for rule in found.rules()):
            raise Refused(EBUSY)
        del found.sets[name]

    def rule_add(
        self, family: int, table: str, chain: str, expressions: list[tuple[Any, ...]], comment: str, before: int
    ) -> None:
        where = self._chain(family, table, chain)
        self._handle += 1
        rule = Rule(self._handle, expressions, comment)
        for target in rule.targets():
            self._chain(family, table, target)
        for name in rule.sets():
            self._set(family, table, name)
        places = [at for at, one in enumerate(where.rules) if one.handle == before]
        if before and not places:
            raise Refused(ENOENT)
        where.rules.insert(places[0] if places else len(where.rules), rule)

    def rule_del(self, family: int, table: str, chain: str, handle: int) -> None:
        rules = self._chain(family, table, chain).rules
        kept = [rule for rule in rules if rule.handle != handle]
        if len(kept) == len(rules):
            raise Refused(ENOENT)
        rules[:] = kept

    def element_add(self, family: int, table: str, name: str, key: bytes, comment: str) -> None:
        found = self._set(family, table, name)
        if len(key) != _KEY_LENGTHS[found.key]:
            raise Refused(EINVAL)
        found.elements.setdefault(key, comment)  # as the kernel: the first comment stays

    def element_del(self, family: int, table: str, name: str, key: bytes) -> None:
        if self._set(family, table, name).elements.pop(key, None) is None:
            raise Refused(ENOENT)


_VERBS: dict[str, Callable[..., None]] = {
    "nft_table_add": FakeNft.table_add,
    "nft_table_del": FakeNft.table_del,
    "nft_chain_add": FakeNft.chain_add,
    "nft_chain_flush": FakeNft.chain_flush,
    "nft_chain_del": FakeNft.chain_del,
    "nft_set_add": FakeNft.set_add,
    "nft_set_del": FakeNft.set_del,
    "nft_rule_add": FakeNft.rule_add,
    "nft_rule_del": FakeNft.rule_del,
    "nft_element_add": FakeNft.element_add,
    "nft_element_del": FakeNft.element_del,
}
