"""`python -m everclip`: the command, where its script is not on the path."""

from everclip.cli.main import main

main()
