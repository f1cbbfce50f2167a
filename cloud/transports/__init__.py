"""Where requests come in: gRPC and HTTP. A door knows its messages; what is behind it, the plane knows."""
