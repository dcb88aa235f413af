"""The commands that train, tune and compress drafters and targets, one file each."""
