"""argv in, text out: the only rooms that know Typer and Rich."""
