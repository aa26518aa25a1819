"""Pages out of what was drawn: one picture explained, with figures, and a gallery over a folder of them."""
