"""`make bench`: cnikit's executables against the Go plugins, in turn, on nodes of their own."""
