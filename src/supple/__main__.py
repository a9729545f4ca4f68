"""``python -m supple``, the same as ``supple``."""

from supple.cli import main

if __name__ == "__main__":
    main()
