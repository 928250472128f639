"""What the bundle of `dist/cnikit` runs first: the caller's arguments and environment back in place, then `cli.main`."""

import os
import sys

from cli.main import cli
from cni.start import Start

start = Start(sys.argv)
start.restore(os.environ)
sys.executable = start.launcher
sys.argv = [start.launcher, *start.arguments]
cli(prog_name="cnikit")
