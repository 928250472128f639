"""Filter tables of legacy iptables, which nobody but its own programs can read and write.

They are in the kernel beside nftables, and what drops in either is dropped.
"""

from __future__ import annotations

from cni import addr
from cni.execute import command
from cni.kernel.types import NftStep
from cni.paths import base_name
from plugins.iptables import FAMILIES, find_program, lines_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cni.world import Communicate

FILTER = "filter"
_VERDICTS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return"}
_WITH_VALUE = ("-s", "-d", "-i", "-o", "-j", "-g", "-m", "--comment")
# What changes or notes a packet and lets it go on.
_PASSING = ("LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "CT", "NOTRACK", "TCPMSS", "TRACE")


class Table:
    """The filter table of a family: the policy of its chains, None for those that have none, and their rules. A rule's
    handle is its number in the chain, from 1."""

    def __init__(self, text: str, size: int) -> None:
        self.policies: dict[str, str | None] = {}
        self.chains: dict[str, list[NftStep]] = {}
        for line in text.splitlines():
            if line.startswith(":"):
                name, _, rest = line[1:].partition(" ")
                self.policies[name] = _VERDICTS.get(rest.partition(" ")[0])
                self.chains.setdefault(name, [])
            elif line.startswith("-A "):
                _, *found = words(line)
                rules = self.chains.setdefault("".join(found[:1]), [])
                rules.append(_step(found[1:], len(rules) + 1, size))

    def steps(self, chain: str) -> Sequence[NftStep]:
        return self.chains.get(chain, ())


def is_used(size: int) -> bool:
    """Whether a family has such a filter table here."""
    return FILTER in lines_of(FAMILIES[size][2])


def read(size: int, environ: Mapping[str, str], through: Communicate | None = None) -> Table | None:
    """A family's filter table; None when it has none, or no program to read it with."""
    program = _program(size, "save", environ) if is_used(size) else ""
    if not program:
        return None
    return Table(command([program, "-t", FILTER], environ, b"", through).decode("utf-8", "replace"), size)


def command_name(size: int, environ: Mapping[str, str]) -> str:
    """What a person calls to change a family's tables."""
    return base_name(_program(size, "save", environ)).removesuffix("-save")


def change(size: int, lines: Sequence[str], environ: Mapping[str, str], through: Communicate | None = None) -> None:
    """Carry out lines of iptables-restore(8) on a family's filter table."""
    script = "\n".join([f"*{FILTER}", *lines, "COMMIT", ""]).encode()
    command([_program(size, "restore", environ), "--noflush", "--wait", "10"], environ, script, through)


def words(line: str) -> list[str]:
    """The words of a line of iptables-save(8): quoted where they hold blanks, with `\\` before quotes and itself."""
    found, word, quoted, escaped = [], "", False, False
    for letter in line + " ":
        if escaped:
            word, escaped = word + letter, False
        elif letter == "\\":
            escaped = True
        elif letter == '"':
            quoted = not quoted
        elif letter == " " and not quoted:
            found += [word] if word else []
            word = ""
        else:
            word += letter
    return found


def _program(size: int, what: str, environ: Mapping[str, str]) -> str:
    """A distribution with the legacy kind only has no `-legacy` in its name."""
    name = FAMILIES[size][1]
    found = find_program(f"{name}-legacy-{what}", environ)
    if found or find_program(f"{name}-nft-{what}", environ):
        return found
    return find_program(f"{name}-{what}", environ)


def _step(rest: list[str], number: int, size: int) -> NftStep:
    step = NftStep(number)
    step.size = size
    negated = False
    items = iter(rest)
    for item in items:
        if item == "!":
            negated = True
            continue
        value = next(items, "") if item in _WITH_VALUE else ""
        if item in ("-s", "-d"):
            subnet = addr.pack_cidr(value)
            if subnet is None:
                step.open = True
            else:
                step.addresses.append(("saddr" if item == "-s" else "daddr", subnet, negated))
        elif item in ("-i", "-o"):
            name = f"{value[:-1]}*" if value.endswith("+") else value
            step.links.append(("iif" if item == "-i" else "oif", name, negated))
        elif item == "--comment":
            step.comment = value
        elif item in ("-j", "-g"):
            _decide(step, value, "goto" if item == "-g" else "jump")
            break  # the rest is the target's
        elif (item, value) != ("-m", "comment"):
            step.narrow = True
        negated = False
    return step


def _decide(step: NftStep, target: str, by: str) -> None:
    if target in _VERDICTS:
        step.verdict = _VERDICTS[target]
    elif target not in _PASSING:
        step.verdict, step.target = by, target
