"""Who may call, and over what: TLS, device identity, and the certificates behind them."""
