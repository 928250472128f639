"""A node: `cnikit install` and `cnikit uninstall`, and what they are made of.

`install.py` and `uninstall.py` are the two commands, top to bottom. What they use: `root.py` (the node's file system,
also from within a container), `elf.py` and `glibc.py` (does the bundle start there?), `pod_ranges.py` and
`network_list.py` (the file in /etc/cni/net.d), `record.py` and `settings.py` (what the node was like before), and
`traces.py` (what networks leave in the kernel).
"""
