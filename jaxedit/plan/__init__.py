"""Plans of studies: their programs compiled ahead of time for devices that are not there."""
