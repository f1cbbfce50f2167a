"""The server's transports: gRPC and REST over HTTP."""
