"""Searches for a better configuration: `python tune.py --help` shows how."""

from breakhis_pl.command_line import main

if __name__ == "__main__":
    main("tune")
