"""Which examples come together: by epochs, by equal depth, packed into rows."""
