"""Prompts to jobs, and the one runner that draws them."""
