"""`python3 -m hack.images [all|pause]`: build what is missing, print the folder of the OCI layout."""

import argparse

from hack.images import build
from hack.tools import main


def _main() -> None:
    parser = argparse.ArgumentParser(prog="images", description=__doc__)
    parser.add_argument("which", nargs="?", choices=("all", "pause"), default="all")
    which = parser.parse_args().which
    print(build.pause() if which == "pause" else build.everything())


if __name__ == "__main__":
    main(_main)
