"""The commands of coe-sim, one file each: `add` declares its arguments, `run` does it."""
