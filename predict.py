"""Predicts pictures with a trained network: `python predict.py --help` shows how."""

from breakhis_pl.command_line import main

if __name__ == "__main__":
    main("predict")
