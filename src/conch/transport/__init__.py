"""WHO OWNS SOCKETS: HTTP/1.1 and HTTP/2, bytes in and bytes out on one event loop."""
