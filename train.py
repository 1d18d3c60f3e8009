"""Trains and evaluates: `python train.py --help` shows how."""

from breakhis_pl.command_line import main

if __name__ == "__main__":
    main("train")
