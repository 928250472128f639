"""What the bundle runs first: our modules out of one file, then `cni.main`.

PyInstaller's own bootstrap (an archive reader, three import hooks) costs 2 ms. Here the code of all our modules
is in one file, `modules.bin` (cli/bundle.py writes it), and each is read when it is imported. The standard
library lies beside it as plain files; most of what a call needs of it is frozen into the interpreter.
"""

import gc
import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

# A call makes little garbage and lives for milliseconds.
gc.disable()


class OwnModules:
    """Finder and loader of the modules in an open file.

    The file begins with 8 bytes, the length of the marshalled pair (registry, {name: (is package, offset, length)})
    that follows; then comes the marshalled code. Offsets count from the end of the pair.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        length = int.from_bytes(posix.pread(fd, 8, 0), "little")
        self._start = 8 + length
        self.registry, self._modules = marshal.loads(posix.pread(fd, length, 8))

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        found = self._modules.get(name)
        return None if found is None else ModuleSpec(name, self, is_package=found[0])  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # the import system makes it

    def exec_module(self, module: "ModuleType") -> None:
        _, offset, length = self._modules[module.__name__]
        exec(marshal.loads(posix.pread(self._fd, length, self._start + offset)), module.__dict__)


bundle = sys._MEIPASS  # type: ignore[attr-defined]  # set by the bootloader
own_modules = OwnModules(posix.open(f"{bundle}/modules.bin", posix.O_RDONLY | posix.O_CLOEXEC))
sys.meta_path.insert(0, own_modules)

from cni.main import main

main(own_modules.registry, sys.argv)
