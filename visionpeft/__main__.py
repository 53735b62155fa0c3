"""``python -m visionpeft`` is the command line."""

from visionpeft.cli import main

if __name__ == "__main__":
    main()
