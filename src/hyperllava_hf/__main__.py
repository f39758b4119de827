"""python -m hyperllava_hf: the hyperllava command."""

import sys

from hyperllava_hf.cli.app import main

sys.exit(main())
