"""Tables, figures and pages: one list of blocks as HTML, as Markdown and on a terminal."""
