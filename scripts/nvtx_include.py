"""Print the directory that holds ``nvtx3/`` of the installed nvidia-nvtx wheel."""

import sys
from importlib import metadata
from pathlib import Path


def main() -> int:
    """Print the include directory; return 1 where the wheel is missing."""
    for name in ("nvidia-nvtx", "nvidia-nvtx-cu12"):
        try:
            files = metadata.files(name) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name == "nvToolsExt.h" and file.parent.name == "nvtx3":
                print(Path(str(file.locate())).resolve().parent.parent)
                return 0
    print("nvtx_include: nvidia-nvtx is not installed: pip install nvidia-nvtx", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
