"""Address allocators: one module per driver, the range arithmetic, and the lease store with its index."""
