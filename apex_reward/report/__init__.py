"""What pages, pictures and tables for people share: cells, Markdown, terminal, figures, pages."""
