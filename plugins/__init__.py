"""Interface and meta plugins, one file each, and the named helpers that several of them share."""
