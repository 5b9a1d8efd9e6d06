"""The scripts of the long runs, one for each record: `python -m vae_lib.recorded.NAME`."""
