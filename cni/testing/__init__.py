"""Fixtures for tests of plugins, ours and third parties': a kernel in memory, and one that fails on demand."""
