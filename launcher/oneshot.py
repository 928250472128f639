"""What the bundle runs first: our modules out of one file, then `cni.main`.

PyInstaller's own bootstrap (an archive reader, three import hooks) costs 2 ms. Here the bundle keeps the
code of all our modules in one file, `modules.bin`: the marshalled pair (registry, {name: (is package, code)}).
The standard library lies beside it as plain files, most of what a call needs is frozen into the interpreter.
"""

import gc
import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec

# A call makes little garbage and lives for milliseconds.
gc.disable()


class OwnModules:
    """Finder and loader of the modules in `modules.bin`."""

    def __init__(self, modules):
        self._modules = modules

    def find_spec(self, name, path=None, target=None):
        found = self._modules.get(name)
        return None if found is None else ModuleSpec(name, self, is_package=found[0])

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(marshal.loads(self._modules[module.__name__][1]), module.__dict__)


def read(path):
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    data = posix.read(fd, posix.fstat(fd).st_size)
    posix.close(fd)
    return data


registry, modules = marshal.loads(read(sys._MEIPASS + "/modules.bin"))
sys.meta_path.insert(0, OwnModules(modules))

from cni.main import main

main(registry, sys.argv)
