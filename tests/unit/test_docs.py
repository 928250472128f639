"""The pages under docs/ say what the code does: every name that is claimed, every option that is read."""

from __future__ import annotations

import ast
import json
import posix
import re
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from cli import bundle
from cli.install import STAGE, UNUSED
from cli.main import cli
from cli.registry import PLUGINS
from cni import __version__, cache, netlist
from cni.addr import AF_INET
from cni.config import Reader
from cni.errors import CniError
from cni.kernel import ops
from cni.kernel.ops import NFPROTO_BRIDGE, NFPROTO_INET
from cni.request import Request
from cni.runtime import Runtime
from cni.version import SUPPORTED
from ipam import host_local, store
from plugins import bridge, host_gw, iptables, loopback, vxlan
from tests.bench import plot, report
from tests.unit.calls import POD, Node

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = (ROOT / "docs/registry.md").read_text()
OPTIONS = (ROOT / "docs/options.md").read_text()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

FAMILIES = {NFPROTO_INET: "inet", NFPROTO_BRIDGE: "bridge"}

# Every option that changes something on the node.
EVERYTHING = {
    "cniVersion": "1.1.0",
    "name": "net",
    "type": "bridge",
    "isDefaultGateway": True,
    "ipMasq": True,
    "vlan": 100,
    "macspoofchk": True,
    "enabledad": True,
}
RANGES = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]


def cells(page: str, column: int = 0) -> list[str]:
    """What stands in backquotes in one column of the page's tables."""
    rows = [line.split("|")[1:] for line in page.splitlines() if line.startswith("| ")]
    return [text for row in rows if len(row) > column for text in re.findall(r"`([^`]+)`", row[column])]


class TestRegistry:
    """What one ADD with everything on leaves behind is in docs/registry.md."""

    @pytest.fixture
    def node(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
        node = Node(tmp_path, registry=PLUGINS)
        self.before = node.kernel.snapshot()
        leases = tmp_path / "leases"
        (leases / "net").mkdir(parents=True)
        (leases / "net/10.1.0.2").touch()  # torn
        self.removed: list[str] = []
        unlink = posix.unlink

        def noted(path: str) -> None:
            self.removed.append(path)
            unlink(path)

        monkeypatch.setattr(posix, "unlink", noted)
        ipam = {"type": "host-local", "dataDir": str(leases), "ranges": RANGES}
        assert node.call("bridge", "ADD", {**EVERYTHING, "ipam": ipam}).status == 0
        return node

    def test_nftables(self, node: Node) -> None:
        for key, table in node.kernel.snapshot()["own"]["nft"].items():
            number, name = key.split()
            ours = rows(f"`{FAMILIES[int(number)]} {name}`")
            assert ours
            for chain, content in table["chains"].items():
                (row,) = [line for line in ours if f"`{general(chain)}`" in line]
                if content["hook"]:
                    kind, hook, priority = content["hook"]
                    assert f"type `{kind}`, hook `{hook}`" in row
                    assert str(priority) in row
                comments = {general(comment) for _, comment in content["rules"]}
                documented = [any(f"comment `{comment}`" in line for line in ours) for comment in comments]
                assert all(documented) or "its comment is the subnet" in row
            for set_name, content in table["sets"].items():
                (row,) = [line for line in ours if f"set `{general(set_name)}`" in line]
                assert content["key"] in row
                for comment in content["elements"].values():
                    assert any(f"element, comment `{general(comment)}`" in line for line in ours)

    def test_links(self, node: Node) -> None:
        forms = {"cni0": "`cni0`", "cni0.100": "`<bridge>.<vlan>`"}
        links = node.kernel.snapshot()["own"]["links"]
        del links["lo"]
        for name, link in links.items():
            assert rows("`veth` + 11 hex digits" if re.fullmatch("veth[0-9a-f]{11}", name) else forms[name])
            assert not link["alias"] or rows(f"alias `{general(link['alias'])}`")
        eth0 = node.kernel.snapshot()[POD]["links"]["eth0"]
        assert rows(f"MAC prefix `{eth0['mac'].hex(':')[:5]}`")

    @pytest.mark.parametrize("duplicate_detection", [True, False])
    def test_settings(self, tmp_path: Path, *, duplicate_detection: bool) -> None:
        node = Node(tmp_path, registry=PLUGINS)
        before = node.kernel.snapshot()
        ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases"), "ranges": RANGES}
        assert node.call("bridge", "ADD", {**EVERYTHING, "enabledad": duplicate_detection, "ipam": ipam}).status == 0
        changed = {
            (where, f"ipv{4 if family == AF_INET else 6}", link, key)
            for where, world in node.kernel.snapshot().items()
            for family, by_link in world["conf"].items()
            for link, keys in by_link.items()
            for key, value in keys.items()
            if value != before[where]["conf"][family].get(link, before[where]["conf"][family]["default"])[key]
            and (key != "forwarding" or link == "all")  # `all` sets every link's
        }
        assert changed >= {("own", "ipv4", "all", "forwarding"), (POD, "ipv4", "eth0", "arp_notify")}
        assert duplicate_detection or (POD, "ipv6", "eth0", "accept_dad") in changed
        for where, family, link, key in changed:
            name = {"eth0": "IFNAME", "cni0": "<bridge>"}.get(link, link)
            ours = rows("node" if where == "own" else "pod")
            assert any(f"net.{family}.conf.{name}." in row and f"{key}`" in row for row in ours), (where, link, key)

    def test_every_setting_that_the_code_can_write(self) -> None:
        keys = {
            argument.value
            for call in calls_in("plugins", ("set_conf", "set_known", "_set_if_known"))
            for argument in call.args
            if isinstance(argument, ast.Constant)
            and isinstance(argument.value, str)
            and argument.value not in ("all", "0", "1")
        }
        assert "ndisc_notify" in keys
        assert [key for key in sorted(keys) if key not in REGISTRY] == []

    def test_what_a_network_of_several_nodes_makes(self, tmp_path: Path) -> None:
        node = Node(tmp_path, registry=PLUGINS)
        with node.kernel.own() as host:
            host.apply(ops.bridge_add("eth0", b"\x02\0\0\0\0\x01"), ops.link_set("eth0", up=True))
            for index in [link.index for link in host.links() if link.name == "eth0"]:
                host.apply(ops.addr_add(index, bytes([192, 0, 2, 1]), 24, nodad=True))
        before = node.kernel.snapshot()
        peers = [
            {"name": name, "publicIP": f"192.0.2.{n}", "subnets": [f"10.244.{n}.0/24", f"fd00:244:0:{n}::/64"]}
            for n, name in ((1, "a"), (2, "b"))
        ]
        networks = {"network": "10.244.0.0/16", "ipv6Network": "fd00:244::/48", "ipMasq": True, "peers": peers}
        ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases")}
        conf = {"cniVersion": "1.1.0", "name": "net", "type": "vxlan", **networks, "ipam": ipam}
        assert node.call("vxlan", "ADD", conf).status == 0

        now = node.kernel.snapshot()["own"]
        (device,) = [link for name, link in now["links"].items() if name == "cnikit.1"]
        assert rows("`cnikit.` + VNI")
        assert rows(f"alias `{device['alias'].replace('net', 'NETWORK')}`")
        comments = [comment for _, comment in now["nft"][f"{NFPROTO_INET} cnikit"]["chains"]["masq-net"]["rules"]]
        assert [comment.split()[:-1] for comment in comments] == [
            *(["range", subnet] for subnet in peers[0]["subnets"]),
            *(["range", networks[key], one] for key in ("network", "ipv6Network") for one in ("cnikit.1", "cnik6.1")),
        ]
        for comment in ("range SUBNET HASH", "range NETWORK DEVICE HASH"):
            assert any(f"comment `{comment}`" in row for row in rows("`inet cnikit`"))
        assert any("205" in row for row in rows("route protocol"))
        for family, by_link in now["conf"].items():
            for link, keys in by_link.items():
                was = before["own"]["conf"][family].get(link, before["own"]["conf"][family]["default"])
                changed = [key for key, value in keys.items() if value != was[key] and key != "forwarding"]
                name = "<device>" if link == "cnikit.1" else "<end>"
                for key in changed:
                    assert any(f"net.ipv6.conf.{name}." in row and f"{key}`" in row for row in rows("node")), (
                        link,
                        key,
                    )

    def test_files(self, node: Node, tmp_path: Path) -> None:
        roots = {str(node.run_dir): "/run/cnikit", str(tmp_path / "leases"): store.DEFAULT_DATA_DIR}
        for root, where in roots.items():
            there = [str(path) for path in Path(root).rglob("*") if path.is_symlink() or path.is_file()]
            passing = [path for path in self.removed if path.startswith(f"{root}/")]
            assert len(there) > 2
            assert passing
            for file in there + passing:
                assert is_registered(f"{where}/{general(file.removeprefix(f'{root}/'))}"), file

    def test_files_of_the_runtime_and_the_build(self, tmp_path: Path) -> None:
        runtime = Runtime([], {}, time.monotonic, print, str(tmp_path))
        with runtime._turn("net", cache.Attachment("ctr", "eth0")):
            (folder,) = {path.parent.name for path in tmp_path.rglob("*") if path.is_file()}
        assert rows(f"`{cache.DEFAULT_FOLDER}/{folder}/`")
        (launchers,) = rows("`/opt/cni/bin/bridge`")
        assert all(f"`{name}`" in launchers for name in set(PLUGINS) - {"bridge"})
        assert rows(f"`/opt/cni/bin/{bundle.PLUGIN_BUNDLE[0]}/BUILD/`")
        for mark in (f"{STAGE}*", f"{UNUSED}BUILD"):
            assert rows(f"`/opt/cni/bin/{bundle.PLUGIN_BUNDLE[0]}/{mark}`")
        assert rows(f"`{bundle.COMMAND_BUNDLE[0]}/BUILD/` beside `cnikit`")

    def test_every_path_in_the_code(self) -> None:
        ours = ("/run/cnikit", "/var/lib/cni", "/opt/cni", "/usr/lib/cnikit", "/etc/cni", "/proc/")
        ignored = ("/run/cnikit-demo", "/run/cnikit/networks/demo", "/proc/self", "/proc/thread-self", "/proc/sys/net")
        found = {
            text
            for folder in ("cni", "plugins", "ipam", "launcher", "cli")
            for path in (ROOT / folder).rglob("*")
            if path.suffix in (".py", ".c") and "testing" not in path.parts
            for text in re.findall(r'"(/[a-z]+/[^" ]*)"', path.read_text())
            if text.startswith(ours) and not text.startswith(ignored)
        }
        assert found >= {"/usr/lib/cnikit", "/run/cnikit"}
        assert [text for text in sorted(found) if text not in REGISTRY] == []

    def test_names_of_the_reference_and_of_the_cache(self) -> None:
        assert f"`inet {iptables.GO_TABLE}`, chain `{iptables.GO_CHAIN}`" in REGISTRY
        assert f"`{iptables.chain_name('net', 'ctr')[:4]}` and 24 hex digits" in REGISTRY
        attachment = cache.Attachment("CONTAINER", "IFNAME")
        path = cache.Cache(cache.DEFAULT_FOLDER, print).path("NETWORK", attachment)
        assert f"`{path}`" in REGISTRY
        assert f"`{netlist.DEFAULT_FOLDER}`" in REGISTRY

    def test_reserved_numbers_do_not_meet(self) -> None:
        bits = [int(text, 16) for text in re.findall(r"^\| `(0x[0-9a-f]{8})` \|", REGISTRY, re.MULTILINE)]
        mask = int(re.findall(r"mask of all is `(0x[0-9a-f]+)`", REGISTRY)[0], 16)
        assert len(bits) == 5
        assert sum(bits) == mask
        assert mask & (0x4000 | 0x8000 | 0x2000 | 0x00FF0000) == 0


class TestOptions:
    """Every option that the code reads is in docs/options.md and in conf/schema, with the same type and default."""

    @pytest.fixture
    def read(self, monkeypatch: pytest.MonkeyPatch) -> set[str]:
        """The keys that the three Conf classes ask for, with positions left out: `ipam.ranges[][].subnet`."""
        found: set[str] = set()
        original = Reader.raw

        def raw(reader: Reader, key: str) -> Any:
            found.add(re.sub(r"\[\d+\]", "[]", reader.at(key)))
            return original(reader, key)

        monkeypatch.setattr(Reader, "raw", raw)
        conf = {
            "vlanTrunk": [{"id": 1}],
            "ipam": {"type": "host-local", "ranges": RANGES, "routes": [{"dst": "0.0.0.0/0", "table": 1, "scope": 0}]},
            "args": {"cni": {"ips": ["10.1.0.9"]}},
            "runtimeConfig": {"ipRanges": [[{"subnet": "10.2.0.0/24"}]]},
        }
        environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "a", "CNI_NETNS": "/b", "CNI_IFNAME": "c"}
        for module in (bridge, host_local, loopback):
            module.Conf(Reader(conf), Request(environ))
        return found

    @pytest.fixture
    def read_of_networks(self, monkeypatch: pytest.MonkeyPatch) -> set[str]:
        """The same of vxlan and host-gw."""
        found: set[str] = set()
        original = Reader.raw

        def raw(reader: Reader, key: str) -> Any:
            found.add(re.sub(r"\[\d+\]", "[]", reader.at(key)))
            return original(reader, key)

        monkeypatch.setattr(Reader, "raw", raw)
        peers = [{"name": "a", "publicIP": "192.0.2.1", "subnets": ["10.244.1.0/24"]}]
        for module in (vxlan, host_gw):
            config = Reader({"network": "10.244.0.0/16", "peers": peers})
            module.Conf(config, Request({"CNI_COMMAND": "STATUS"})).link()
        return {key for key in found if not key.startswith(("ipam.", "args", "runtimeConfig", "dns."))} - {
            "name",
            "type",
        }

    @pytest.mark.parametrize("plugin", ["vxlan", "host-gw"])
    def test_options_of_networks(self, read_of_networks: set[str], plugin: str) -> None:
        """vxlan's page is host-gw's and more; host-gw knows vxlan's keys only as far as they are read alike."""
        sections = {text.partition("\n")[0]: text for text in re.split(r"^## ", OPTIONS, flags=re.MULTILINE)}
        documented = set(cells(sections["host-gw"])) | set(cells(sections["vxlan"]))
        read = read_of_networks & documented | {"membership"}
        assert len(read) > 20
        # `bridge` reads more options, which no network of several nodes has.
        of_bridge = set(cells(sections["bridge"]))
        assert [key for key in sorted(read_of_networks - documented) if key not in of_bridge | {"cniVersion"}] == []
        assert documented - read == set()
        of_vxlan = set(cells(sections["vxlan"]))
        known = {key for key in schema_keys(plugin) if not key.startswith(("args", "membership."))}
        known -= {"type", "name", "cniVersion", "capabilities", "ipam.type"}
        assert known == (documented if plugin == "vxlan" else documented - of_vxlan)

    def test_each_is_documented(self, read: set[str]) -> None:
        documented = set(re.findall(r"`([^`]+)`", OPTIONS))
        missing = [key for key in sorted(read) if not {key, key.removeprefix("ipam.")} & documented]
        # Objects on the way, and lists of the dns object.
        allowed = {"args", "args.cni", "runtimeConfig", "ipam.type", "ipam.rangeStart", "ipam.rangeEnd", "ipam.gateway"}
        assert [key for key in missing if key not in allowed and "ipRanges" not in key and "dns." not in key] == []

    def test_none_is_documented_that_nobody_reads(self, read: set[str]) -> None:
        sections = re.split(r"^## ", OPTIONS, flags=re.MULTILINE)
        of_bridge = cells(next(text for text in sections if text.startswith("bridge\n")))
        of_host_local = cells(next(text for text in sections if text.startswith("host-local\n")))
        assert len(of_bridge) > 20
        assert len(of_host_local) > 15
        args = {"MAC", "IP"}
        assert [key for key in of_bridge if key not in read | args] == []
        assert [key for key in of_host_local if not {key, f"ipam.{key}"} & (read | args)] == []

    def test_each_has_a_schema(self, read: set[str]) -> None:
        known = schema_keys("bridge") | {f"ipam.{key}" for key in schema_keys("host-local")}
        # Put in by the runtime: they stand in no file.
        missing = [key for key in sorted(read) if key not in known and not key.startswith("runtimeConfig")]
        assert [key for key in missing if not key.startswith("dns.")] == []

    @pytest.mark.parametrize("plugin", ["bridge", "host-local", "vxlan", "host-gw"])
    def test_types_and_defaults_are_the_schemas(self, plugin: str) -> None:
        properties = schema(plugin)["properties"]
        section = next(
            text for text in re.split(r"^## ", OPTIONS, flags=re.MULTILINE) if text.startswith(f"{plugin}\n")
        )
        compared = 0
        for line in section.splitlines():
            row = [cell.strip() for cell in line.split("|")[1:-1]]
            key = row[0].strip("`") if row else ""
            if key not in properties or len(row) != 4 or "$ref" in properties[key]:
                continue
            assert row[1] == properties[key]["type"], key
            default = json.loads(row[2].strip("`")) if row[2].startswith("`") else None
            assert default == properties[key].get("default"), key
            compared += 1
        assert compared >= 5

    def test_defaults_are_the_codes(self) -> None:
        empty = bridge.Conf(Reader({}), Request({"CNI_COMMAND": "STATUS"}))
        properties = schema("bridge")["properties"]
        assert (empty.bridge, empty.backend) == (
            properties["bridge"]["default"],
            properties["ipMasqBackend"]["default"],
        )
        assert [empty.mtu, empty.vlan, empty.is_gateway, empty.ip_masq, empty.mac_spoof_check] == [
            0,
            0,
            False,
            False,
            False,
        ]
        ipam = host_local.Conf(Reader({"ipam": {"ranges": RANGES}}), Request({"CNI_COMMAND": "STATUS"}))
        assert ipam.status_on_exhausted is schema("host-local")["properties"]["statusOnExhausted"]["default"]
        assert ipam.data_dir == schema("host-local")["properties"]["dataDir"]["default"]


class TestPages:
    """Links lead somewhere, commands exist, versions are right."""

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
    def test_links(self, page: Path) -> None:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), target

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
    def test_make_targets(self, page: Path) -> None:
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE))
        assert named <= targets

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
    def test_commands_of_cnikit(self, page: Path) -> None:
        named = set(re.findall(r"(?:^|`|dist/)cnikit ([a-z]+)", page.read_text(), re.MULTILINE))
        assert named <= set(cli.commands)

    def test_files_that_are_named(self) -> None:
        """In pages, docstrings and comments: relative to the root or to the file; a decision also by its number."""
        rooms = "cni|plugins|ipam|agent|launcher|cli|conf|tests|docs"
        path = re.compile(rf"(?<![\w/.<{{}}-])((?:{rooms})/[\w./-]*\w|[\w-]+\.md\b)")
        named = [(file, name) for file, text in prose() for name in path.findall(text)]
        assert len({name for _, name in named}) > 50
        missing = [
            f"{file.relative_to(ROOT)}: {name}"
            for file, name in named
            if not any((place / name).exists() for place in (ROOT, file.parent))
            and not (re.fullmatch(r"docs/adr/\d+", name) and list(ROOT.glob(f"{name}-*.md")))
        ]
        assert missing == []

    def test_readme_names_every_version(self) -> None:
        readme = (ROOT / "README.md").read_text()
        assert [version for version in SUPPORTED if version not in readme] == []

    @pytest.mark.parametrize("page", ["README.md", "docs/bench.md", "docs/scale.md"])
    def test_tables_are_those_of_the_last_benchmark(self, page: str) -> None:
        before, between, after = re.split(r"<!-- /?bench -->\n", (ROOT / page).read_text())
        pages = report.pages(report.read(ROOT / "docs/bench.json"), ROOT / "docs", ROOT / "README.md")
        assert between == f"{pages[ROOT / page]}\n"
        if page == "README.md":
            (sentence,) = [line for line in between.splitlines() if line.startswith("With the agent")]
            measured = json.loads((ROOT / "docs/bench.json").read_text())["rows"]
            ratios = {row["row"]: row["ratio"] for row in measured}
            expected = [plot.times(ratios[row]) for row in ("agent-add", "agent-add-masq", "agent-del", "add")]
            assert re.findall(r"[\d.]+x", sentence) == expected
            assert {f"**{ratio}**" for ratio in expected} <= set(re.findall(r"\*\*.*?\*\*", between))
            # A number that somebody wrote by hand would not follow the next benchmark.
            by_hand = r"\b[\d.,]+ ?(?:x|ms|µs|MiB|%)(?!\w)|\b(?:third|quarter|fifth|seventh|eighth|tenth)s? of\b|\btimes (?:as|faster)\b"
            assert re.findall(by_hand, before + after) == []

    def test_changelog_has_this_version_with_its_date(self) -> None:
        entries = re.findall(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
        assert [entry for entry in entries if not re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", entry)] == []
        assert entries[0].startswith(f"{__version__} ")

    def test_licence(self) -> None:
        about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert about["license"] == "Apache-2.0"
        assert ["Apache License" in (ROOT / file).read_text() for file in about["license-files"]] == [True]
        # The build refuses a classifier beside the expression.
        assert [one for one in about["classifiers"] if one.startswith("License")] == []

    def test_the_command_has_the_version(self) -> None:
        assert CliRunner().invoke(cli, ["--version"]).output == f"cnikit {__version__}\n"

    def test_the_call_in_the_plugin_guide_works(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        guide = (ROOT / "docs/plugin-guide.md").read_text()
        (code,) = [block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "dispatch.serve" in block]
        exec(code.replace("/tmp/vip-example", str(tmp_path)), {})  # noqa: S102 - it is ours
        result = json.loads(capsys.readouterr().out)
        assert [ip["address"] for ip in result["ips"]] == ["203.0.113.10/32"]

    def test_the_networks_in_the_pages_are_clean(self, tmp_path: Path) -> None:
        lists = [
            block
            for page in PAGES
            for block in re.findall(r"```json\n(.*?)```", page.read_text(), re.DOTALL)
            if '"plugins": [' in block
        ]
        lists += re.findall(r"<<'END'\n(.*?)^END$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
        assert len(lists) >= 2
        for number, block in enumerate(lists):
            file = tmp_path / f"{number}.conflist"
            file.write_text(block)
            try:
                assert netlist.read(str(file)).version == "1.1.0"
            except CniError as error:
                pytest.fail(f"{block}\n{error}")


def prose() -> Iterator[tuple[Path, str]]:
    """Every page whole; of the code its docstrings and its comments."""
    for page in PAGES:
        yield page, page.read_text()
    for room in ("agent", "cli", "cni", "docs", "ipam", "launcher", "plugins", "tests"):
        for file in (ROOT / room).rglob("*.[ch]"):
            yield file, file.read_text()
        for file in (ROOT / room).rglob("*.py"):
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
            nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, documented)]
            comments = re.findall(r"^\s*(#.*)", file.read_text(), re.MULTILINE)
            yield file, "\n".join([*(ast.get_docstring(node) or "" for node in nodes), *comments])


def rows(first: str) -> list[str]:
    """The registry's rows in use whose first cell begins with `first`, or whose second does after a family and table."""
    lines = [line for line in REGISTRY.splitlines() if line.startswith(f"| {first}")]
    reserved = ("svc-", "policy-", "crypt-", "| reserved |")
    return [line for line in lines if not any(word in line for word in reserved)]


def general(text: str) -> str:
    """A name of the test's world with the placeholders that the page uses; the container is `ctr`."""
    text = text.replace("ctr:eth0", "KEY").replace("ctr-eth0", "CONTAINER-IFNAME")
    text = text.replace("net/ctr/eth0", "NETWORK/CONTAINER/IFNAME")
    text = re.sub(r"^(masq|pods)-net\b", r"\1-NETWORK", text)
    text = re.sub(r"NETWORK-[0-9a-f]{8,32}/\d+$", "NETWORK-HEX/LENGTH", text)
    text = re.sub(r":KEY:(bridge|host-local)$", ":KEY:PLUGIN", text)
    return re.sub(r"(^|/)net(/|:|$)", r"\1NETWORK\2", text)


def is_registered(path: str) -> bool:
    """Whether a path is in the first cell of a row: whole, or with its folder before it in the cell."""
    folder, _, name = path.rpartition("/")
    name = re.sub(r"^(10\.1|fd00)[0-9a-f.:]*(_\d+)?$", lambda found: "ADDRESS_LENGTH" if found[2] else "ADDRESS", name)
    name = re.sub(r"^last_reserved_ip\.\d$", "last_reserved_ip.N", name)
    name = re.sub(r"^used-.*", "used-*", name)
    for row in rows("`/"):
        first, *others = re.findall(r"`([^`]+)`", row.split("|")[1])
        beside = re.findall(r"`([\w.]+)`", row.split("|")[3])
        if first == f"{folder}/{name}" or (first.startswith(f"{folder}/") and name in others + beside):
            return True
    return False


def calls_in(folder: str, functions: tuple[str, ...]) -> Iterator[ast.Call]:
    """Every call of these functions in a folder's files."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in functions:
                    yield node


def schema(plugin: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "conf/schema" / f"{plugin}.json").read_text())
    return found


def schema_keys(plugin: str) -> set[str]:
    """The keys of a schema with their paths, through `$ref`, objects and arrays."""
    whole = schema(plugin)
    found: set[str] = set()

    def walk(part: dict[str, Any], path: str) -> None:
        if "$ref" in part:
            target: Any = whole
            for step in part["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            walk(target, path)
        for key, value in part.get("properties", {}).items():
            name = f"{path}.{key}" if path else key
            found.add(name)
            walk(value, name)
        if "items" in part:
            walk(part["items"], f"{path}[]")

    walk(whole, "")
    return found
