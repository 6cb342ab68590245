"""Blind comparison of songs by people: what is asked, what is kept, and the page."""
