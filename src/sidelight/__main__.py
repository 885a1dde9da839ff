"""Run the command line: ``python -m sidelight``."""

import sys

from sidelight.cli.main import main

sys.exit(main())
