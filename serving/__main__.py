"""`python -m serving`: the command, where no script of that name is on the path."""

from serving.cli import main

main()
