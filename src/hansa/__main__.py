"""`python -m hansa` is the `hansa` command."""

from hansa.node.commands.cli import main

if __name__ == "__main__":
    main()
