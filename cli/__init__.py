"""The `cnikit` command for people. `cli.main:cli` is its entry; each command imports what it needs when it runs."""
