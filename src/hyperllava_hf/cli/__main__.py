"""python -m hyperllava_hf.cli."""

import sys

from hyperllava_hf.cli.app import main

sys.exit(main())
