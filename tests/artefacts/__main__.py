"""Build what is missing: `python -m tests.artefacts`, as `make test-setup` does."""

from tests.artefacts.debian import DEBIAN
from tests.artefacts.node import NODE_IMAGE
from tests.artefacts.programs import KUBERNETES, NODE_PROGRAMS

for artefact in (DEBIAN, KUBERNETES, NODE_PROGRAMS, NODE_IMAGE):
    print(artefact.made())
