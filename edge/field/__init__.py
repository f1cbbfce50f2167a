"""In operation: what may not leave the device, how often agreement is wrong, and whether the data have changed."""
