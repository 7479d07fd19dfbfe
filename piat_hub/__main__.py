"""`accelerate launch -m piat_hub train …`, `python -m piat_hub evaluate …`: the same as `piat`."""

import sys

from piat_hub.cli import main

if __name__ == "__main__":
    sys.exit(main())
