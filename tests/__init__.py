"""Tests of cnikit. See each folder's conftest.py for what it needs."""
