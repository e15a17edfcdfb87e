"""`jaxedit COMMAND [flags]`, the same as `python -m jaxedit`."""

import sys


def main() -> None:
    """Run a command; see `jaxedit --help`."""
    from jaxedit.cli import run

    sys.exit(run(sys.argv))


if __name__ == "__main__":
    main()
