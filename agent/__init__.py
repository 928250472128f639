"""The node's resident process: it answers the launchers' calls with the code that the one-shot executables run."""
