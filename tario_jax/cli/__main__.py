"""What `tario` starts, and `python -m tario_jax.cli` where the installed `tario` is not on the path."""

import sys

from tario_jax.cli import huge_pages


def command() -> int:
    huge_pages.start_again()
    from tario_jax.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(command())
