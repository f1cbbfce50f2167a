"""One file per study. Each raises ConfigError for whatever a user must correct, all that one reading found at once."""
