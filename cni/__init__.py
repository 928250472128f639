"""The framework every cnikit plugin stands on: protocol, configuration, dispatch, kernel, runtime.

Import the module you need (`from cni.errors import CniError`); this package re-exports nothing, because
each import costs start-up time on the one-shot path.
"""

__version__ = "0.1.0"
