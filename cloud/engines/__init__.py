"""What decides behind the doors: tiers in this process, or on a Ray cluster."""
