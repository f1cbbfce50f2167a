"""Who may call, over what, and how much: TLS, device identity, quotas, and the certificates behind them."""
