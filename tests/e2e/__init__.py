"""End-to-end tests: the real executables, called by real clients, on a real kernel."""
