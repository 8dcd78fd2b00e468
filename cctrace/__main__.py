"""``python -m cctrace``: the same as the ``cctrace`` script."""

from cctrace.cli import main

if __name__ == "__main__":
    main()
