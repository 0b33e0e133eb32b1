"""Where samples come from, and where they go to: by inversion, without reading data."""
