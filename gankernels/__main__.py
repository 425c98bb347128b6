"""``python -m gankernels`` is ``gankernels``."""

import sys

from gankernels.cli import main

sys.exit(main())
