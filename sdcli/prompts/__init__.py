"""What a prompt says to the text encoder."""
