"""What is done with runs and with the machine: one file a verb, behind the `vae` command."""
