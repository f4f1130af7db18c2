"""A folder of studies, segmented by workers, gone on with where it was left."""
