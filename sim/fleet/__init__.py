"""A fleet in virtual time: queues, and the devices and servers around them."""
