"""What `python train.py --help` prints, from the configuration itself; imports nothing slow."""
