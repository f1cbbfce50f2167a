"""What runs the tiers: this process, or a Ray cluster."""
