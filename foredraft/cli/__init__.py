"""The command `foredraft`: main.py lists the commands, options.py declares the options that they share."""
