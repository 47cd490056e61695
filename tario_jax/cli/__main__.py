"""`python -m tario_jax.cli`, where the installed `tario` is not on the path."""

import sys

from tario_jax.cli.main import main

sys.exit(main())
