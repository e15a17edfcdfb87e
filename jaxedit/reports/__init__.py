"""A study's journal as tables, figures, Markdown and a page."""
