"""The plugins of this build: the name that each is called by, and its module."""

PLUGINS = {"bridge": "plugins.bridge", "loopback": "plugins.loopback", "host-local": "ipam.host_local"}
