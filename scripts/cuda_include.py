"""Print the directory that holds ``cuda.h`` of the installed nvidia-cuda-runtime wheel."""

import sys
from importlib import metadata
from pathlib import Path


def main() -> int:
    """Print the include directory; return 1 where the wheel is missing."""
    try:
        files = metadata.files("nvidia-cuda-runtime") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "cuda.h" and file.parent.name == "include":
            print(Path(str(file.locate())).resolve().parent)
            return 0
    print(
        "cuda_include: nvidia-cuda-runtime is not installed: pip install 'nvidia-cuda-runtime>=13'",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
