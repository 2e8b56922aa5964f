"""Programs around an exported model: scoring a log, making an example request, writing a server's configuration."""
