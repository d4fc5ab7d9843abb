"""From the command line to the run directory."""
