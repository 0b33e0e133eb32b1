"""Where the rows of a blended batch come from, and in which batches a row comes."""
