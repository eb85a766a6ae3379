"""Long random tests. Each module is a command that writes its result as JSON; a small share runs in the suite."""
