"""`python -m orchestrator.cli` is `rebuildctl`."""

from orchestrator.cli.main import main

main()
