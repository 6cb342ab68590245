"""What a fine-tune changed: songs before and after, paired by prompt."""
