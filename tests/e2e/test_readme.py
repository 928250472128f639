"""The tutorial of README.md, line by line as a reader types it, in namespaces that keep it from the machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The folders that the tutorial writes to, empty, as on a machine that has no CNI yet.
EMPTY = "mount -t tmpfs none /etc/cni; mount -t tmpfs none /run; mount -t tmpfs none /var/lib/cni"


def tutorial() -> str:
    section = (ROOT / "README.md").read_text().partition("\n## A network\n")[2]
    code = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert code is not None
    # The programs of this line are on the machine already: `make test` installs them.
    return re.sub(r"^apt-get .*\n", "", code[1])


def test_the_tutorial_works_as_it_stands(bin_dir: Path) -> None:
    for folder in ("/etc/cni", "/var/lib/cni"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    script = tutorial().replace("dist/cnikit", str(bin_dir.parent / "cnikit"))
    ran = subprocess.run(
        ("unshare", "--net", "--mount", "sh", "-euxc", f"{EMPTY}\n{script}\nls -A /etc/cni/net.d; ip -br link"),
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0% packet loss" in ran.stdout
    assert '"10.88.0.2/16"' in ran.stdout
    assert ran.stdout.splitlines()[-1].startswith("lo "), "only loopback is left, and no network list"
    assert "10-podnet.conflist\n" not in ran.stdout
