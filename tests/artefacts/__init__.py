"""What the tests on real clusters need and build themselves: Kubernetes, the programs of a node, the node's image."""
