"""Setting a device up: what is wrong with it, a first config, what leaves it, and a service. Each a command."""
