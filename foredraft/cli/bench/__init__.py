"""The commands of `foredraft bench`, one file each."""
