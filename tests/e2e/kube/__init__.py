"""cnikit on real Kubernetes clusters: kind, on podman, with a node image made by tests/artefacts."""
